"""Proof of distances of images: halves of one set are alike, and what is degraded more is farther away."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int64, UInt8

from diffusion_jax import keys
from diffusion_jax.data.split import Batch, Split
from diffusion_jax.metrics.base import MeanStdErr
from diffusion_jax.metrics.feature_set import FeatureSet
from diffusion_jax.metrics.image_metric import ImageMetric, Measured

APART = 3.0  # Standard errors from 0 of halves, and of the top of a ladder from them.
BACK = 2.0  # Standard errors that a level may lie below the one before.
NOISE = (5.0, 10.0, 20.0, 40.0, 80.0)  # Standard deviations; white is 255.
SHARPEST, WIDEST, WIDTHS = 0.5, 1 / 8, 4  # Blur: pixels, part of the shorter side, levels.


@dataclasses.dataclass(frozen=True)
class Degradation:
    """What makes images worse by a known amount.

    Attributes:
      kind: "noise", normal and independent for each value, or "blur" by a normal distribution.
      amount: Standard deviation: of the noise in gray levels, of the blur in pixels.
      seed: Seed of the noise, which depends on it and the image's index alone.
    """

    kind: str
    amount: float
    seed: int = 0

    @property
    def name(self) -> str:
        """Kind and amount, such as "noise 20"."""
        return f"{self.kind} {self.amount:.3g}"

    def __call__(
        self, images: UInt8[np.ndarray, "b h w c"], indices: Int64[np.ndarray, " b"]
    ) -> UInt8[np.ndarray, "b h w c"]:
        """Returns the images degraded, rounded and clipped to 0 to 255."""
        if self.kind == "noise":
            of_each = keys.indexed(keys.stream(self.seed, "self-check noise"), indices)
            noise = keys.image_normal(of_each, images.shape[1:])
            worse = images + self.amount * np.asarray(noise)
        else:
            from scipy.ndimage import gaussian_filter  # Slow to import.

            width = self.amount
            worse = gaussian_filter(images.astype(np.float32), (0, width, width, 0))
        return np.clip(np.rint(worse), 0, 255).astype(np.uint8)

    def of(self, images: Split, indices: Int64[np.ndarray, " n"]) -> Split:
        """Returns some of the images, degraded whenever they are read."""

        def read(rows: Int64[np.ndarray, " b"]) -> Batch:
            chosen = indices[rows]
            batch = images.read(chosen)
            return {"image": self(batch["image"], chosen), "label": batch["label"]}

        return Split(len(indices), images.image_shape, images.class_names, read)


def make_ladders(image_shape: tuple[int, int, int], seed: int = 0) -> list[list[Degradation]]:
    """Returns noise and blur, each from little to much; blur is relative to the size of the images."""
    widest = max(WIDEST * min(image_shape[:2]), 2 * SHARPEST)
    widths = np.geomspace(SHARPEST, widest, WIDTHS)
    return [
        [Degradation("noise", amount, seed) for amount in NOISE],
        [Degradation("blur", float(width)) for width in widths],
    ]


def random_halves(
    num_images: int, seed: int = 0, at_most: int | None = None
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Returns the indices of two random sets of equally many images, ascending, without one in common.

    Args:
      num_images: Number of images to choose from.
      seed: Seed of the choice.
      at_most: Largest number of both together; None: all.
    """
    key = keys.stream(seed, "self-check halves")
    order = np.asarray(jax.random.permutation(key, num_images), np.int64)
    size = min(num_images, at_most or num_images) // 2
    return np.sort(order[:size]), np.sort(order[size : 2 * size])


class Level(NamedTuple):
    """What the metrics say of one level of a ladder; of the halves, `degradation` is None."""

    degradation: Degradation | None
    measured: Mapping[str, Measured]

    @property
    def name(self) -> str:
        """Its name in tables and messages."""
        return "halves" if self.degradation is None else self.degradation.name

    @property
    def figures(self) -> dict[str, MeanStdErr]:
        """All figures by name."""
        return {name: f for m in self.measured.values() for name, f in m.figures.items()}

    def record(self) -> dict[str, Any]:
        """Returns the amount of the degradation and the figures as JSON holds them."""
        amount = {} if self.degradation is None else {"amount": self.degradation.amount}
        figures = {name: m.record() for name, m in self.measured.items()}
        return {**amount, **figures}

    def row(self, figures: Sequence[str]) -> str:
        """Returns its line in a table of these figures, some of which it may not have."""
        own = self.figures
        return table_row(self.name, [_said(*own[name]) if name in own else "" for name in figures])


