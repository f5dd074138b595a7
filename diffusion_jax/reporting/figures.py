"""Names of the figures in the rows of metrics.jsonl that were measured, rather than computed by the training step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

PREFIX = "eval_"
_PARTS = ("eval_rate", "eval_distortion")  # Of the bound, whose sum it is.


def figure_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the names in order of appearance, without standard errors and parts of other figures."""
    names = dict.fromkeys(name for row in rows for name in row if name.startswith(PREFIX))
    return [name for name in names if name not in _PARTS and not name.endswith("_stderr")]
