"""Samples over the training, all drawn from the same noise."""

from __future__ import annotations

import re
from pathlib import Path

from diffusion_jax.report.blocks import Block, Frame, Note, Picture, Slider
from diffusion_jax.report.run_folder import RunFolder
from diffusion_jax.report.sections.inputs import Inputs

SHOWN = 8


def samples(inputs: Inputs) -> list[Block]:
    """Returns a slider over the grids of the training."""
    run, album = inputs.run, inputs.album
    found = grids(run)
    if not found:
        return [_missing(run)]
    blocks, frames = list[Block](), []
    for step in evenly(list(found), SHOWN):
        alt = f"Grid of samples of {run.name} after step {step:,}"
        picture = album.file(found[step], alt)
        if isinstance(picture, Picture):
            frames.append(Frame(f"step {step:,}", [picture]))
        else:
            blocks.append(picture)
    if len(found) > SHOWN:
        blocks.append(Note(f"{SHOWN} of {len(found)} grids are shown, evenly over the training."))
    if len(frames) == 1:
        again = run.training("train.sample_every=200", "train.num_steps=MORE")
        blocks.append(Note("Only one grid yet: a longer training draws others on its way.", again))
    if frames:
        blocks.insert(0, Slider("training", "Step of the training", frames, len(frames) - 1))
    return blocks


def grids(run: RunFolder) -> dict[int, Path]:
    """Returns the grids that the training has drawn, by step."""
    names = {path: re.fullmatch(r"grid-(\d+)\.png", path.name) for path in _files(run)}
    return dict(sorted((int(match[1]), path) for path, match in names.items() if match))


def evenly(values: list[int], most: int) -> list[int]:
    """Returns at most so many of the values, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def _files(run: RunFolder) -> list[Path]:
    return sorted((run.path / "samples").glob("*.png"))


def _missing(run: RunFolder) -> Note:
    if run.result("train"):
        return Note("No grid of samples yet: draw one.", run.command("sample"))
    return Note(
        "No grid of samples yet: the training draws one at its end, and on the way where it is asked to.",
        run.training("train.sample_every=200"),
    )
