"""Samples beside the training images that are nearest to them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from diffusion_jax.report import drawn
from diffusion_jax.report.blocks import Block, Note
from diffusion_jax.report.measuring import download, features
from diffusion_jax.report.sections.inputs import (
    Figure,
    Inputs,
    files,
    measured,
    number,
    of_numbers,
    text,
)
from diffusion_jax.reporting import pictures


def neighbors(inputs: Inputs) -> list[Block]:
    """Returns the pictures of the metric nearest, one for each kind of features."""
    run, blocks = inputs.run, list[Block]()
    for name, record in measured(run).items():
        found = files(record, "nearest.png")
        if not name.startswith("nearest") or not found:
            continue
        share = Figure(number(record.get("value")), number(record.get("stderr")))
        caption = (
            f"Each row: a sample, then the training images nearest to it, by {name}. "
            f"{share} of {text(record.get('num_images'))} samples are farther from the training images than these "
            f"are from each other; {text(record.get('copies'))} are near copies"
        )
        path = run.path / "results" / found[0]
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
    if not _fit(found):
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


def _fit(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether there are images and, for each, training images of its shape and their distances."""
    if not of_numbers(arrays, "images", "neighbors", "rms"):
        return False
    images, others, rms = (arrays[name] for name in ("images", "neighbors", "rms"))
    return (
        images.dtype == others.dtype == np.uint8
        and images.ndim == 4
        and images.size > 0
        and images.shape[-1] in (1, 3)
        and rms.ndim == 2
        and rms.size > 0
        and others.shape == (*rms.shape, *images.shape[1:])
        and len(rms) == len(images)
    )
