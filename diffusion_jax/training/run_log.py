"""What a run says of itself: progress bar, metrics.jsonl, TensorBoard."""

import bisect
import contextlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from diffusion_jax.errors import RunError, reason
from diffusion_jax.reading import json_text
from diffusion_jax.reading.regular import read_regular

DAMAGED = "metrics.damaged.jsonl"


class RunLog:
    """Writes the metrics of a training run. Only process 0 of a run makes one that writes.

    metrics.jsonl holds one JSON object a logged step. After a resume, rows past the checkpoint are
    dropped: the run writes them again. Damaged ones are moved to metrics.damaged.jsonl.

    Args:
      workdir: Folder of the run.
      start: Step that the run goes on from.
      num_steps: Step that it ends at.
      writes: False on all processes but the first.
    """

    def __init__(self, workdir: Path, start: int, num_steps: int, *, writes: bool = True) -> None:
        from tqdm import tqdm

        self._writes = writes
        self._path = workdir / "metrics.jsonl"
        self._bar = tqdm(
            total=num_steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=not (writes and sys.stderr.isatty()),
        )
        self._rows: list[dict[str, Any]] = []
        if not writes:
            return
        try:
            self._go_on(start)
            self._file = self._path.open("a")
        except OSError as error:
            raise RunError(
                f"cannot go on with {error.filename or self._path}: {reason(error)}"
            ) from error
        self._board = _Board(workdir / "tensorboard", start)

    def _go_on(self, start: int) -> None:
        """Leaves the rows up to a step in the file, those that are damaged in one of their own."""
        sound, damaged = _sort_out(self._path)
        kept = [(line, row) for line, row in sound if row["step"] <= start]
        self._rows += [row for _, row in kept]
        if damaged:
            aside = self._path.with_name(DAMAGED)
            with aside.open("ab") as file:
                file.writelines(line + b"\n" for _, line in damaged)
                file.flush()
                os.fsync(file.fileno())
            numbers = [number for number, _ in damaged]
            shown = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
            self.say(
                f"warning: {self._path} is damaged in {len(numbers)} of its lines ({shown}); "
                f"moved to {aside}, the other rows are kept"
            )
        unfinished = self._path.with_suffix(".jsonl.part")
        unfinished.write_bytes(b"".join(line + b"\n" for line, _ in kept))
        os.replace(unfinished, self._path)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows so far, those before a resume included; without those where `writes` is false."""
        return self._rows

    def advance(self, step: int) -> None:
        """Moves the progress bar to a step."""
        self._bar.update(step - self._bar.n)

    def metrics(self, row: dict[str, Any]) -> None:
        """Records the metrics of a step: row["step"], row["loss"], ...

        Metrics of a step that has a row already (its held-out loss, say) join that row's curve as a row
        of their own.
        """
        self._rows.append(row)
        if not self._writes:
            return
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._board.scalars(
            {name: value for name, value in row.items() if name != "step"}, row["step"]
        )
        shown = {
            "loss": f"{row['loss']:.4f}" if row.get("loss") is not None else None,
            "eval": f"{row['eval_loss']:.4f}" if "eval_loss" in row else None,
            "bits/dim": _bits(row["eval_bpd"]) if "eval_bpd" in row else None,
            "images/s": f"{row['images_per_sec']:.0f}" if row.get("images_per_sec") else None,
            "input wait": f"{row['input_wait']:.0%}" if "input_wait" in row else None,
        }
        shown = {name: text for name, text in shown.items() if text is not None}
        if self._bar.disable:
            details = "  ".join(f"{name} {text}" for name, text in shown.items())
            left = _clock(row.get("seconds_left"))
            print(f"step {row['step']}/{self._bar.total}  {details}{left}", file=sys.stderr)
        else:
            self._bar.set_postfix(shown)

    def image(self, name: str, picture: UInt8[np.ndarray, "h w c"], step: int) -> None:
        """Shows a picture in TensorBoard."""
        if self._writes:
            self._board.image(name, picture, step)

    def say(self, text: str) -> None:
        """Prints a line without tearing the progress bar."""
        if self._writes:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Flushes and closes everything."""
        self._bar.close()
        if self._writes:
            with contextlib.closing(self._board), self._file:
                pass  # Both are closed, whichever fails.


class _Board:
    """Writes TensorBoard's events.

    Not by tensorboardX's SummaryWriter: its thread dies on a full disk, and the run would never end.
    """

    def __init__(self, folder: Path, start: int) -> None:
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        folder.mkdir(parents=True, exist_ok=True)
        self._summary, self._event = summary, getattr(event_pb2, "Event")  # noqa: B009
        # The process in the name, since a restart may fall into the same second.
        self._writer = event_file_writer.EventsWriter(str(folder / "events"), f".{os.getpid()}")
        # TensorBoard forgets what an earlier start has written beyond this step.
        log = getattr(event_pb2, "SessionLog")  # noqa: B009
        self._write(start + 1, session_log=log(status=log.START))

    def scalars(self, values: dict[str, float | None], step: int) -> None:
        """Adds a point to the curve of each value that is known."""
        for name, value in values.items():
            if value is not None:
                self._write(step, summary=self._summary.scalar(name, value))
        self._writer.flush()

    def image(self, name: str, picture: UInt8[np.ndarray, "h w c"], step: int) -> None:
        """Adds a picture."""
        self._write(step, summary=self._summary.image(name, picture, dataformats="HWC"))
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), step=step, **content))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads metrics.jsonl; damaged rows, and a last line that a kill cut short, are left out.

    Raises:
      OSError: It cannot be read.
    """
    return [row for _, row in _sort_out(path)[0]]


Line = tuple[bytes, dict[str, Any]]


def _sort_out(path: Path) -> tuple[list[Line], list[tuple[int, bytes]]]:
    """Returns the sound rows as they are written, and the damaged lines by their number, from 1."""
    content = read_regular(path) if path.exists() else b""
    lines = content.split(b"\n")
    cut_short = lines.pop()
    sound, damaged = {}, {}
    for number, line in enumerate(lines, 1):
        try:
            sound[number] = line, _row(line)
        except ValueError:
            damaged[number] = line
    with contextlib.suppress(ValueError):  # Else a kill has cut it short: it was never a row.
        sound[len(lines) + 1] = cut_short, _row(cut_short)
    # A digit of a step may be damaged too: rows are in the order of their steps.
    ordered = _in_order({number: row["step"] for number, (_, row) in sound.items()})
    for number in sound.keys() - ordered:
        damaged[number] = sound.pop(number)[0]
    return [sound[number] for number in sorted(sound)], sorted(damaged.items())


def _row(line: bytes) -> dict[str, Any]:
    """Returns a row that `RunLog.metrics` may have written; ValueError for anything else."""
    row = json_text.parse_object(line)
    step = row.get("step")
    if type(step) is not int or not 0 <= step < 2**63:
        raise ValueError(f"its step is {step!r}")
    for name, value in row.items():
        if value is not None and (type(value) not in (int, float) or not _is_finite(value)):
            raise ValueError(f"{name} is {value!r}")
    return row


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # An integer that no float can hold.
        return False


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


def _bits(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"  left {hours}:{minutes:02}:{seconds:02}"