def table_row(first: str, cells: Sequence[str]) -> str:
    """Returns a line of the table, such as its heading; it can be printed before the others are known."""
    return f"{first:12}{''.join(f'{cell:20}' for cell in cells)}".rstrip()


@dataclasses.dataclass(frozen=True)
class SelfCheck:
    """Figures of halves and of ladders of degradations.

    Attributes:
      distances: Names of the figures that must grow on a ladder.
      unbiased: Names of those that must be 0 of halves.
      halves: One half against the other.
      ladders: The same half, degraded, against the other.
    """

    distances: Sequence[str]
    unbiased: Sequence[str]
    halves: Level
    ladders: Sequence[Sequence[Level]]

    @property
    def failures(self) -> list[str]:
        """What contradicts the metrics, each in words; empty if nothing does."""
        found = []
        for name in self.unbiased:
            value, stderr = self.halves.figures[name]
            if not abs(value) <= APART * stderr:
                found.append(
                    f"{name} of two halves is {_said(value, stderr)}, more than {APART:g} standard errors from 0"
                )
        for ladder, name in itertools.product(self.ladders, self.distances):
            levels = [self.halves, *ladder]
            for one, more in itertools.pairwise(levels):
                if not _rise(one, more, name) >= -BACK:
                    found.append(f"{name} falls from {_at(one, name)} to {_at(more, name)}")
            if not _rise(levels[0], levels[-1], name) >= APART:
                found.append(
                    f"{name} grows from {_at(levels[0], name)} to {_at(levels[-1], name)} only, less than {APART:g} "
                    "standard errors"
                )
        return found

    def record(self) -> dict[str, Any]:
        """Returns all figures as JSON holds them, by the kinds of degradation."""
        by_kind = {
            levels[0].name.partition(" ")[0]: [level.record() for level in levels]
            for levels in self.ladders
        }
        return {
            "halves": self.halves.record(),
            **by_kind,
        }


def _said(value: float, stderr: float) -> str:
    return f"{value:.4g}" + ("" if np.isnan(stderr) else f" ± {stderr:.2g}")


def _at(level: Level, name: str) -> str:
    return f"{_said(*level.figures[name])} ({level.name})"


def _rise(one: Level, more: Level, name: str) -> float:
    """Returns by how many standard errors a figure is larger; NaN if one is not finite."""
    (low, of_low), (high, of_high) = one.figures[name], more.figures[name]
    return (high - low) / max(float(np.hypot(of_low, of_high)), np.finfo(np.float64).tiny)


def self_check(
    one: FeatureSet,
    other: FeatureSet,
    degraded: Sequence[Sequence[tuple[Degradation, FeatureSet]]],
    metrics: Mapping[str, ImageMetric],
    tell: Callable[[Level], object] = lambda level: None,
) -> SelfCheck:
    """Measures one half against the other, as it is and degraded.

    An unbiased distance of the halves must be 0 within 3 standard errors. On each ladder no distance may fall by more
    than 2 standard errors of the difference from a level to the next, and at its end it must be larger than that of the
    halves by 3. Standard errors are taken as those of independent images, though all levels share them: so the check
    is lenient, and a small step may go down, since a distance of halves is not 0 but of the order of its error.

    Args:
      one: Features of one half.
      other: Those of the other half.
      degraded: For each ladder, from little to much: those of the first half, degraded.
      metrics: Metrics by name; those without a reference are passed over, and only distances are taken on ladders.
      tell: Called with each level once it is measured, which takes minutes if there are thousands of features.

    Raises:
      InputError: There are too few images for a metric.
    """
    compared = {name: metric for name, metric in metrics.items() if metric.has_reference}
    distances = {name: metric for name, metric in compared.items() if is_distance(metric)}

    def measured(
        degradation: Degradation | None, images: FeatureSet, by: Mapping[str, ImageMetric]
    ) -> Level:
        level = Level(degradation, {name: m.measure(images, other) for name, m in by.items()})
        tell(level)
        return level

    return SelfCheck(
        [name for metric in distances.values() for name in metric.figures],
        [name for metric in distances.values() if metric.unbiased for name in metric.figures],
        measured(None, one, compared),
        [[measured(*level, distances) for level in ladder] for ladder in degraded],
    )


def is_distance(metric: ImageMetric) -> bool:
    """Whether a metric says how far images are from a reference."""
    return metric.has_reference and not metric.higher_is_better
