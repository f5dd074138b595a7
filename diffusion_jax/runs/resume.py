"""Resumed runs: checks that config, data and classes are unchanged, and the restored state."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_jax import data
from diffusion_jax.checkpoints.store import CheckpointStore
from diffusion_jax.errors import InputError, RunError
from diffusion_jax.experiment.training import Training
from diffusion_jax.parallel.distributed import broadcast_from_first
from diffusion_jax.runs.run import IMPORTED, SAME_CLASSES, classes_moved
from diffusion_jax.training.meter import Meter
from diffusion_jax.training.state import TrainState, from_parts, to_parts

ADVICE = "Use another --workdir, or --allow_config_change to resume with it"


def check_trained(meta: Mapping[str, Any] | None, workdir: Path) -> None:
    """Raises if the run to resume was imported: there is no optimizer to go on with.

    Args:
      meta: JSON of its checkpoint; None: there is none.
      workdir: Its folder.
    """
    if meta is not None and IMPORTED in meta:
        raise InputError(
            f"{workdir} is an imported run, which has no optimizer to go on with: train in another --workdir with "
            f"--config.train.init_from={workdir.absolute()}"
        )


def check_unchanged(changed: Sequence[str]) -> None:
    """Raises if changes of the config (`config.changes`) would alter the result of a resumed run."""
    if changed:
        raise InputError(
            "this run was started with another config (field: saved -> now): "
            f"{'; '.join(changed)}. {ADVICE}"
        )


def check_classes(meta: dict[str, Any] | None, split: data.Split, name: str, allow: bool) -> None:
    """Raises if the labels of a resumed run now mean other classes; only warns if that is allowed."""
    names = meta["data"].get("class_names", ()) if meta else split.class_names
    if changed := classes_moved(names, split, name):
        if not allow:
            raise InputError(f"this run {changed}; {SAME_CLASSES}. {ADVICE}")
        warnings.warn(f"this run {changed}; training continues with these", stacklevel=1)


def check_snapshots(snapshots: CheckpointStore, start: int, config_hash: str) -> None:
    """Raises if there are snapshots of steps to come that another config made: the run would keep them.

    Args:
      snapshots: The run's snapshots of averages.
      start: Step that it begins at.
      config_hash: Hash of its config.
    """
    steps = broadcast_from_first("list the snapshots", snapshots.steps)
    for step in (step for step in steps if step > start):
        with contextlib.suppress(
            RunError
        ):  # A damaged one is moved aside, and will be saved again.
            meta = snapshots.meta(step)
            if meta is not None and meta.get("config_hash") != config_hash:
                raise InputError(
                    f"{snapshots.directory / str(step)} is of another config than this run's, which begins at step "
                    f"{start}: move the snapshots of later steps away"
                )


def restore_state(
    training: Training,
    store: CheckpointStore,
    split: data.Split,
    name: str,
    allow_change: bool,
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state to resume from and the JSON that was saved with it."""
    checkpoint = store.restore(to_parts(training.template))
    assert checkpoint is not None
    before = checkpoint.meta["data"]
    if before["num_images"] != split.num_images and not allow_change:
        raise InputError(
            f"this run was trained on {before['num_images']} images; {name} now has {split.num_images}. {ADVICE}"
        )
    if before["fingerprint"] != data.fingerprint(split) and not allow_change:
        raise InputError(f"this run was trained on other images than {name} now has. {ADVICE}")
    return from_parts(checkpoint.parts), checkpoint.meta


def describe(
    config_json: dict[str, Any],
    split: data.Split,
    fingerprint: str,
    meter: Meter,
    step: int,
    *,
    seed: int,
    batch_size: int,
    origin: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the JSON that a checkpoint holds besides the state.

    Args:
      config_json: The run's config as JSON.
      split: Training images.
      fingerprint: Fingerprint of the images.
      meter: Meter with the sums since the last row of the log.
      step: Number of finished steps.
      seed: Seed of the images' order.
      batch_size: Images per step.
      origin: Where the first parameters came from, as `begin_from` says it; None: they were random.
    """
    position = {
        "seed": seed,
        "batch": step,
        "epoch": step * batch_size / split.num_images,
        "num_images": split.num_images,
        "fingerprint": fingerprint,
        "image_shape": split.image_shape,
        "num_classes": split.num_classes,
        "class_names": split.class_names,
        "class_counts": split.class_counts,
    }
    return {
        "config": config_json,
        "data": position,
        "sums": dataclasses.asdict(meter.sums),
        **({"init_from": origin} if origin else {}),
    }
