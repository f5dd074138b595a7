"""The rows of metrics.jsonl: each is written with its checksum, and read without trust."""

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
CHECKSUM = "crc"  # Of a row's JSON without it; rows of older versions have none.
NAMED = 5

Row = dict[str, Any]


class Line(NamedTuple):
    """A sound row, and the bytes of its line."""

    written: bytes
    row: Row


def line_of(row: Row) -> str:
    """Returns the line that holds a row."""
    return json.dumps({**row, CHECKSUM: _checksum(row)}) + "\n"


def read_rows(path: Path) -> list[Row]:
    """Reads metrics.jsonl; damaged rows, and a last line that a kill cut short, are left out.

    Raises:
      OSError: It cannot be read.
    """
    return [row for _, row in _sort_out(path)[0]]


def go_on_from(path: Path, step: int) -> tuple[list[Row], list[str]]:
    """Leaves the rows up to a step in metrics.jsonl, and puts damaged ones into a file of their own.

    Args:
      path: The file, which need not be there.
      step: Step that a run goes on from: it writes later rows again.

    Returns:
      The rows that are left, and lines that say what is not.

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
            f"note: {path} loses its rows past step {step}: {len(later)} of {steps}; the run writes them again"
        )
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(b"".join(line.written + b"\n" for line in kept))
    return [line.row for line in kept], said


def _sort_out(path: Path) -> tuple[list[Line], list[tuple[int, bytes]]]:
    """Returns the sound rows as they are written, and the damaged lines by their number, from 1."""
    content = read_regular(path) if path.exists() else b""
    lines = content.split(b"\n")
    cut_short = lines.pop()
    sound, damaged = {}, {}
    for number, line in enumerate(lines, 1):
        try:
            sound[number] = Line(line, _row(line))
        except ValueError:
            damaged[number] = line
    with contextlib.suppress(ValueError):  # Else a kill has cut it short: it was never a row.
        sound[len(lines) + 1] = Line(cut_short, _row(cut_short))
    # Lines may have changed places, and without a checksum a step a digit: rows are in the order of their steps.
    ordered = _in_order({number: line.row["step"] for number, line in sound.items()})
    for number in sound.keys() - ordered:
        damaged[number] = sound.pop(number).written
    return [sound[number] for number in sorted(sound)], sorted(damaged.items())


def _row(line: bytes) -> Row:
    """Returns a row that `line_of`, or an older version, may have written; ValueError for anything else."""
    row = json_text.parse_object(line, finite=False)
    if CHECKSUM in row and row.pop(CHECKSUM) != _checksum(row):
        raise ValueError("its checksum is another")
    step = row.get("step")
    if type(step) is not int or not 0 <= step < 2**63:
        raise ValueError(f"its step is {step!r}")
    return {name: _number(name, value) for name, value in row.items()}


def _number(name: str, value: object) -> int | float | None:
    """Returns a value of a row; None for what is not finite, which older versions wrote as NaN."""
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
    """Returns the keys of the longest run of steps none of which is below one before it."""
    ends: list[int] = []  # Of the runs of each length, the smallest last step,
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
