"""Batches as a pure function of (seed, k): order, position and threaded prefetch."""

from __future__ import annotations

import functools
import sys
from collections.abc import Generator

import numpy as np
from jaxtyping import Int64

from diffusion_jax.data.split import Batch, Split
from diffusion_jax.errors import InputError

NUM_THREADS = 4

Rows = slice | Int64[np.ndarray, " rows"]


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, num_images: int) -> Int64[np.ndarray, " n"]:
    """Returns the permutation of the images in one epoch.

    It sorts the raw output of a Philox generator keyed on (seed, epoch). NumPy guarantees that this
    raw output stays the same in all versions, but gives no such guarantee for `permutation`.
    """
    key = np.array([seed % 2**64, epoch], dtype=np.uint64)
    order = np.argsort(np.random.Philox(key=key).random_raw(num_images), kind="stable")
    order.flags.writeable = False
    return order


def batch_indices(
    seed: int, k: int, batch_size: int, num_images: int
) -> Int64[np.ndarray, " batch_size"]:
    """Returns the image indices of global batch k.

    The concatenated permutations of all epochs are cut into batches: no image repeats within an
    epoch, none is dropped at its end, and a batch may span the end of one epoch and the start of
    the next.

    Args:
      seed: Any integer, taken modulo 2**64.
      k: Number of the batch, >= 0. The cost does not depend on k.
      batch_size: Number of images in the global batch.
      num_images: Number of images in the split.
    """
    parts = []
    position, end = k * batch_size, (k + 1) * batch_size
    while position < end:
        epoch, offset = divmod(position, num_images)
        part = epoch_order(seed, epoch, num_images)[offset : offset + end - position]
        parts.append(part)
        position += len(part)
    return np.concatenate(parts)


class _BatchSource:
    """grain's view of a split: item k is this process's rows of global batch k."""

    def __init__(self, split: Split, seed: int, batch_size: int, rows: Rows):
        self._split, self._seed, self._batch_size, self._rows = split, seed, batch_size, rows

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Batch:
        indices = batch_indices(self._seed, int(index), self._batch_size, self._split.num_images)
        return self._split.read(indices[self._rows])


def batches(
    split: Split,
    *,
    seed: int,
    batch_size: int,
    start: int = 0,
    stop: int | None = None,
    rows: Rows = slice(None),
    prefetch: int = 8,
) -> Generator[Batch, None, None]:
    """Iterates over batches start, start + 1, ..., prefetched by threads.

    Args:
      split: Images to read.
      seed: Seed of the images' order.
      batch_size: Size of the global batch; it may exceed the number of images.
      start: First batch. Resuming there costs nothing.
      stop: Batch before which to end; None: the iteration is infinite.
      rows: This process's rows of the global batch: a slice, or their indices.
      prefetch: Number of batches to read ahead.

    Returns:
      A generator. Its threads start with the first request, and end when it is exhausted, closed or
      deleted.

    Raises:
      InputError: A size is not positive, or start and stop are out of order.

    Example:
      >>> split = dj.data.from_arrays(np.zeros((6, 8, 8, 1), np.uint8))
      >>> [batch["image"].shape for batch in dj.data.batches(split, seed=0, batch_size=4, stop=2)]
      [(4, 8, 8, 1), (4, 8, 8, 1)]
    """
    for name, value in {"batch_size": batch_size, "prefetch": prefetch}.items():
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
    if split.num_images < 1:
        raise InputError("the split holds no images; it must hold at least one")
    if start < 0 or (stop is not None and stop < start):
        raise InputError(f"batches {start} to {stop}: 0 <= start <= stop is needed")
    return _prefetched(_BatchSource(split, seed, batch_size, rows), start, stop, prefetch)


def _prefetched(
    source: _BatchSource, start: int, stop: int | None, prefetch: int
) -> Generator[Batch, None, None]:
    import grain  # Slow to import.

    options = grain.ReadOptions(
        num_threads=min(NUM_THREADS, prefetch), prefetch_buffer_size=prefetch
    )
    dataset = grain.MapDataset.source(source).slice(slice(start, stop))
    iterator = iter(dataset.to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()
