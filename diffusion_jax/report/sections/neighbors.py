"""Samples beside the training images that are nearest to them."""

from __future__ import annotations

from diffusion_jax.report.blocks import Block, Note
from diffusion_jax.report.run_folder import RunFolder
from diffusion_jax.report.sections.inputs import Figure, Inputs, measured, number, text

SMALL = 32


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
    return [Note("Nearest training images are not there yet:", command)]


def features(run: RunFolder) -> list[str]:
    """Returns the field for features of small images with classes, which need no network of natural images."""
    shape = (run.result("train").get("data") or {}).get("image_shape") or [SMALL]
    return ["eval.features=classifier"] if run.classes and max(shape) < SMALL else []
