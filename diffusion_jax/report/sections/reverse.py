"""The reverse process: x_t, and the clean image predicted from it, with a slider over t."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from diffusion_jax.report import drawn
from diffusion_jax.report.blocks import Block, Frame, Note, Picture, Slider
from diffusion_jax.report.run_folder import RunFolder
from diffusion_jax.report.sections.inputs import Inputs
from diffusion_jax.report.sections.samples import evenly
from diffusion_jax.reporting import pictures

KEPT = drawn.FOLDER / "reverse.npz"  # x_t, x0_hat (both: moments, images, h, w, c) and t.
MOST_FRAMES, MOST_IMAGES, PRINTED = 31, 8, 6
MOST_SIDE = 64
BUDGET = 1_200_000  # Bytes of all frames.

Frames = UInt8[np.ndarray, "f n h w c"]


class Reverse(NamedTuple):
    """Moments of the reverse process of some images.

    Attributes:
      times: Time of each.
      frames: Name -> the images at each: x_t, if it was kept, and the prediction.
      source: File that they are from.
    """

    times: Float[np.ndarray, " f"]
    frames: dict[str, Frames]
    source: Path


def reverse(inputs: Inputs) -> list[Block]:
    """Returns a slider over t, or the strip of the training if no moments were kept."""
    run = inputs.run
    draw = run.command("report") if run.has_checkpoint else run.training()
    found = read_reverse(run)
    if found is None:
        return [
            *_strip(inputs),
            Note("The moments of the reverse process are not there yet:", draw),
        ]
    chosen = evenly(list(range(len(found.times))), MOST_FRAMES)
    printed = {*evenly(chosen, PRINTED)}
    limit = BUDGET // (len(chosen) * len(found.frames))
    frames, notes = [], list[Note]()
    for i in chosen:
        time = found.times[i]  # A chain's data lie one step before its first.
        label = "the end" if i == len(found.times) - 1 and time < 0 else f"t = {time:.4g}"
        made = [
            inputs.album.array(_row(images[i]), f"{what}, at {label}", what, limit=limit)
            for what, images in found.frames.items()
        ]
        shown = [picture for picture in made if isinstance(picture, Picture)]
        notes += [note for note in made if isinstance(note, Note)]
        if shown:
            frames.append(Frame(label, shown, i in printed))
    if "x_t" not in found.frames:
        name = found.source.relative_to(run.path)
        notes.append(Note(f"{name} has the predictions alone, not x_t."))
    slider = Slider("reverse", "Time, from noise to data", frames, len(frames) * 3 // 4)
    return [*([slider] if frames else []), *notes[:1]]


def read_reverse(run: RunFolder) -> Reverse | None:
    """Returns the moments that were kept: those for the page, or else those of the newest job of samples."""
    kept = run.path / KEPT
    for path in (kept, *reversed(run.by_age("samples/*/progressive.npz"))):
        arrays = run.arrays(path)
        if path != kept:  # Image by image, under other names.
            names = {"frames": "x0_hat", "frames_x_t": "x_t"}
            frames = {
                new: arrays[old].swapaxes(0, 1)
                for old, new in names.items()
                if old in arrays and arrays[old].ndim == 5
            }
            arrays = {"t": arrays.get("times", np.empty(0)), **frames}
        known = {
            words: arrays[name]
            for name, words in (("x_t", "x_t"), ("x0_hat", "x̂_0, predicted from x_t"))
            if name in arrays
        }
        if known and all(_fits(images, arrays.get("t")) for images in known.values()):
            return Reverse(np.asarray(arrays["t"], np.float64), known, path)
    return None


def _fits(images: np.ndarray, times: np.ndarray | None) -> bool:
    return (
        times is not None
        and times.ndim == 1
        and times.dtype.kind in "iuf"
        and images.dtype == np.uint8
        and images.ndim == 5
        and images.size > 0
        and images.shape[0] == len(times)
        and images.shape[-1] in (1, 3)
        and max(images.shape[2:4]) <= MOST_SIDE * min(images.shape[2:4])
    )


def _row(images: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "gh gw c"]:
    side = max(images.shape[1:3])
    skip = -(-side // MOST_SIDE)
    count = MOST_IMAGES if side <= 32 else MOST_IMAGES // 2
    small = images[:count, : images.shape[1] // skip * skip, : images.shape[2] // skip * skip]
    n, height, width, channels = small.shape
    blocks = small.reshape(n, height // skip, skip, width // skip, skip, channels)
    reduced = blocks.mean((2, 4)).round().astype(np.uint8)
    return pictures.grid(pictures.magnified(reduced), columns=n)


def _strip(inputs: Inputs) -> list[Block]:
    strips = sorted((inputs.run.path / "samples").glob("strip-*.png"))
    if not strips:
        return []
    alt = "Rows of x_t, each above the clean images predicted from it, from noise to data"
    return [inputs.album.file(strips[-1], alt, "x_t above x̂_0, from noise to data")]
