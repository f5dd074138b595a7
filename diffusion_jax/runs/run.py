"""Trained runs loaded from a checkpoint: config, process, network and parameters."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib, data
from diffusion_jax.addresses import expand, is_local, origin
from diffusion_jax.checkpoints.store import CheckpointStore
from diffusion_jax.errors import InputError, RunError
from diffusion_jax.experiment import build
from diffusion_jax.experiment.build import Experiment
from diffusion_jax.reading import json_text
from diffusion_jax.reading.regular import read_regular
from diffusion_jax.reporting import classes
from diffusion_jax.runs.parameters import Reconstruction, load_parameters
from diffusion_jax.training.state import abstract_like

NO_DATA = "image_folder"  # An imported run's data.name, without a data.source_dir, where no data was named.
IMPORTED = "imported"  # Key of an imported run's origin in its checkpoint's JSON.
SAME_CLASSES = "rename them so that each has the same number as in training"


@dataclasses.dataclass(frozen=True)
class Run(Experiment):
    """An experiment with its trained parameters.

    Attributes:
      params: The parameters, averaged or not.
      step: Number of training steps.
      digest: Hash of the checkpoint's contents, and of the snapshots' if the parameters were made of them.
      training_config: The config of the training, including its own `sampler`, `sample`, `eval` and `mesh`.
      reconstruction: How the parameters were made of snapshots; None if the checkpoint has them.
      imported: Whether it is a checkpoint of another library, of which no data is known unless it was named.
    """

    params: Any
    step: int
    digest: str
    training_config: ConfigDict
    reconstruction: Reconstruction | None = None
    imported: bool = False

    @property
    def names_to_draw(self) -> tuple[str, ...]:
        """Names of the classes that the model draws, or their numbers if the checkpoint has no names."""
        number = self.label_classes
        return (self.label_names or tuple(map(str, range(number))))[:number]

    def load_split(self, name: str, *, labeled: bool) -> data.Split:
        """Opens a split of the run's data.

        Args:
          name: "train" or "test".
          labeled: Whether the labels are passed to the model; their classes must then be those of the training.

        Raises:
          InputError: The labels mean other classes than in training.
        """
        if self.imported and (self.data_name, self.config.data.source_dir) == (NO_DATA, None):
            raise InputError(
                "this run was imported without data; import it again with its data, such as --config.data.name=cifar10"
            )
        split = build.load_split(self.config, name)
        if labeled and (changed := classes_moved(self.class_names, split, self.data_name)):
            raise InputError(f"checkpoint {self.step} {changed}; {SAME_CLASSES}")
        return split


def classes_moved(names: Sequence[str], split: data.Split, source: str) -> str | None:
    """Returns a description of classes that differ from those of the training; None if there are none.

    Args:
      names: Class names of the training; empty for older versions, which saved none.
      split: The present data.
      source: The field data.name.
    """
    now = split.class_names
    if not names:  # Those versions numbered folders by the letters of their names: 1, 10, 2.
        names = tuple(sorted(now)) if source == "image_folder" else now
    changed = classes.moved(names, now)
    return changed and f"was trained with other classes than {source} now has: {changed}"


def checkpoint_folder(workdir: Path, checkpoint_dir: str | None) -> str | Path:
    """Returns the folder of a run's checkpoints.

    Args:
      workdir: Folder of the run.
      checkpoint_dir: The field train.checkpoint_dir of its config.

    Raises:
      InputError: The path is relative, and so depends on where the command is started.
    """
    if checkpoint_dir is None:
        address = origin(workdir)
        return f"{address}/checkpoints" if address else workdir / "checkpoints"
    checkpoint_dir = expand(checkpoint_dir)
    if not is_local(checkpoint_dir):
        return checkpoint_dir
    return full_path(
        "train.checkpoint_dir", checkpoint_dir, ", or an address such as gs://BUCKET/PATH"
    )


def full_path(field: str, path: str, otherwise: str = "") -> str:
    """Returns the path of a folder with a leading ~ expanded.

    Args:
      field: Name of the field that holds it.
      path: The path.
      otherwise: What else the field may hold, for the message.

    Raises:
      InputError: The path is relative, and so depends on where the command is started.
    """
    path = expand(path)
    if not os.path.isabs(path):
        raise InputError(f"{field} is {path!r}; it must be a full path{otherwise}")
    return path


def saved_checkpoint_dir(workdir: Path) -> str | None:
    """Returns the field train.checkpoint_dir from a run's config.json; None if it has none."""
    try:
        saved = json_text.parse_object(read_regular(workdir / "config.json"))
        found = saved["train"]["checkpoint_dir"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def load_experiment(workdir: str | os.PathLike[str]) -> Experiment:
    """Loads what a run trains, without its parameters, from its newest checkpoint.

    Args:
      workdir: Folder of the run.

    Raises:
      InputError: There is no checkpoint.
    """
    with contextlib.closing(_open_store(Path(expand(workdir)))) as store:
        meta = _meta(store, None)
    return _experiment(config_lib.from_dict(meta["config"]), meta["data"])


def load_run(
    workdir: str | os.PathLike[str],
    *,
    step: int | None = None,
    ema: bool | float = True,
    ema_length: float | None = None,
    config: ConfigDict | None = None,
    sharding: Any = None,
) -> Run:
    """Loads a run from its newest sound checkpoint, without the optimizer's state.

    Args:
      workdir: Folder of the run, with its config.json, which names the folder of the checkpoints.
      step: Step of the checkpoint; None: the newest.
      ema: True: the main average of the parameters; False: the parameters; or the decay of another average, such as
        0.9999.
      ema_length: Relative length of a power-function average, such as 0.1, in place of `ema`. An average that was not
        tracked is reconstructed from the run's snapshots.
      config: Source of the fields that any mode may set (`sampler`, `sample`, `eval`, `mesh`); None: the
        checkpoint.
      sharding: Sharding of the parameters, or a tree like them with one for each; None: the first device.

    Raises:
      InputError: There is no such checkpoint, or the average was not tracked and cannot be reconstructed.
      RunError: No checkpoint is sound.
    """
    with contextlib.closing(_open_store(Path(expand(workdir)))) as store:
        meta = _meta(store, step)
        # The workdir's config may have changed since.
        training_config = config_lib.from_dict(meta["config"])
        experiment = _experiment(_with_settable(training_config, config), meta["data"])
        where = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        tracked = build.tracked_of(training_config)
        template = abstract_like(experiment.network.init, where)
        loaded = load_parameters(store, tracked, template, step, ema, ema_length)
    checkpoint = loaded.checkpoint
    if checkpoint.meta["config"] != meta["config"]:  # The newest is damaged; use an older one.
        raise RunError(
            f"checkpoint {checkpoint.step} was trained with another config than the damaged newest; "
            f"ask for it: sample.step={checkpoint.step}"
        )
    return Run(
        **vars(experiment),
        params=loaded.params,
        step=checkpoint.step,
        digest=loaded.digest,
        training_config=training_config,
        reconstruction=loaded.reconstruction,
        imported=IMPORTED in meta,
    )


def _open_store(workdir: Path) -> CheckpointStore:
    return CheckpointStore(checkpoint_folder(workdir, saved_checkpoint_dir(workdir)))


def _meta(store: CheckpointStore, step: int | None) -> dict[str, Any]:
    meta = store.meta(step)
    if meta is None:
        raise InputError(f"no checkpoint in {store.directory}")
    return meta


def _experiment(config: ConfigDict, seen: Mapping[str, Any]) -> Experiment:
    """Returns the experiment for the data described by a checkpoint; older versions saved no class names."""
    names = tuple(seen.get("class_names", ()))
    return build.build(config, tuple(seen["image_shape"]), seen["num_classes"], names)


def _with_settable(trained: ConfigDict, given: ConfigDict | None) -> ConfigDict:
    """Returns the training's config with the fields that any mode may set taken from `given`, if any."""
    config = copy.deepcopy(trained)
    if given is not None:
        for name in filter(config_lib.is_settable, config_lib.FIELDS):
            group, leaf = config_lib.locate(config, name)
            source, _ = config_lib.locate(given, name)
            group[leaf] = source[leaf]
    return config
