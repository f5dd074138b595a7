"""Batches of a job on disk: a killed command that is run again computes only the missing ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int64

from diffusion_jax.errors import RunError, reason
from diffusion_jax.lifecycle import ownership, stopping
from diffusion_jax.parallel.distributed import broadcast_from_first
from diffusion_jax.reading.npz import read_npz
from diffusion_jax.writing.atomic import remove, remove_unfinished

Arrays = dict[str, np.ndarray]  # Arrays of a batch; `indices` holds the items, in order.
Compute = Callable[[Int64[np.ndarray, " b"]], Arrays]  # Item indices -> arrays of the batch.


class Batches:
    """Finished batches of a job, one file per batch.

    Args:
      folder: Folder for these batches alone, which need not exist. None: batches are not kept.
      total: Number of items in the job.
      is_sound: Whether arrays that were read from a file can be a batch of this job.
    """

    def __init__(self, folder: Path | None, total: int, is_sound: Callable[[Arrays], bool]) -> None:
        self._folder, self._total, self._is_sound = folder, total, is_sound

    def read(self) -> Iterator[Arrays]:
        """Yields the sound batches in the order of their items, without overlaps."""
        seen = np.zeros(self._total, bool)
        for path in [] if self._folder is None else sorted(self._folder.glob("*.npz")):
            arrays = self._read(path)
            if arrays is not None and not seen[arrays["indices"]].any():
                seen[arrays["indices"]] = True
                yield arrays

    def read_all(self) -> Iterator[Arrays]:
        """Yields the batches of all items, in order.

        Raises:
          RunError: A batch is missing or damaged.
        """
        count = 0
        for arrays in self.read():
            if arrays["indices"][0] != count:
                break
            count += len(arrays["indices"])
            yield arrays
        if count < self._total:
            raise RunError(
                f"a batch in {self._folder} is missing or damaged; run the same command again to recompute it"
            )

    def finished(self) -> Int64[np.ndarray, " n"]:
        """Returns the items of the sound batches, as process 0 sees them, on every process."""
        ranges = broadcast_from_first(
            "finished batches",
            lambda: [(int(b["indices"][0]), int(b["indices"][-1]) + 1) for b in self.read()],
        )
        return np.array([i for start, stop in ranges for i in range(start, stop)], np.int64)

    def compute(
        self, function: Compute, batch_size: int, finished: Int64[np.ndarray, " n"]
    ) -> Iterator[Arrays]:
        """Yields the batches of the unfinished items, each as soon as it is on disk.

        Raises:
          RunError: A batch cannot be written, or this command's folder is gone.
          Stopped: A signal arrived.
        """
        if self._folder is not None and jax.process_index() == 0:
            remove_unfinished(self._folder)
        missing = np.setdiff1d(np.arange(self._total), finished)
        for run in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1):
            for first in range(0, len(run), batch_size):
                indices = run[first : first + batch_size]
                arrays = {"indices": indices, **function(indices)}
                if jax.process_index() == 0:
                    self.write(arrays)
                yield arrays
                stopping.check()

    def complete(
        self, function: Compute, batch_size: int, done: Callable[[int], object] | None = None
    ) -> list[Arrays]:
        """Returns the batches of all items in order, on every process; batches on disk are not recomputed.

        Several processes compute all batches: one may not see yet what another has written.

        Args:
          function: Function that computes a batch.
          batch_size: Items per batch.
          done: Called with the number of items in each batch.
        """
        tell = done or (lambda count: None)
        batches = list(self.read()) if jax.process_count() == 1 else []
        for batch in batches:
            tell(len(batch["indices"]))
        finished = [batch["indices"] for batch in batches]
        none = np.zeros(0, np.int64)
        for batch in self.compute(function, batch_size, np.concatenate([none, *finished])):
            batches.append(batch)
            tell(len(batch["indices"]))
        return sorted(batches, key=lambda batch: batch["indices"][0])

    def write(self, arrays: Arrays) -> None:
        """Writes a batch; a kill leaves either its whole file or none.

        Raises:
          RunError: The batch cannot be written.
        """
        if self._folder is None:
            return
        path = self._folder / _name(arrays)
        with explained(path), ownership.owned_write(path) as unfinished:
            with unfinished.open("wb") as file:
                np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]

    def remove(self) -> None:
        """Removes the files of all batches."""
        if self._folder is not None:
            remove(self._folder)

    def _read(self, path: Path) -> Arrays | None:
        """Returns a batch from `write`, or None if the file is damaged, foreign, or of another version."""
        with contextlib.suppress(OSError, ValueError):
            arrays = read_npz(path)
            indices = arrays.get("indices", np.zeros(0))
            if (
                indices.dtype == np.int64
                and indices.ndim == 1
                and 0 < len(indices) <= self._total
                and 0 <= indices[0] <= self._total - len(indices)
                and np.array_equal(indices, indices[0] + np.arange(len(indices)))
                and path.name == _name(arrays)
                and self._is_sound(arrays)
            ):
                return arrays
        return None


def _name(arrays: Arrays) -> str:
    return f"{arrays['indices'][0]:08}-{arrays['indices'][-1]:08}.npz"


def rows_of(**kinds: tuple[type[np.generic], Iterable[int]]) -> Callable[[Arrays], bool]:
    """Returns a check that a batch has arrays of these names, with one row of this dtype and shape per item."""

    def is_sound(arrays: Arrays) -> bool:
        count = len(arrays["indices"])
        return all(
            name in arrays and arrays[name].dtype == dtype and arrays[name].shape == (count, *shape)
            for name, (dtype, shape) in kinds.items()
        )

    return is_sound


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Converts a failed write to an error of one line, which says that finished batches are kept."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write {path} ({reason(error)}); finished batches are kept: "
            "run the same command again to continue"
        ) from error
