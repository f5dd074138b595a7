"""Checkpoints: written and committed by Orbax in the background, verified before use.

A checkpoint is a directory named by its step:

    <directory>/<step>/<part>/        the arrays of a part (Orbax, OCDBT and Zarr 3)
    <directory>/<step>/meta.json      step, the caller's JSON, shape and dtype of every leaf
    <directory>/<step>/manifest.json  size and SHA-256 of every file
    <directory>/damaged/<step>-<n>/   checkpoints that failed the check, moved aside

A process that is killed at any moment leaves a whole checkpoint or none. A folder that is named like a step but is
not a checkpoint is left alone, as are all other entries. A checkpoint under another step's name counts as damaged.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypedDict

import jax
from etils import epath

from diffusion_jax.addresses import is_local, resolve
from diffusion_jax.checkpoints import arrays, manager, storage
from diffusion_jax.checkpoints.arrays import Parts
from diffusion_jax.checkpoints.integrity import MANIFEST, find_damage, read, sync, write_manifest
from diffusion_jax.checkpoints.listing import Listing, is_checkpoint, is_step
from diffusion_jax.errors import DISK_FULL, InputError, RunError, reason
from diffusion_jax.parallel.distributed import broadcast_from_first, run_on_all
from diffusion_jax.reading import json_text

META = "meta.json"
DAMAGED = "damaged"
SPARE_BYTES = 16 << 20
_OLD_UNFINISHED = re.compile(r"\.tmp-\d+-\d+")  # Written before Orbax's manager was used.

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A restored checkpoint.

    Attributes:
      step: Its step.
      parts: The requested parts.
      meta: The JSON saved with them.
      digest: SHA-256 of its manifest, which identifies the contents of all parts.
    """

    step: int
    parts: dict[str, Any]
    meta: dict[str, Any]
    digest: str


class _Chosen(TypedDict):
    """The checkpoint chosen by process 0, as sent to the others."""

    step: int
    content: dict[str, Any]
    digest: str


