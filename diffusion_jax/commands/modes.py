"""The modes of the command: an entry of this table and a module of the mode's name, imported when the mode is run."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

# Fields that say which parameters of a run a mode works with.
_PARAMETERS = ("sample.ema", "sample.ema_length", "sample.step")
# Groups and fields of every mode that draws images.
_DRAWING = (
    *("sampler", "mesh", *_PARAMETERS),
    *(f"sample.{name}" for name in ("num_images", "batch_size", "seed", "labels")),
)


def _constraint_fields() -> list[str]:
    """Returns the fields of the constraints' options."""
    from diffusion_jax.samplers import CONSTRAINTS  # Not needed to show the modes.

    return [f"edit.{name}" for name in CONSTRAINTS.options]


def _inversion_fields() -> list[str]:
    """Returns the fields of the options that only inverses of samplers have."""
    from diffusion_jax.samplers import SAMPLERS

    return [f"edit.{name}" for rule in SAMPLERS.values() for name in rule.inversion_options]


def _flags_that_fit(workdir: Path) -> str | None:
    """Returns the flags with which a planned training fits; None: it does not."""
    from diffusion_jax.reading import json_text
    from diffusion_jax.reading.regular import read_regular

    try:
        return json_text.parse_object(read_regular(workdir / "results" / "plan.json"))["flags"]
    except (OSError, ValueError, KeyError):  # Another command is writing there.
        return None


def _unless_there(name: str) -> Callable[[Path], str | None]:
    """Returns workdir -> no flags; None if it has a file of that name."""
    return lambda workdir: None if (workdir / name).exists() else ""


def _features(workdir: Path) -> str:
    """Returns the flag with which a run's images are measured without a download, where there is one."""
    from diffusion_jax.report import measuring
    from diffusion_jax.report.run_folder import RunFolder

    return " ".join(f"--config.{field}" for field in measuring.features(RunFolder(workdir)))


def _download(workdir: Path) -> str:
    from diffusion_jax.report import measuring
    from diffusion_jax.report.run_folder import RunFolder

    return measuring.download(RunFolder(workdir))


@dataclasses.dataclass(frozen=True)
class Next:
    """A command that follows from one that is done, with its workdir.

    Attributes:
      mode: Its mode.
      what: What it does, for a person.
      flags: Its flags; a value in capitals is for the user to choose.
      more: Workdir -> further flags; None: there is nothing to run.
      aside: Workdir -> what else a person must know before, to be added to `what`.
    """

    mode: str
    what: str
    flags: str = ""
    more: Callable[[Path], str | None] = lambda _: ""
    aside: Callable[[Path], str] = lambda _: ""


_REPORT = Next("report", "the page of the run, with what is new")


@dataclasses.dataclass(frozen=True)
class Mode:
    """One mode; its module `commands/<name>.py` has a function of its name, (config, workdir, …) -> exit status.

    Attributes:
      name: What --mode calls it.
      help: One line, without a period, of at most 86 columns: it stands in the first page of help.
      always_uses: Groups and fields that decide what it does with a trained run, of those that any mode may set; empty:
        it works on the config of a file, not on a run.
      options: () -> fields of components' options that do so too.
      takes: What else its function takes of the command: flags that are for this mode alone, and `started`.
      same_process: Whether a config file beside the run must have the process that the run was trained with.
      instead_of_run: Fields each of which, if it is set, makes a trained run unnecessary.
      next: What to run after it.
      makes_run: Whether it makes a run, which then has a config.
      module: Name of its module and function, if that is not the mode's: `import` is a keyword.
    """

    name: str
    help: str
    always_uses: tuple[str, ...] = ()
    options: Callable[[], Iterable[str]] = tuple
    takes: tuple[str, ...] = ()
    same_process: bool = False
    instead_of_run: tuple[str, ...] = ()
    next: tuple[Next, ...] = ()
    makes_run: bool = False
    module: str = ""

    @property
    def works_on_run(self) -> bool:
        """Whether its config is that of a trained run."""
        return bool(self.always_uses)

    @property
    def uses(self) -> tuple[str, ...]:
        """Groups and fields that decide something in this mode."""
        return (*self.always_uses, *self.options())

    def decides(self, field: str) -> bool:
        """Whether a field, "group.name", decides something in this mode."""
        return not {field, field.rpartition(".")[0]}.isdisjoint(self.uses)

    def run(self, config: Any, workdir: Path, command: Mapping[str, Any]) -> int:
        """Runs it; returns the exit status.

        Args:
          config: A valid config.
          workdir: Folder of the run.
          command: The command's flags, and when it started.
        """
        name = self.module or self.name
        function = getattr(importlib.import_module(f"{__package__}.{name}"), name)
        return function(config, workdir, **{name: command[name] for name in self.takes})


