"""What a reader is asked, and how its answer is judged."""

import contextlib
import io
import logging
import os
import traceback
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from diffusion_jax.errors import InputError, RunError
from fuzzing.mutations import Rng, damage, fresh, pick

RIGHT, REFUSED, NOTICED, UNKNOWABLE = "right", "refused", "noticed", "cannot be known"
WRONG, TRACEBACK, HANG, CRASH, EXECUTED = "WRONG", "TRACEBACK", "HANG", "CRASH", "EXECUTED"
OUTCOMES = (RIGHT, REFUSED, NOTICED, UNKNOWABLE, WRONG, TRACEBACK, HANG, CRASH, EXECUTED)
FAULTS = (WRONG, TRACEBACK, HANG, CRASH, EXECUTED)
MARK = "EXECUTED"  # A file that whatever is run leaves.


class Verdict(NamedTuple):
    """What came of a case, with what was done and seen."""

    outcome: str
    detail: str


class Loader:
    """A reader of files.

    Attributes:
      name: Its name in the table.
      refusals: What it may raise, in one line. Those that are no `InputError` or `RunError` are turned into one line
        by whoever calls it.
    """

    name: ClassVar[str]
    refusals: ClassVar[tuple[type[Exception], ...]] = (InputError, RunError)

    def __init__(self, folder: Path) -> None:
        """Makes the sound files.

        Args:
          folder: An empty one for them.
        """
        self.sound, self.place = folder / "sound", folder / "place"
        self.mark = folder / MARK
        self.sound.mkdir(parents=True)
        self.make(self.sound)
        fresh(self.sound, self.place)
        self.expected = self.expect()

    def make(self, folder: Path) -> None:
        """Writes the sound files."""
        raise NotImplementedError

    def expect(self) -> Any:
        """Returns the answer to the sound files."""
        return self.read(self.place)

    def mutate(self, folder: Path, rng: Rng) -> str:
        """Damages a copy of them; returns how."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        path = pick(rng, files)
        return f"{path.relative_to(folder)}: {damage(path, rng)}"

    def read(self, folder: Path) -> Any:
        """Returns what the reader makes of a folder."""
        raise NotImplementedError

    def judge(self, value: Any, said: str, folder: Path) -> str:
        """Returns what came of it, given an answer and what was printed."""
        del said, folder
        return RIGHT if same(value, self.expected) else WRONG

    def case(self, seed: int, number: int) -> Verdict:
        """Runs one case, the same one for the same numbers."""
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode()), number])
        self.mark.unlink(missing_ok=True)
        fresh(self.sound, self.place)
        how = self.mutate(self.place, rng)
        with printed() as said:
            try:
                value, error = self.read(self.place), None
            except Exception as raised:
                value, error = None, raised
        if self.mark.exists():
            return Verdict(EXECUTED, how)
        if error is None:
            outcome = self.judge(value, said.getvalue(), self.place)
            return Verdict(outcome, f"{how}; said {said.getvalue()[-300:]!r}")
        if isinstance(error, self.refusals) and len(str(error).splitlines()) == 1:
            return Verdict(REFUSED, f"{how}: {error}")
        lines = traceback.format_exception(error)
        return Verdict(TRACEBACK, f"{how}: {type(error).__name__}: {error}\n{''.join(lines)}")


@contextlib.contextmanager
def printed() -> Iterator[io.StringIO]:
    """Catches what is printed, warned of and logged."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logger = logging.getLogger("diffusion_jax")
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        with (
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(said),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=said)
            yield said
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def same(one: Any, other: Any) -> bool:
    """Whether two answers are equal, arrays of them bit for bit."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return (
            isinstance(one, np.ndarray)
            and isinstance(other, np.ndarray)
            and (one.shape, one.dtype) == (other.shape, other.dtype)
            and one.tobytes() == other.tobytes()
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and one != one:
        return isinstance(other, float) and other != other
    return type(one) is type(other) and one == other


@contextlib.contextmanager
def stand_in(folder: Path, mark: Path, name: str = "gs") -> Iterator[None]:
    """Puts a program of that name on the PATH that leaves a mark."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\ntouch {mark}\nexit 1\n")
    program.chmod(0o755)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{folder}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before
