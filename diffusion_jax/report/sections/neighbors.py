"""Samples beside the training images that are nearest to them."""

from __future__ import annotations

import numpy as np

from diffusion_jax.report import drawn
from diffusion_jax.report.blocks import Block, Note
from diffusion_jax.report.measuring import download, features
from diffusion_jax.report.sections.inputs import Figure, Inputs, measured, number, text
from diffusion_jax.reporting import pictures


def neighbors(inputs: Inputs) -> list[Block]:
    """Returns the pictures of the metric nearest, one for each kind of features."""
    run, blocks = inputs.run, list[Block]()
    for name, record in measured(run).items():
        files = [file for file in record.get("files") or [] if str(file).endswith("nearest.png")]
        if not name.startswith("nearest") or not files:
            continue
        share = Figure(number(record.get("value")), number(record.get("stderr")))
        caption = (
            f"Each row: a sample, then the training images nearest to it, by {name}. "
            f"{share} of {text(record.get('num_images'))} samples are farther from the training images than these "
            f"are from each other; {text(record.get('copies'))} are near copies"
        )
        path = run.path / "results" / str(files[0])
        alt = "Samples, each in a row with its nearest training images"
        blocks.append(inputs.album.file(path, alt, caption))
    if blocks:
        return blocks
    command = run.command("evaluate", "eval.metrics=nearest", *features(run))
    more = download(run)
    if (picture := _in_pixels(inputs)) is not None:
        return [picture, Note(f"How many of more samples are copies, by features{more}:", command)]
    return [Note(f"Nearest training images are not there yet{more}:", command)]


def _in_pixels(inputs: Inputs) -> Block | None:
    """Returns the images drawn for the page beside the training images nearest to them; None if there are none."""
    found = inputs.run.arrays(inputs.run.path / drawn.FOLDER / "nearest.npz")
    if not {"images", "neighbors", "rms"} <= found.keys():
        return None
    rows = np.concatenate([found["images"][:, None], found["neighbors"]], 1)
    picture = pictures.grid(
        pictures.magnified(rows.reshape(-1, *rows.shape[2:])), columns=rows.shape[1]
    )
    step = text(drawn.told(inputs.run.path, "nearest").get("step"))
    caption = (
        f"Each row: an image drawn after step {step}, then the {rows.shape[1] - 1} training images nearest to it in "
        f"pixels, nearest first; the nearest one differs by {found['rms'][:, 0].min():.3g} to "
        f"{found['rms'][:, 0].max():.3g} gray levels (root mean square)"
    )
    alt = "Images, each in a row with the training images nearest to it in pixels"
    return inputs.album.array(picture, alt, caption)