class CheckpointStore:
    """The checkpoints of one run.

    Several processes must all call every method in the same order, on a shared file system; process
    0 decides, commits and deletes. One run at a time may save into a directory; others may read it
    meanwhile.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_last: int = 3,
        keep_every: int | None = None,
    ):
        """Sets the directory, which the first save creates.

        Args:
          directory: Folder of the checkpoints, or its address in a bucket.
          keep_last: Number of newest checkpoints to keep, at least 1.
          keep_every: Checkpoints at multiples of this step are never deleted; None: only the newest are kept.

        Raises:
          InputError: `keep_last` or `keep_every` is below 1.
        """
        for name, value in (("keep_last", keep_last), ("keep_every", keep_every)):
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        self.directory = resolve(directory)
        self._listing = Listing(self.directory)
        self._keep_last = keep_last
        self._keep_every = keep_every
        self._manager: Any = None
        self._pending: int | None = None  # Step of the save in progress.
        self._meta = ""  # Metadata of that step.
        self._damaged: set[int] = set()  # Damaged steps that could not be moved aside.

    def steps(self) -> list[int]:
        """Returns the steps of the committed checkpoints, ascending."""
        return self._listing.steps()

    def save(self, step: int, parts: Parts, meta: dict[str, Any]) -> None:
        """Starts a save; waits only for an earlier save and for the copy to host memory.

        The arrays may be donated at once: later steps cannot alter what is written. An existing
        checkpoint of the step is kept, since a resumed run computes the same state again; if it is
        damaged and could not be moved aside, that is an error.

        Args:
          step: Number of finished training steps, at least 0.
          parts: Pytrees of `jax.Array`s by name, such as {"params": ..., "ema/slow": ...}; typed PRNG keys
            are allowed. Each can be restored without the others.
          meta: JSON-serializable dict; tuples are read back as lists.

        Raises:
          RunError: This save cannot start or an earlier one failed (disk full, ...).
        """
        self.wait()
        leaves = arrays.describe(parts)
        num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(dict(parts)))
        with self._failure_named(step):
            prepare = functools.partial(self._prepare, step, num_bytes)
            if not broadcast_from_first("prepare a checkpoint", prepare):
                logger.info("checkpoint %s exists already", self._path(step))
                return
            if self._manager is None:
                self._manager = manager.open_manager(
                    self.directory,
                    list(parts),
                    keep_last=self._keep_last,
                    keep_every=self._keep_every,
                    foreign=broadcast_from_first("look for other folders", self._listing.others),
                    seal=self._seal,
                )
            self._meta = json.dumps({"step": step, "meta": meta, "leaves": leaves}, indent=1)
            self._pending = step
            self._manager.save(step, args=arrays.save_args(parts), force=True)

    def wait(self) -> None:
        """Waits until the last save is committed.

        Raises:
          RunError: The save failed. Earlier checkpoints are intact; another save may be tried.
        """
        if self._pending is not None:
            step = self._pending
            with self._failure_named(step):
                run_on_all("finish a checkpoint", lambda: self._finish(step))
                # Opening a new manager waits for all processes.
                if not broadcast_from_first("keep the manager", lambda: self._manager is not None):
                    self._manager = None
            self._pending = None

    def close(self) -> None:
        """Waits for this process's part of the last save and ends the background threads.

        Unlike `wait`, a process may call it alone, after an error that the others do not know of yet.

        Raises:
          RunError: The save failed here.
        """
        if self._pending is not None:
            step = self._pending
            with self._failure_named(step):
                self._finish(step)
            self._pending = None
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def restore(self, template: Parts, step: int | None = None) -> Checkpoint | None:
        """Returns the newest sound checkpoint, bit for bit, or None if there are no checkpoints.

        Only the parts in the template are verified and read; others may be damaged or missing. Damaged
        checkpoints are moved to `damaged/` with a warning.

        Args:
          template: For each requested part, a pytree of `jax.ShapeDtypeStruct`s (or arrays) with the
            structure and the shardings to restore to, which may differ from those at the save.
          step: Step of the checkpoint; None: the newest.

        Raises:
          InputError: There is no such step, or the template does not fit the saved state.
          RunError: There are checkpoints, but none of them (or not the requested one) is sound.
        """
        chosen = self._choose(step, [META, *template])
        if chosen is None:
            return None
        path = self._path(chosen["step"])
        misfit = arrays.misfit(chosen["content"]["leaves"], template)
        if misfit:
            raise InputError(f"checkpoint {path} does not fit: {misfit}")
        try:
            parts = run_on_all("read a checkpoint", lambda: arrays.read(path, template))
        except Exception as error:
            raise RunError(f"cannot read checkpoint {path}: {reason(error)}") from error
        return Checkpoint(chosen["step"], parts, chosen["content"]["meta"], chosen["digest"])

    def meta(self, step: int | None = None) -> dict[str, Any] | None:
        """Returns the JSON of the newest checkpoint, or of `step`, without reading arrays.

        Like `restore`, but only the JSON itself is verified.
        """
        chosen = self._choose(step, [META])
        return None if chosen is None else chosen["content"]["meta"]

    def _path(self, step: int) -> epath.Path:
        return self.directory / str(step)

    def _prepare(self, step: int, num_bytes: int) -> bool:
        """Clears the way for a save; returns False if its checkpoint exists already.

        Raises:
          OSError: The folder cannot be created, or the disk has too little room for `num_bytes`.
        """
        self._sweep()
        if self._path(step).exists():
            if step not in self.steps():
                raise RunError("the existing folder is not a checkpoint; move it away")
            if step in self._damaged:
                raise RunError("a damaged one exists that cannot be moved aside")
            return False
        self.directory.mkdir(parents=True, exist_ok=True)
        # A disk that fills up later is an error too, but then TensorStore's threads print tracebacks.
        if storage.free_bytes(self.directory) < num_bytes + num_bytes // 8 + SPARE_BYTES:
            raise OSError(DISK_FULL[0], os.strerror(DISK_FULL[0]))
        return True

    def _seal(self) -> None:
        """Completes a step before Orbax commits it; called by an Orbax thread in process 0."""
        assert self._pending is not None
        folder = manager.unfinished(self.directory, self._pending)
        (folder / META).write_text(self._meta)
        write_manifest(folder)

    def _finish(self, step: int) -> None:
        """Waits for the end of a save."""
        try:
            self._manager.wait_until_finished()
        except manager.FailedElsewhere:
            return
        except Exception as error:
            if jax.process_index() != 0 or step not in self.steps():
                raise
            logger.warning("cannot delete what is older than %s: %s", step, reason(error))
            self._manager = None
        if jax.process_index() == 0:
            self._sweep(only=manager.DELETED)
            if is_local(self.directory):
                sync(self.directory)

    def _sweep(self, only: str = "") -> None:
        """Removes deleted and uncommitted folders."""
        for path in self._listing.entries():
            unfinished = manager.UNFINISHED in path.name
            unfinished |= _OLD_UNFINISHED.fullmatch(path.name) is not None
            unfinished |= (
                is_step(path) and not self._listing.is_committed(path) and is_checkpoint(path)
            )
            if path.name == manager.DELETED or (unfinished and not only):
                with contextlib.suppress(OSError):
                    path.rmtree()

    @contextlib.contextmanager
    def _failure_named(self, step: int) -> Iterator[None]:
        """Adds the checkpoint to the error of a failed save, and removes its files."""
        try:
            yield
        except Exception as error:
            self._pending = self._manager = None  # Orbax's manager would raise the error again.
            if jax.process_index() == 0:
                self._sweep()
            raise RunError(
                f"cannot save checkpoint {self._path(step)}: {reason(error)}; "
                "earlier checkpoints are intact"
            ) from error

    def _choose(self, step: int | None, only: list[str]) -> _Chosen | None:
        """Returns the newest sound checkpoint, the same one on every process."""
        self.wait()
        try:
            return broadcast_from_first("choose one", lambda: self._newest_sound(step, only))
        except (InputError, RunError):
            raise
        except Exception as error:  # Every kind of bucket raises its own errors.
            said = f"cannot read checkpoints in {self.directory}: {reason(error)}"
            raise RunError(said) from error

    def _newest_sound(self, step: int | None, only: list[str]) -> _Chosen | None:
        while True:
            # List again each time: a training run may just have deleted one.
            steps = self.steps()
            if step is not None and step not in steps:
                listed = ", ".join(map(str, steps)) or "none"
                raise InputError(f"no checkpoint {step} in {self.directory}; available: {listed}")
            candidates = [s for s in steps if s not in self._damaged and step in (None, s)]
            if not candidates:
                break
            path = self._path(candidates[-1])
            damage = find_damage(path, only)
            with contextlib.suppress(FileNotFoundError):
                if damage is None:
                    digest = hashlib.sha256(read(path / MANIFEST)).hexdigest()
                    content = json_text.parse_object(read(path / META), finite=False)
                    inside = content.get("step", candidates[-1])
                    formed = arrays.is_description(content.get("leaves"))
                    if not formed or not isinstance(content.get("meta"), dict):
                        damage = f"{META}: it has another format"
                    elif inside == candidates[-1]:
                        return {"step": inside, "content": content, "digest": digest}
                    else:
                        damage = f"{META}: it is the checkpoint of step {inside}"
            if self._listing.is_committed(path):
                self._move_aside(candidates[-1], damage or f"{META}: missing")
                if step is not None:
                    break
        if step is not None:
            raise RunError(f"checkpoint {self._path(step)} is damaged")
        if steps or any(map(is_checkpoint, self._listing.entries(DAMAGED))):
            raise RunError(
                f"every checkpoint in {self.directory} is damaged; to start over, "
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
            storage.make_folder(aside)
            self._path(step).rename(target)
            outcome = f"moved to {target}"
        except OSError as error:
            self._damaged.add(step)
            outcome = f"ignored, as it cannot be moved aside: {reason(error)}"
        logger.warning("checkpoint %s is damaged (%s); %s", self._path(step), damage, outcome)
