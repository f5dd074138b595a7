"""`--mode=report`: a page of what lies in the folder of a run and of a few images, beside other runs."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
from ml_collections import ConfigDict

from diffusion_jax.commands import report_pictures
from diffusion_jax.commands.job import open_run
from diffusion_jax.errors import InputError, RunError
from diffusion_jax.report.page import runs_beside, write_page


def report(config: ConfigDict, workdir: Path) -> int:
    """Writes report.html from what the other commands have left and a few images, drawn now; returns the exit status.

    Raises:
      InputError: A folder of `report.runs` holds no run.
    """
    others = runs_beside(config.report.runs)
    if config.report.draw:
        _draw(config, workdir)
    if jax.process_index() == 0:
        path = write_page(workdir, others, paper=config.report.paper)
        print(f"report {path} ({path.stat().st_size / 1e6:.1f} MB)", file=sys.stderr)
    return 0


def _draw(config: ConfigDict, workdir: Path) -> None:
    """Draws what the page shows of a checkpoint and the data; where these are gone, the page does without."""

    def say(text: str) -> None:
        if jax.process_index() == 0:
            print(f"note: {text}", file=sys.stderr)

    try:
        run, mesh = open_run(config, workdir)
        report_pictures.draw_reverse(run, mesh, workdir)
    except (InputError, RunError) as error:
        return say(f"no images are drawn for the page: {error}")
    try:
        report_pictures.find_nearest(run, workdir, say)
    except (InputError, RunError) as error:
        say(f"no nearest training images are found for the page: {error}")
