"""The page from the folders of runs: one HTML file, which loads nothing else."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import diffusion_jax
from diffusion_jax.errors import InputError
from diffusion_jax.lifecycle.ownership import owned_write
from diffusion_jax.report import charts
from diffusion_jax.report.album import Album
from diffusion_jax.report.run_folder import RunFolder
from diffusion_jax.report.sections.inputs import Inputs, text
from diffusion_jax.report.sections.registry import SECTIONS

NAME = "report.html"


def write_page(workdir: Path, others: Sequence[Path] = (), *, paper: bool = False) -> Path:
    """Writes report.html of a run, beside which others are set; returns its path.

    Args:
      workdir: Folder of the run.
      others: Folders of the others.
      paper: Whether it has the figures and tables of Ho et al. (2020).
    """
    path = workdir / NAME
    page = render(_folders([workdir, *others]), paper=paper)
    with owned_write(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return path


def runs_beside(folders: Sequence[str] | None) -> list[Path]:
    """Returns the folders of the field `report.runs`.

    Raises:
      InputError: One of them holds no run.
    """
    others = [Path(folder).expanduser() for folder in folders or ()]
    for folder in others:
        if not any((folder / name).is_file() for name in ("config.json", "metrics.jsonl")):
            raise InputError(
                f"report.runs: no run in {folder} (there is neither config.json nor metrics.jsonl)"
            )
    return others


def render(runs: Sequence[RunFolder], *, paper: bool = False) -> str:
    """Returns the page of the first run, beside which the others are set."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    inputs = Inputs(runs[0], runs[1:], Album(), paper)
    environment = Environment(
        loader=PackageLoader(__package__ or ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        run=runs[0],
        summary=_summary(runs[0]),
        sections=[(section, section.make(inputs)) for section in SECTIONS],
        chart=charts,
        version=diffusion_jax.__version__,
        written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _summary(run: RunFolder) -> str:
    """Returns the line below the heading: what was trained on what, how far."""
    fields, trained = run.fields, run.result("train")
    parts = (
        [f"{text(fields.get('model.name'))} on {text(fields.get('data.name'))}"] if fields else []
    )
    if isinstance(parameters := trained.get("parameters"), int):
        parts.append(f"{parameters:,} parameters")
    if run.rows:
        parts.append(f"step {run.rows[-1]['step']:,}")
    return ", ".join(parts)


def _folders(paths: Sequence[Path]) -> list[RunFolder]:
    """Returns the folders, each once, by their own names, or by their paths where these are the same."""
    unique = list({path.resolve(): path for path in paths}.values())
    names = [path.resolve().name for path in unique]
    return [
        RunFolder(path, name if names.count(name) == 1 else str(path))
        for path, name in zip(unique, names, strict=True)
    ]
