"""The page of a run while and after it is trained: only what lies there, and never at the cost of the training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from diffusion_jax.errors import reason
from diffusion_jax.experiment import sampling
from diffusion_jax.experiment.build import Experiment
from diffusion_jax.report import drawn
from diffusion_jax.samplers.batches import Samples
from diffusion_jax.training.loop import Hook


def page_hook(workdir: Path, beside: Sequence[str] | None, paper: bool, *, every: int) -> Hook:
    """Writes report.html every n steps but the last, which `finish_page` follows.

    Args:
      workdir: Folder of the run.
      beside: The field `report.runs`.
      paper: The field `report.paper`.
      every: Steps between two writings; 0 for none.
    """
    return Hook(lambda state, step: _write(workdir, beside, paper, lambda _: None), every)


def finish_page(
    exp: Experiment,
    workdir: Path,
    beside: Sequence[str] | None,
    paper: bool,
    samples: Samples | None,
    step: int,
    say: Callable[[str], None],
) -> None:
    """Writes report.html of a finished training, with the reverse process of its last pictures.

    Args:
      exp: What was trained.
      workdir: Folder of the run.
      beside: The field `report.runs`.
      paper: The field `report.paper`.
      samples: The images of the last pictures, with frames; None if they could not be drawn.
      step: Number of steps done.
      say: Tells the user where it is.
    """

    def keep() -> None:
        if samples is not None:
            drawn_by = sampling.for_pictures(exp)
            decided_by = sampling.decides_pictures(drawn_by, step, {"ema": True})
            drawn.keep_reverse(workdir, samples, sampling.picture_times(drawn_by), decided_by)

    _write(workdir, beside, paper, say, keep)


def _write(
    workdir: Path,
    beside: Sequence[str] | None,
    paper: bool,
    say: Callable[[str], None],
    before: Callable[[], None] = lambda: None,
) -> None:
    """Writes the page on process 0; whatever prevents it is a warning."""
    if jax.process_index() != 0:
        return
    try:
        from diffusion_jax.report import page

        before()
        path = page.write_page(workdir, page.runs_beside(beside), paper=paper)
        say(f"page of the run {path}")
    except Exception as error:
        warnings.warn(f"the page of the run is not written: {reason(error)}", stacklevel=1)
