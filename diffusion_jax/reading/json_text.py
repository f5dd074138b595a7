"""Strict JSON parsing: anything that this library does not write raises a `ValueError`."""

from __future__ import annotations

import json
import math
from typing import Any


def parse(text: bytes | str, *, finite: bool = True) -> Any:
    """Parses JSON text.

    Args:
      text: The text, in UTF-8.
      finite: Whether to refuse NaN and infinite numbers, including those that overflow a float.

    Raises:
      ValueError: The text is not JSON, is nested too deeply, repeats a key, or has a number that is not finite.
    """
    text = text.decode() if isinstance(text, bytes) else text
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse if finite else None,
            parse_float=_finite if finite else None,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_object(text: bytes | str, *, finite: bool = True) -> dict[str, Any]:
    """Parses JSON text that must be an object; see `parse`."""
    value = parse(text, finite=finite)
    if not isinstance(value, dict):
        raise ValueError(f"it holds {_kind(value)}, not an object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the key {twice!r} twice")
    return made


def _refuse(name: str) -> None:
    raise ValueError(f"it has {name} where a number must be finite")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        _refuse(text)
    return value


def _kind(value: object) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return {list: "a list", str: "a text"}.get(type(value), "a number")
