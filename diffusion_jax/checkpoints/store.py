"""Checkpoints: written by Orbax in the background, committed by one rename, verified before use.

A checkpoint is a directory named by its step:

    <directory>/<step>/<part>/        the arrays of a part (Orbax, OCDBT and Zarr 3)
    <directory>/<step>/meta.json      step, the caller's JSON, shape and dtype of every leaf
    <directory>/<step>/manifest.json  size and SHA-256 of every file
    <directory>/damaged/<step>-<n>/   what failed the check, moved aside
    <directory>/.tmp-*                being written or deleted; leftovers go with the next save

A process that is killed at any moment leaves a whole checkpoint or none.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import jax

from diffusion_jax.checkpoints import arrays
from diffusion_jax.checkpoints.arrays import Parts
from diffusion_jax.checkpoints.commit import (
    META,
    TEMPORARY,
    commit,
    failure_named,
    prepare,
)
from diffusion_jax.checkpoints.integrity import MANIFEST, find_damage
from diffusion_jax.errors import InputError, RunError, reason
from diffusion_jax.parallel.distributed import all_do, first_decides

DAMAGED = "damaged"

logger = logging.getLogger(__name__)
# Numbers the attempts to save, alike in all processes: a write that outlives a failed attempt must
# not reach into the next one's directory.
_attempts = itertools.count()


@dataclass(frozen=True)
class Checkpoint:
    """A restored checkpoint.

    Attributes:
      step: Its step.
      parts: The parts that were asked for.
      meta: The JSON saved with them.
      digest: SHA-256 of its manifest, which names the contents of all parts.
    """

    step: int
    parts: dict[str, Any]
    meta: dict[str, Any]
    digest: str


class _Chosen(TypedDict):
    """What process 0 tells of the checkpoint that it has chosen: the others do not look for themselves."""

    step: int
    content: dict[str, Any]
    digest: str


class CheckpointStore:
    """The checkpoints of one run.

    With several processes each of them calls every method alike, on a file system they share;
    process 0 decides, commits and deletes. One run at a time may save into a directory; others
    may read it meanwhile.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_last: int = 3,
        keep_every: int | None = None,
    ):
        """Names a directory; it is made by the first save.

        Args:
          directory: Where the checkpoints are, on a local or network file system.
          keep_last: Number of newest checkpoints to keep, at least 1.
          keep_every: Checkpoints whose step is a multiple of it are never deleted; None: no such ones.

        Raises:
          InputError: `keep_last` or `keep_every` is below 1.
        """
        for name, value in (("keep_last", keep_last), ("keep_every", keep_every)):
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        self.directory = Path(directory).absolute()
        self._keep_last = keep_last
        self._keep_every = keep_every
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._damaged: set[int] = set()  # Those that could not be moved aside.

    def steps(self) -> list[int]:
        """Returns the steps of the committed checkpoints, ascending."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(
                int(path.name)
                for path in self.directory.iterdir()
                if path.name.isdecimal() and path.name == str(int(path.name)) and path.is_dir()
            )
        return []

    def save(self, step: int, parts: Parts, meta: dict[str, Any]) -> None:
        """Starts to save; waits only for an earlier save and for the copy to host memory.

        The arrays may be donated at once: later steps cannot alter what is written. A step that is
        already there is left as it is, since a resumed run computes the same state again; one that
        is damaged and could not be moved aside is an error.

        Args:
          step: Number of finished training steps, at least 0.
          parts: Pytrees of `jax.Array`s by name, such as {"params": ..., "ema/slow": ...}; typed PRNG keys
            are fine. Each can be restored without the others.
          meta: JSON-serialisable; read back with tuples turned into lists.

        Raises:
          RunError: This save could not begin or an earlier one failed (disk full, ...).
        """
        self.wait()
        leaves = arrays.describe(parts)
        payload = json.dumps({"step": step, "meta": meta, "leaves": leaves}, indent=1)
        num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(dict(parts)))
        final = self._path(step)
        temporary = self.directory / f"{TEMPORARY}{next(_attempts)}-{step}"
        with failure_named(final, temporary):
            if not first_decides(
                "prepare a checkpoint",
                lambda: self._begin(final, temporary, list(parts), num_bytes),
            ):
                logger.info("checkpoint %s exists already", final)
                return
            start = self._pool.submit(arrays.start_writing, temporary, parts)
            # Also after a failure, so that this process tells the others, who wait for it.
            self._pending = self._pool.submit(
                self._finish, final, temporary, list(parts), payload, start
            )
            wait_for_futures([start])

    def wait(self) -> None:
        """Waits until the last save is committed.

        Raises:
          RunError: It failed. Earlier checkpoints are intact; the next save may be tried.
        """
        if self._pending is not None:
            error = self._pending.exception()
            self._pending = None
            if error is not None:
                raise error

    def close(self) -> None:
        """Waits like `wait`, and ends the background thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def restore(self, template: Parts, step: int | None = None) -> Checkpoint | None:
        """Returns the newest sound checkpoint, bit for bit as saved, or None if there is none.

        Only the parts of the template are verified and read: the others may be damaged or not there at all.
        Damaged checkpoints are named in a warning and moved to `damaged/`.

        Args:
          template: Of each part that is wanted, a pytree of `jax.ShapeDtypeStruct` (or arrays) that says
            the structure and, by its shardings, where each array goes: not necessarily where it was when
            saved.
          step: Takes this very checkpoint instead of the newest.

        Raises:
          InputError: No such step, or the template does not fit the saved state.
          RunError: There are checkpoints, but none (or not the one asked for) is sound.
        """
        chosen = self._choose(step, [META, *template])
        if chosen is None:
            return None
        path = self._path(chosen["step"])
        misfit = arrays.misfit(chosen["content"]["leaves"], template)
        if misfit:
            raise InputError(f"checkpoint {path} does not fit: {misfit}")
        try:
            parts = all_do("read a checkpoint", lambda: arrays.read(path, template))
        except Exception as error:
            raise RunError(f"cannot read checkpoint {path}: {reason(error)}") from error
        return Checkpoint(chosen["step"], parts, chosen["content"]["meta"], chosen["digest"])

    def meta(self, step: int | None = None) -> dict[str, Any] | None:
        """Returns the JSON of the newest checkpoint, or of `step`, without reading the arrays.

        Like `restore`, except that only the JSON itself is verified.
        """
        chosen = self._choose(step, [META])
        return None if chosen is None else chosen["content"]["meta"]

    def _path(self, step: int) -> Path:
        return self.directory / str(step)

    def _begin(self, final: Path, temporary: Path, names: list[str], num_bytes: int) -> bool:
        """Makes the temporary directory; False if the checkpoint exists already."""
        if int(final.name) in self._damaged and final.is_dir():
            raise RunError("a damaged one is there that cannot be moved aside")
        return prepare(final, temporary, names, num_bytes)

    def _finish(
        self,
        final: Path,
        temporary: Path,
        names: list[str],
        payload: str,
        start: Future[list[Any]],
    ) -> None:
        """Waits for the arrays, commits, deletes old ones; runs in the background thread."""

        def write() -> None:
            for pending in start.result():
                pending.result()

        with failure_named(final, temporary):
            all_do("write a checkpoint", write)
            first_decides("commit a checkpoint", lambda: commit(final, temporary, names, payload))
        if jax.process_index() == 0:
            self._delete_old(int(final.name))

    def _delete_old(self, saved: int) -> None:
        steps = self.steps()
        kept = {saved, *steps[-self._keep_last :]}
        kept |= {s for s in steps if self._keep_every and s % self._keep_every == 0}
        for step in sorted(set(steps) - kept):
            try:
                # By rename, so that a reader finds a whole checkpoint or none.
                shutil.rmtree(self._path(step).rename(self.directory / f"{TEMPORARY}old-{step}"))
            except OSError as error:
                logger.warning("cannot delete %s: %s", self._path(step), reason(error))

    def _choose(self, step: int | None, only: list[str]) -> _Chosen | None:
        """Returns the newest sound checkpoint, the same in every process."""
        self.wait()
        return first_decides("choose a checkpoint", lambda: self._newest_sound(step, only))

    def _newest_sound(self, step: int | None, only: list[str]) -> _Chosen | None:
        steps = self.steps()
        if step is not None and step not in steps:
            listed = ", ".join(map(str, steps)) or "none"
            raise InputError(f"no checkpoint {step} in {self.directory}; available: {listed}")
        for candidate in reversed(steps) if step is None else [step]:
            path = self._path(candidate)
            damage = find_damage(path, only)
            with contextlib.suppress(FileNotFoundError):
                if damage is None:
                    digest = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
                    content = json.loads((path / META).read_bytes())
                    return {"step": candidate, "content": content, "digest": digest}
            if not path.is_dir():
                # A run that is training has just deleted it.
                return self._newest_sound(step, only)
            self._move_aside(candidate, damage or f"{META}: not there")
        if step is not None:
            raise RunError(f"checkpoint {self._path(step)} is damaged")
        if steps or any(self.directory.glob(f"{DAMAGED}/*")):
            raise RunError(
                f"every checkpoint in {self.directory} is damaged; to start anew, "
                "use another directory or remove this one"
            )
        return None

    def _move_aside(self, step: int, damage: str) -> None:
        aside = self.directory / DAMAGED
        number = 1
        while (aside / f"{step}-{number}").exists():
            number += 1
        target = aside / f"{step}-{number}"
        try:
            aside.mkdir(exist_ok=True)
            self._path(step).rename(target)
            outcome = f"moved to {target}"
        except OSError as error:
            self._damaged.add(step)
            outcome = f"ignored, as it cannot be moved aside: {reason(error)}"
        logger.warning("checkpoint %s is damaged (%s); %s", self._path(step), damage, outcome)
