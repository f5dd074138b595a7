"""Rows of metrics.jsonl, each written with a checksum that is verified when it is read."""

from __future__ import annotations

import bisect
import contextlib
import json
import math
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax.reading import json_text
from diffusion_jax.reading.regular import read_regular
from diffusion_jax.writing.atomic import atomic_write

DAMAGED = "metrics.damaged.jsonl"
CHECKSUM = "crc"  # CRC-32 of a row's other JSON; rows of older versions have none.
NAMED = 5

Row = dict[str, Any]


class Line(NamedTuple):
    """A sound row and the bytes of its line."""

    written: bytes
    row: Row


def line_of(row: Row) -> str:
    """Formats a row as a line."""
    return json.dumps({**row, CHECKSUM: _checksum(row)}) + "\n"


def read_rows(path: Path) -> list[Row]:
    """Reads metrics.jsonl, without damaged rows and without a last line that a kill truncated.

    Raises:
      OSError: The file cannot be read.
    """
    return read_sound(path)[0]


def read_sound(path: Path) -> tuple[list[Row], list[int]]:
    """Reads metrics.jsonl like `read_rows`; returns the numbers of the damaged lines too, from 1.

    Raises:
      OSError: The file cannot be read.
    """
    sound, damaged = _sort_out(path)
    return [row for _, row in sound], [number for number, _ in damaged]


def go_on_from(path: Path, step: int) -> tuple[list[Row], list[str]]:
    """Truncates metrics.jsonl after a step, and moves damaged rows to a separate file.

    Args:
      path: The file, which need not exist.
      step: Step from which the run resumes; it writes later rows again.

    Returns:
      The remaining rows, and messages about the others.

    Raises:
      OSError: A file cannot be read or written.
    """
    sound, damaged = _sort_out(path)
    kept = [line for line in sound if line.row["step"] <= step]
    said = []
    if damaged:
        aside = path.with_name(DAMAGED)
        with aside.open("ab") as file:
            file.writelines(line + b"\n" for _, line in damaged)
            file.flush()
            os.fsync(file.fileno())
        numbers = [number for number, _ in damaged]
        shown = ", ".join(map(str, numbers[:NAMED])) + (", ..." if len(numbers) > NAMED else "")
        said.append(
            f"warning: {path} is damaged in {len(numbers)} of its lines ({shown}); "
            f"moved to {aside}, the other rows are kept"
        )
    if later := [line.row["step"] for line in sound[len(kept) :]]:
        steps = f"step {later[0]}" if later[0] == later[-1] else f"steps {later[0]} to {later[-1]}"
        said.append(
            f"note: {len(later)} rows of {path} past step {step} ({steps}) are removed; the run writes them again"
        )
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(b"".join(line.written + b"\n" for line in kept))
    return [line.row for line in kept], said


def _sort_out(path: Path) -> tuple[list[Line], list[tuple[int, bytes]]]:
    """Returns the sound rows with their lines, and the damaged lines with their numbers, from 1."""
    content = read_regular(path) if path.exists() else b""
    lines = content.split(b"\n")
    cut_short = lines.pop()
    sound, damaged = {}, {}
    for number, line in enumerate(lines, 1):
        try:
            sound[number] = Line(line, _row(line))
        except ValueError:
            damaged[number] = line
    with contextlib.suppress(ValueError):  # A line truncated by a kill was never a row.
        sound[len(lines) + 1] = Line(cut_short, _row(cut_short))
    # Lines may be swapped, and a step without a checksum may have a wrong digit: steps must be in order.
    ordered = _in_order({number: line.row["step"] for number, line in sound.items()})
    for number in sound.keys() - ordered:
        damaged[number] = sound.pop(number).written
    return [sound[number] for number in sorted(sound)], sorted(damaged.items())


def _row(line: bytes) -> Row:
    """Parses a row from `line_of` or an older version; raises ValueError for anything else."""
    row = json_text.parse_object(line, finite=False)
    if CHECKSUM in row and row.pop(CHECKSUM) != _checksum(row):
        raise ValueError("its checksum is wrong")
    step = row.get("step")
    if type(step) is not int or not 0 <= step < 2**63:
        raise ValueError(f"its step is {step!r}")
    return {name: _number(name, value) for name, value in row.items()}


def _number(name: str, value: object) -> int | float | None:
    """Returns a value of a row; None for a number that is not finite, which older versions wrote as NaN."""
    if value is not None and type(value) not in (int, float):
        raise ValueError(f"{name} is {value!r}")
    assert value is None or isinstance(value, int | float)
    try:
        return value if value is not None and math.isfinite(value) else None
    except OverflowError as error:
        raise ValueError(f"{name} is an integer that no float can hold") from error


def _checksum(row: Row) -> int:
    return zlib.crc32(json.dumps(row).encode())


def _in_order(steps: dict[int, int]) -> set[int]:
    """Returns the keys of the longest non-decreasing subsequence of the steps."""
    ends: list[int] = []  # For each length, the smallest last step of a subsequence,
    keys: list[int] = []  # its key,
    before: dict[int, int | None] = {}  # and the key before each.
    for key, step in steps.items():
        place = bisect.bisect_right(ends, step)
        ends[place : place + 1], keys[place : place + 1] = [step], [key]
        before[key] = keys[place - 1] if place else None
    longest: set[int] = set()
    key = keys[-1] if keys else None
    while key is not None:
        longest.add(key)
        key = before[key]
    return longest
