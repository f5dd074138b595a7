"""What a section is made of, and how results are written out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.report.album import Album
from diffusion_jax.report.run_folder import RunFolder


class Inputs(NamedTuple):
    """The run of the page, those that it is compared with, its pictures, and whether the paper's are among them."""

    run: RunFolder
    others: Sequence[RunFolder]
    album: Album
    paper: bool = False


class Figure(NamedTuple):
    """A measured value and its standard error; None: not known or not finite."""

    value: float | None
    stderr: float | None

    def __str__(self) -> str:
        if self.value is None:
            return "not finite"
        return f"{self.value:.4g}" + ("" if self.stderr is None else f" ± {self.stderr:.2g}")


def part(value: Any) -> Mapping[str, Any]:
    """Returns a part of a result that has parts of its own; empty for anything else, such as one that is missing."""
    return value if isinstance(value, Mapping) else {}


def entries(value: Any) -> Sequence[Any]:
    """Returns a list of a result; empty for anything else."""
    return value if isinstance(value, list) else []


def files(record: Mapping[str, Any], ending: str) -> list[str]:
    """Returns the files of a result whose names end like this, below results/."""
    named = [file for file in entries(record.get("files")) if isinstance(file, str)]
    return [file for file in named if file.endswith(ending)]


def of_numbers(arrays: Mapping[str, np.ndarray], *names: str) -> bool:
    """Whether all of these arrays are there, and hold numbers."""
    return all(name in arrays and arrays[name].dtype.kind in "iuf" for name in names)


def number(value: Any) -> float | None:
    """Returns a finite number; None for anything else."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if known and math.isfinite(value) else None


def figures(name: str, record: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """Yields the figures of a result by name: its own value, or those of its parts, such as precision and recall."""
    if "value" in record:
        yield name, Figure(number(record["value"]), number(record.get("stderr")))
    for part, inner in record.items():
        if isinstance(inner, Mapping) and "value" in inner:
            yield f"{name}: {part}", Figure(number(inner["value"]), number(inner.get("stderr")))


def measured(run: RunFolder) -> dict[str, dict[str, Any]]:
    """Returns the results of results/evaluate.json by metric, the latest of each."""
    found = run.result("evaluate").items()
    return {name: record for name, record in found if isinstance(record, dict)}


def text(value: Any) -> str:
    """Returns a value of a config or result as a table has it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else "not finite"
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text(inner)}" for name, inner in value.items())
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)