MODES = {
    mode.name: mode
    for mode in (
        Mode(
            "train",
            "train the config's model; continue the run if the workdir holds one",
            takes=("allow_config_change", "started"),
            next=(
                Next("sample", "images in files"),
                Next("evaluate", "bits/dim of the test images"),
                Next("report", "a page of the run", more=_unless_there("report.html")),
            ),
        ),
        Mode(
            "sample",
            "draw images from a checkpoint of the workdir",
            always_uses=("sampler", "sample", "mesh"),
            next=(
                Next(
                    "evaluate",
                    "such images measured against the data",
                    "--config.eval.metrics=fd,kid",
                    _features,
                    _download,
                ),
                _REPORT,
            ),
        ),
        Mode(
            "inpaint",
            "draw images that keep a part of given ones, or begin with them: config.edit",
            always_uses=(
                *(*_DRAWING, "sample.formats", "edit.images", "edit.keep", "edit.mask"),
                *("edit.start_t", "edit.resamplings", "edit.jump"),
            ),
            options=_constraint_fields,
            next=(Next("inpaint", "other images of the same kind", "--config.sample.seed=NUMBER"),),
        ),
        Mode(
            "interpolate",
            "draw what lies between images: config.edit",
            always_uses=(
                *_DRAWING,
                "edit.images",
                "edit.times",
                "edit.num_between",
                "edit.latents",
            ),
            options=_inversion_fields,
            next=(
                Next("interpolate", "other images of the same kind", "--config.sample.seed=NUMBER"),
            ),
        ),
        Mode(
            "evaluate",
            "measure a checkpoint, its samples or your images (bits/dim, FID, …): config.eval",
            always_uses=(
                *("eval", "sampler", "mesh", *_PARAMETERS),
                *("sample.batch_size", "sample.seed", "sample.labels"),
            ),
            same_process=True,
            instead_of_run=("eval.images", "eval.selfcheck"),
            next=(_REPORT,),
        ),
        Mode(
            "plan",
            "say whether a training fits these devices, or --topology, and how fast it can be",
            takes=("topology", "price"),
            next=(Next("train", "the training", more=_flags_that_fit),),
        ),
        Mode(
            "report",
            "write report.html, a page of what the run has: curves, samples, metrics",
            always_uses=(
                *("report.runs", "report.draw", "report.paper"),
                *("sampler", "mesh", *_PARAMETERS, "sample.seed", "sample.labels"),
            ),
            next=(Next("report", "beside another run", "--config.report.runs=FOLDER"),),
        ),
        Mode(
            "import",
            "make a run of another library's checkpoint (diffusers, ADM, …): --source=PATH",
            takes=("source", "format", "source_settings", "assignments"),
            next=(Next("sample", "images in files"),),
            makes_run=True,
            module="import_checkpoint",
        ),
        Mode(
            "export",
            "write the run as --format=diffusers, single (a file) or stablehlo to --target=FOLDER",
            always_uses=("sampler", "mesh", *_PARAMETERS),
            takes=("format", "target"),
            module="export_checkpoint",
        ),
    )
}


def modes_of_flag(flag: str) -> list[str]:
    """Returns the modes that alone take a flag; none of a flag of all modes."""
    return [mode.name for mode in MODES.values() if flag in mode.takes]
