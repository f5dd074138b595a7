"""The config that a run saved: as every mode but train uses it, and as a run that is continued goes on with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax.commands.modes import MODES, Mode
from diffusion_jax.errors import InputError, reason
from diffusion_jax.features import FEATURES
from diffusion_jax.metrics import IMAGE_METRICS, METRICS
from diffusion_jax.reading import json_text
from diffusion_jax.reading.regular import read_regular


def load_config(workdir: Path, assignments: Sequence[tuple[str, str]], mode: Mode) -> ConfigDict:
    """Returns the config that the run was trained with, with what the command line may change.

    Raises:
      InputError: No run in this workdir, or a field that is fixed by the training or decides nothing in this mode.
    """
    config = _saved_config(workdir, {name for name, _ in assignments}, mode)
    for name, _ in assignments:
        if name in config_lib.FIELDS and not config_lib.is_settable(name):
            raise InputError(
                f"config field {name} is fixed by the trained run; "
                f"this mode may set {', '.join(config_lib.settable_groups())}"
            )
    config_lib.override(config, assignments)
    for name, _ in assignments:
        if not mode.decides(name):
            others = ", ".join(
                f"--mode={other.name}" for other in MODES.values() if other.decides(name)
            )
            raise InputError(
                f"config field {name} decides nothing in --mode={mode.name}; "
                f"it is for {others or '--mode=train'}"
            )
    if mode.name == "evaluate":
        _check_metrics(config, {name for name, _ in assignments})
    return config


def has_run(workdir: Path) -> bool:
    """Whether there is a trained run in a folder."""
    return (workdir / "config.json").exists()


def _saved_config(workdir: Path, assigned: set[str], mode: Mode) -> ConfigDict:
    """Returns the config of the run, or the default one if the command line makes a run unnecessary."""
    if not has_run(workdir):
        if not assigned.isdisjoint(mode.instead_of_run):
            config = config_lib.default_config()
            config.eval.metrics = ("fd",)  # The default is one of models.
            return config
        either = "".join(f", nor is {name} set" for name in mode.instead_of_run)
        raise InputError(
            f"--workdir: no trained run in {workdir} (there is no config.json){either}"
        )
    config = read_config(workdir)
    if config.mesh.fsdp > 1:
        # The devices of the training need not be here, and all have the parameters whole.
        config.mesh.data, config.mesh.fsdp = -1, 1
    return config


def read_config(workdir: Path) -> ConfigDict:
    """Returns the config that a run saved, as it stands there.

    Raises:
      InputError: It cannot be read, or a field is unknown or of the wrong type.
    """
    path = workdir / "config.json"
    try:
        return config_lib.from_dict(json_text.parse_object(read_regular(path)))
    except OSError as error:
        raise InputError(f"{path}: {reason(error)}") from error
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def _check_metrics(config: ConfigDict, assigned: set[str]) -> None:
    """Raises if a field on the command line is only for metrics that are not measured."""
    chosen = set(config.eval.metrics)
    if not chosen <= {*METRICS, *IMAGE_METRICS}:
        return  # That is refused with the names that there are.
    for name in assigned:
        owners = _metrics_with(name)
        if owners and not owners & chosen:
            raise InputError(
                f"config field {name} decides nothing of eval.metrics={tuple(config.eval.metrics)}; "
                f"it is for {', '.join(sorted(owners))}"
            )
    others = [f"eval.{name}" for name in ("images", "sweep") if config.eval[name] is not None]
    if config.eval.selfcheck and others:
        raise InputError(
            f"eval.selfcheck measures images of eval.reference alone; leave out {others[0]}, or the check"
        )
    given = [f"eval.{name}" for name in ("images", "selfcheck") if config.eval[name]]
    if given and chosen <= set(IMAGE_METRICS):
        for name in sorted(assigned):
            if config_lib.group_of(name) in ("sampler", "sample"):
                raise InputError(
                    f"config field {name} decides nothing while {given[0]} is set: nothing is drawn"
                )


# Fields that only metrics of images need, besides these metrics' own options and those of the features.
_OF_IMAGES = ("images", "reference", "features", "selfcheck", "sweep")


def _metrics_with(name: str) -> set[str]:
    """Returns the metrics that a field of mode evaluate is for; none if it is for all."""
    group, _, leaf = name.rpartition(".")
    if group == "sampler" or name in ("sample.seed", "sample.labels", "sample.batch_size"):
        return set(IMAGE_METRICS)
    if group != "eval":
        return set()
    if leaf in _OF_IMAGES or leaf in FEATURES.options:
        return set(IMAGE_METRICS)
    return {*METRICS.owners(leaf), *IMAGE_METRICS.owners(leaf)}


def check_trained(config: ConfigDict, trained: ConfigDict, what: str) -> None:
    """Raises if a run or checkpoint was not trained with the given config.

    Args:
      config: What the run's config.json says, or a file that the command line names.
      trained: What the parameters were trained with.
      what: Names the parameters.

    Raises:
      InputError: The two have other processes or predictions, or one of them alone has learned variances.
    """
    ours, theirs = dict(config_lib.fields(config)), dict(config_lib.fields(trained))
    names = [
        name
        for name in config_lib.differing(config, trained)
        if config_lib.group_of(name) == "process"
        # Fixed variances are not trained: any will do.
        and (name != "process.variance" or "learned" in (ours[name], theirs[name]))
    ]
    if names:
        differences = "; ".join(f"{n} is {theirs[n]!r}, not {ours[n]!r}" for n in names)
        raise InputError(
            f"{what} was trained with another process than the config says: {differences}; leave --config out, or give "
            "the run's own"
        )


def describe_ignored_fields(
    file: ConfigDict, config: ConfigDict, assignments: Sequence[tuple[str, str]]
) -> str | None:
    """Returns one line about a config file's values that the run's own stand in for, or None.

    Not about fields that the command line sets, nor about what a resume may change of the training and the data,
    its length, intervals and folders: no other mode depends on them.

    Args:
      file: Config of the file that the command names.
      config: What `load_config` returned.
      assignments: What the command line sets.
    """
    told = {
        name
        for name, field in config_lib.FIELDS.items()
        if field.changeable != "on_resume" or config_lib.group_of(name) not in ("train", "data")
    } - {name for name, _ in assignments}
    told -= config_lib.left_open(file)
    names = [name for name in config_lib.differing(file, config) if name in told]
    if not names:
        return None
    return (
        f"note: --config differs from the run in {', '.join(names)}; the run's own values are used "
        f"(--config.FIELD=VALUE may set {', '.join(config_lib.settable_groups())})"
    )
