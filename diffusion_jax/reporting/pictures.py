"""Pictures of samples and runs: grids, strips of the reverse process, the loss curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int, UInt8

from diffusion_jax.lifecycle.ownership import owned_write
from diffusion_jax.reporting import classes as class_words
from diffusion_jax.reporting.figures import PREFIX, figure_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from diffusion_jax.reporting.expected import Expected

MARGIN = 2
LABEL, GAP = 64, 18  # Room for text beside a row, and above one.
LONGEST = 24  # Characters of a text beside a row.
HELD_OUT = "eval_loss"
# Blues, so that only the held-out loss is red.
QUARTERS = {
    1: {"color": "#9ecae1", "label": "t in the first quarter (least noise)"},
    2: {"color": "#6baed6", "label": "second"},
    3: {"color": "#3182bd", "label": "third"},
    4: {"color": "#08519c", "label": "last (most noise)"},
}
SMALLEST_SIDE = 56  # Tiny images are magnified, by repeated pixels, to about this size.


def grid(
    images: UInt8[np.ndarray, "n h w c"], columns: int | None = None
) -> UInt8[np.ndarray, "gh gw c"]:
    """Arranges images in a grid on white, as square as possible (or with `columns` columns)."""
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    cell = (height + MARGIN, width + MARGIN)
    canvas = np.full((rows * cell[0] + MARGIN, columns * cell[1] + MARGIN, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = (MARGIN + (i // columns) * cell[0], MARGIN + (i % columns) * cell[1])
        canvas[top : top + height, left : left + width] = image
    return canvas


def grid_by_class(
    images: UInt8[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"] | None,
    class_names: Sequence[str] | None = None,
) -> UInt8[np.ndarray, "gh gw c"]:
    """Arranges images like `grid`, but with one row per class if there are several classes with several images.

    Args:
      images: The images.
      labels: Class of each image; None: no classes.
      class_names: Names to write beside the rows with the class numbers; empty: numbers only; None: neither.
    """
    classes, counts = np.unique(labels if labels is not None else [], return_counts=True)
    if len(classes) < 2 or counts.max() < 2:
        return grid(images)
    rows = np.full((len(classes), counts.max(), *images.shape[1:]), 255, np.uint8)
    for row, label in zip(rows, classes, strict=True):
        of_class = images[labels == label]
        row[: len(of_class)] = of_class
    picture = grid(rows.reshape(-1, *images.shape[1:]), columns=rows.shape[1])
    if class_names is None:
        return picture
    return _named_rows(picture, class_labels(classes.tolist(), class_names), 0)


def class_labels(numbers: Sequence[int], names: Sequence[str]) -> list[str]:
    """Returns classes as rows of pictures call them, such as "3: cat"; see `classes.label`."""
    return [class_words.label(number, names, LONGEST) for number in numbers]


def magnified(images: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n mh mw c"]:
    """Repeats the pixels of tiny images to make them visible."""
    factor = max(1, round(SMALLEST_SIDE / min(images.shape[1:3])))
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def strip(
    frames_x_t: UInt8[np.ndarray, "f n h w c"],
    frames_x0: UInt8[np.ndarray, "f n h w c"],
    names: Sequence[str] = (),
) -> UInt8[np.ndarray, "gh gw c"]:
    """Shows the reverse process in two rows per image, x_t above x0_hat, with noise on the left, and names beside."""
    num_frames, n = frames_x_t.shape[:2]
    rows = np.stack([frames_x_t, frames_x0]).transpose(2, 0, 1, 3, 4, 5)
    picture = grid(magnified(rows.reshape(n * 2 * num_frames, *rows.shape[3:])), columns=num_frames)
    return _named_rows(picture, names, 0) if names else picture


def progressive(
    frames_x0: UInt8[np.ndarray, "f n h w c"], names: Sequence[str] = ()
) -> UInt8[np.ndarray, "gh gw c"]:
    """Shows progressive generation (Ho et al., 2020, Figure 6): a row of x0_hat per image, with noise on the left."""
    num_frames, n = frames_x0.shape[:2]
    rows = frames_x0.swapaxes(0, 1).reshape(n * num_frames, *frames_x0.shape[2:])
    picture = grid(magnified(rows), columns=num_frames)
    return _named_rows(picture, names, 0) if names else picture


def shared(
    x_t: UInt8[np.ndarray, "i t h w c"],
    x0_hat: UInt8[np.ndarray, "i t h w c"],
    samples: UInt8[np.ndarray, "i t k h w c"],
    times: Sequence[float],
) -> UInt8[np.ndarray, "gh gw c"]:
    """Shows the common features of samples from the same x_t (Ho et al., 2020, Figure 7).

    There is one block per image with one row per time: x_t, the clean image predicted from it, and k samples from it.
    """
    num_images, num_times, k = samples.shape[:3]

    def block(images: UInt8[np.ndarray, "t k h w c"], left: int) -> UInt8[np.ndarray, "gh gw c"]:
        rows = grid(magnified(images.reshape(-1, *images.shape[2:])), columns=images.shape[1])
        return np.pad(rows, ((GAP, 0), (left, 0), (0, 0)), constant_values=255)

    pairs = np.stack([x_t, x0_hat], axis=2)
    blocks = [
        np.concatenate([block(pairs[i], LABEL), block(samples[i], GAP)], axis=1)
        for i in range(num_images)
    ]
    height, width = blocks[0].shape[:2]
    row = (height - GAP - MARGIN) // num_times
    column = (width - LABEL - GAP - 2 * MARGIN) // (2 + k)
    texts = [
        (MARGIN, i * height + GAP + r * row + row // 2, f"t = {time:.4g}")
        for i in range(num_images)
        for r, time in enumerate(times)
    ]
    for left, heading in ((0, "x_t"), (column, "x0_hat"), (2 * column + GAP, "samples")):
        texts.append((LABEL + MARGIN + left, GAP // 2, heading))
    return _with_texts(np.concatenate(blocks), texts)


def interpolation(
    given: UInt8[np.ndarray, "p 2 h w c"],
    between: UInt8[np.ndarray, "p r k h w c"],
    names: Sequence[str],
) -> UInt8[np.ndarray, "gh gw c"]:
    """Shows interpolations of two images (Ho et al., 2020, Figure 8): one block per pair, one named row per method.

    A row has the first image, the interpolations (including reconstructions of both), and the second image.
    """
    num_pairs, num_rows, k = between.shape[:3]
    ends = given[:, None, :].repeat(num_rows, 1)
    rows = np.concatenate([ends[:, :, :1], between, ends[:, :, 1:]], axis=2)
    blocks = [
        np.pad(
            grid(magnified(images.reshape(-1, *images.shape[2:])), columns=k + 2),
            ((0, GAP), (LABEL, 0), (0, 0)),
            constant_values=255,
        )
        for images in rows
    ]
    height = blocks[0].shape[0]
    row = (height - GAP - MARGIN) // num_rows
    texts = [
        (MARGIN, i * height + r * row + row // 2, name)
        for i in range(num_pairs)
        for r, name in enumerate(names)
    ]
    return _with_texts(np.concatenate(blocks), texts)


def edits(
    rows: UInt8[np.ndarray, "r n h w c"], names: Sequence[str]
) -> UInt8[np.ndarray, "gh gw c"]:
    """Shows edited images: one column per image, with named rows for the input, the kept part and the results."""
    images = grid(magnified(rows.reshape(-1, *rows.shape[2:])), columns=rows.shape[1])
    return _named_rows(images, names, LABEL)


def _named_rows(
    picture: UInt8[np.ndarray, "h w c"], names: Sequence[str], least: int
) -> UInt8[np.ndarray, "h gw c"]:
    """Writes a name on the left of each row of a grid, in a margin of at least that width."""
    names = [_drawable(name) for name in names]
    font, row = _font("".join(names)), (picture.shape[0] - MARGIN) // len(names)
    widest = math.ceil(max(font.getlength(name) for name in names))
    room = ((0, 0), (max(least, widest + 3 * MARGIN), 0), (0, 0))
    texts = [(MARGIN, r * row + row // 2, name) for r, name in enumerate(names)]
    return _with_texts(np.pad(picture, room, constant_values=255), texts)


def _font(text: str) -> Any:
    """Returns a font that covers the text; Pillow's own has only ASCII."""
    from PIL import ImageFont

    if text.isascii():
        return ImageFont.load_default(size=13)
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 12)


