"""Batches that survive a kill: what is finished and sound is not computed again, and nothing else is taken for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_jax.errors import RunError
from diffusion_jax.parallel.resumable import Arrays, Batches, rows_of

TOTAL = 10
NONE = np.zeros(0, np.int64)


def batches_in(folder: Path | None, total: int = TOTAL) -> Batches:
    return Batches(folder, total, rows_of(squares=(np.int32, ())))


def squares(indices: np.ndarray) -> Arrays:
    return {"squares": np.square(indices).astype(np.int32)}


def computing(seen: list[list[int]], stop_at: int | None = None) -> Callable[[np.ndarray], Arrays]:
    """Notes the indices of each batch; a batch that holds `stop_at` is never finished."""

    def compute(indices: np.ndarray) -> Arrays:
        if stop_at in indices:
            raise KeyboardInterrupt
        seen.append(indices.tolist())
        return squares(indices)

    return compute


def all_squares(batches: Batches) -> list[int]:
    return [int(x) for batch in batches.read_all() for x in batch["squares"]]


def stopped(folder: Path, batch_size: int, at: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        list(batches_in(folder).compute(computing([], at), batch_size, NONE))


def test_a_stopped_job_goes_on_where_it_was_at_another_batch_size(tmp_path: Path):
    stopped(tmp_path, 3, at=7)
    again, seen = batches_in(tmp_path), []
    assert again.finished().tolist() == [0, 1, 2, 3, 4, 5]
    list(again.compute(computing(seen), 4, again.finished()))
    assert seen == [[6, 7, 8, 9]]
    assert all_squares(again) == [i * i for i in range(TOTAL)]


def test_what_is_missing_in_the_middle_is_computed_in_batches_of_neighbors(tmp_path: Path):
    batches, seen = batches_in(tmp_path), []
    list(batches.compute(squares, 2, NONE))
    for name in ("00000002-00000003", "00000008-00000009"):
        (tmp_path / f"{name}.npz").unlink()
    with pytest.raises(RunError, match="is missing or damaged; run the same command again"):
        all_squares(batches)
    list(batches.compute(computing(seen), 5, batches.finished()))
    assert seen == [[2, 3], [8, 9]]
    assert all_squares(batches) == [i * i for i in range(TOTAL)]


def test_all_batches_are_returned_those_of_an_earlier_start_and_those_of_this_one(tmp_path: Path):
    stopped(tmp_path, 4, at=5)
    seen, told = [], []
    found = batches_in(tmp_path).complete(computing(seen), 4, told.append)
    assert seen == [[4, 5, 6, 7], [8, 9]] and told == [4, 4, 2]
    assert [b["indices"].tolist() for b in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_without_a_folder_all_is_computed_and_nothing_kept():
    seen = []
    assert len(batches_in(None).complete(computing(seen), 4)) == 3
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] and list(batches_in(None).read()) == []


def test_a_larger_job_starts_from_a_smaller_one_and_a_smaller_one_takes_what_lies_in_it(
    tmp_path: Path,
):
    list(batches_in(tmp_path, 7).compute(squares, 3, NONE))
    assert batches_in(tmp_path, 20).finished().tolist() == list(range(7))
    assert batches_in(tmp_path, 5).finished().tolist() == [0, 1, 2]


def test_overlapping_batches_count_once(tmp_path: Path):
    batches = batches_in(tmp_path)
    for indices in (np.arange(4), np.arange(2, 6), np.arange(6, 8)):
        batches.write({"indices": indices, **squares(indices)})
    assert batches.finished().tolist() == [0, 1, 2, 3, 6, 7]


@pytest.mark.parametrize(
    "changes",
    [
        {"squares": np.zeros(2, np.int64)},
        {"squares": np.zeros(3, np.int32)},
        {"squares": np.zeros((2, 1), np.int32)},
        {"indices": np.array([2, 4])},
        {"indices": np.array([2.0, 3.0])},
        {"indices": np.array([[2, 3]])},
        {"indices": np.array([9, 10])},
        {"indices": np.array([-1, 0])},
        {"indices": np.array([0, 1])},  # Those of another file.
        {"indices": np.zeros(0, np.int64)},
        {"indices": np.array(2)},
        {"squares": None},
        {"indices": None},
    ],
    ids=str,
)
def test_a_file_that_holds_something_else_is_no_batch(changes: dict[str, Any], tmp_path: Path):
    indices = np.arange(2, 4)
    arrays = {"indices": indices, **squares(indices), **changes}
    path = tmp_path / "00000002-00000003.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    assert batches_in(tmp_path).finished().tolist() == []


def test_what_a_kill_left_unfinished_is_removed(tmp_path: Path):
    (tmp_path / "00000000-00000003.npz.part").touch()
    list(batches_in(tmp_path).compute(squares, 10, NONE))
    assert [path.name for path in tmp_path.iterdir()] == ["00000000-00000009.npz"]
