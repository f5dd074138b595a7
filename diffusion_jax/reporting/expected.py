"""Curves that a recipe's runs are expected to follow, with a band: read, found for a run, compared with its rows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from diffusion_jax import recipes
from diffusion_jax.errors import reason
from diffusion_jax.reading import json_text
from diffusion_jax.reading.regular import read_regular

PATIENCE = 5  # Rows in a row outside of the band, before it is said that a run left it.
_COLUMNS = ("step", "low", "expected", "high")


class Band(NamedTuple):
    """What one metric is expected to be, by step; log-linear in the logarithm of the step between the points.

    Attributes:
      step: Steps, ascending.
      low: Lower edge of the band.
      expected: The expected value, smoothed in log steps.
      high: Upper edge.
    """

    step: Float[np.ndarray, " n"]
    low: Float[np.ndarray, " n"]
    expected: Float[np.ndarray, " n"]
    high: Float[np.ndarray, " n"]

    def at(self, steps: Float[np.ndarray, " k"]) -> Float[np.ndarray, "3 k"]:
        """Returns low, expected and high at some steps, NaN where the band says nothing."""
        x, points = np.log(steps), np.log(self.step)
        return np.exp(
            [np.interp(x, points, np.log(y), np.nan, np.nan) for y in self[1:]], dtype=np.float64
        )


class Expected(NamedTuple):
    """The curves of a recipe.

    Attributes:
      recipe: Its name.
      runs: Number of runs that they were measured in.
      log_every: Steps that each of their rows is a mean of.
      bands: The band of each metric of metrics.jsonl.
    """

    recipe: str
    runs: int
    log_every: int
    bands: Mapping[str, Band]


def find(config_hash: str) -> Expected | None:
    """Returns the curves of the recipe that has this hash; None if no recipe with curves has it.

    Args:
      config_hash: `config.recipe_hash` of the run's config: a band holds for any seed.
    """
    for path in recipes.curves():
        try:
            content = json_text.parse_object(read_regular(path))
            if content["config_hash"] == config_hash:
                return _parse(path.stem, content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            warnings.warn(
                f"{path} is damaged ({reason(error)}), so its expected curve is not drawn; install diffusion_jax anew, "
                "or make the file again with benchmarks/recipe_curves.py",
                stacklevel=1,
            )
    return None


def _parse(recipe: str, content: dict[str, Any]) -> Expected:
    bands = {name: _band(values) for name, values in content["bands"].items()}
    log_every = content["log_every"]
    if type(log_every) is not int or log_every < 1:
        raise ValueError(f"log_every is {log_every!r}")
    return Expected(recipe, len(content["seeds"]), log_every, bands)


def _band(values: dict[str, Any]) -> Band:
    columns = [np.asarray(values[name], np.float64) for name in _COLUMNS]
    step, low, expected, high = columns
    if step.ndim != 1 or step.size < 2 or any(c.shape != step.shape for c in columns):
        raise ValueError("columns of different lengths")
    if not (step[0] > 0 and np.all(np.diff(step) > 0)):
        raise ValueError("steps that do not ascend")
    if not np.all((low > 0) & (low <= expected) & (expected <= high)):
        raise ValueError("a band that does not hold its own curve")
    return Band(*columns)


class Watch:
    """Follows the rows of a run, and says once that the loss has left the band.

    The band is that of means over `log_every` steps. Rows of fewer steps are averaged until they have as many; one of
    more steps is compared with the mean of the band over them.

    Args:
      expected: The recipe's curves.
    """

    def __init__(self, expected: Expected) -> None:
        self._expected, self._read, self._step = expected, 0, 0
        self._total, self._steps = 0.0, 0
        self._outside, self._said = 0, False

    def read(self, rows: Sequence[Mapping[str, Any]]) -> str | None:
        """Reads the rows that are new; returns the line to print if the loss has now left the band.

        Args:
          rows: All rows so far.
        """
        new, self._read = rows[self._read :], len(rows)
        return next(filter(None, map(self._read_row, new)), None)

    def _read_row(self, row: Mapping[str, Any]) -> str | None:
        loss, step, band = row.get("loss"), row["step"], self._expected.bands.get("loss")
        if loss is None or band is None or step <= self._step or self._said:
            return None
        self._total += loss * (step - self._step)
        self._steps += step - self._step
        self._step = step
        if self._steps < self._expected.log_every:
            return None
        mean, first = self._total / self._steps, step - self._steps + self._expected.log_every
        low, _, high = band.at(np.linspace(first, step, 1 + (first < step) * 8)).mean(axis=1)
        self._total, self._steps = 0.0, 0
        # NaN edges, where the band says nothing, hold any loss.
        self._outside = self._outside + 1 if mean < low or mean > high else 0
        if self._outside < PATIENCE:
            return None
        self._said = True
        return (
            f"warning: step {step}: the loss {mean:.4g} is outside of the band {low:.4g} to {high:.4g} that runs of "
            f"the recipe {self._expected.recipe} keep to, {PATIENCE} rows in a row; loss.png shows both"
        )