def _drawable(text: str) -> str:
    """Returns text whose characters the font has; others, such as Chinese ones, are escaped."""
    if text.isascii():
        return text
    import matplotlib
    from matplotlib.ft2font import FT2Font

    font = FT2Font(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf")
    return "".join(
        c if font.get_char_index(ord(c)) else c.encode("unicode_escape").decode() for c in text
    )


def _with_texts(
    picture: UInt8[np.ndarray, "h w c"], texts: Sequence[tuple[int, int, str]]
) -> UInt8[np.ndarray, "h w c"]:
    """Writes black texts, each starting at x and centered vertically at y."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(picture[:, :, 0] if picture.shape[-1] == 1 else picture)
    canvas, font = ImageDraw.Draw(image), _font("".join(text for _, _, text in texts))
    for x, y, text in texts:
        canvas.text((x, y), text, fill=0, font=font, anchor="lm")
    return np.asarray(image).reshape(picture.shape)


def save_png(path: Path, image: UInt8[np.ndarray, "h w c"]) -> None:
    """Writes one image; a kill leaves either the whole file or none."""
    from PIL import Image

    pixels = image[:, :, 0] if image.shape[-1] == 1 else image
    with owned_write(path) as unfinished:
        Image.fromarray(pixels).save(unfinished, format="PNG")


def save_loss_curve(
    path: Path, rows: Sequence[dict[str, Any]], expected: Expected | None = None
) -> None:
    """Plots the loss, its quarters by noise level and held-out metrics from the rows of metrics.jsonl.

    Metrics other than the held-out loss, such as bits per dimension, have a panel each.

    Args:
      path: The picture to write.
      rows: The rows.
      expected: What the run's recipe expects, drawn as bands behind the curves.
    """
    from matplotlib.figure import Figure

    curves = {
        "loss": {"color": "black", "linewidth": 1.8, "label": "training loss"},
        **{f"loss_q{q}": {**QUARTERS[q], "linewidth": 0.8} for q in QUARTERS},
        HELD_OUT: dict(color="tab:red", marker="o", markersize=4, label="held-out loss (EMA)"),
    }
    points = {
        name: [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        for name in {**curves, **dict.fromkeys(figure_names(rows))}
    }
    measured = [name for name in points if name not in curves and points[name]]
    panels = 1 + len(measured)
    figure = Figure(figsize=(8, 4.5 + 2.2 * (panels - 1)), layout="constrained")
    axes, *more = figure.subplots(
        panels, sharex=True, squeeze=False, height_ratios=[2, *[1] * len(measured)]
    ).flat
    if expected is not None:
        _draw_bands(axes, expected, max([row["step"] for row in rows], default=0))
    for name, style in curves.items():
        if points[name]:
            axes.plot(*zip(*points[name], strict=True), **style)
    axes.set(ylabel="loss", yscale="log")
    if axes.lines:
        axes.legend(fontsize="small", loc="upper right")
    for name, panel in zip(measured, more, strict=True):
        panel.plot(*zip(*points[name], strict=True), color="tab:red", marker=".")
        label = "test bits/dim" if name == "eval_bpd" else name.removeprefix(PREFIX)
        panel.set(ylabel=f"{label} (EMA)")
    for panel in (axes, *more):
        panel.grid(alpha=0.3)
    (axes, *more)[-1].set(xlabel="step")
    with owned_write(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")


def _draw_bands(axes: Axes, expected: Expected, last: int) -> None:
    """Draws what a recipe expects of the training loss in gray, and of the held-out loss in light red."""
    runs = f"{expected.runs} runs" if expected.runs > 1 else "one run"
    styles = {"loss": ("0.55", "training"), HELD_OUT: ("#e8a09a", "held-out")}
    for name, (color, what) in styles.items():
        if name not in expected.bands:
            continue
        step, low, middle, high = (
            column[expected.bands[name].step <= last] for column in expected.bands[name]
        )
        label = f"expected {what} loss ({expected.recipe}, {runs})"
        axes.fill_between(step, low, high, color=color, alpha=0.3, linewidth=0, label=label)
        axes.plot(step, middle, color=color, linewidth=0.8, linestyle="--")
