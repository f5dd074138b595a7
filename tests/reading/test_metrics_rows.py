"""metrics.jsonl as a resume reads it: damaged rows are told from sound ones, and none is lost."""

import json
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.reading.metrics_rows import DAMAGED, go_on_from, line_of, read_rows


def row(step: int) -> dict[str, int | float | None]:
    return {"step": step, "loss": 0.1 * step, "loss_q1": None, "speed": -1e-300}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Rows of steps 10, 20, 30 and 40."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(line_of(row(step)) for step in (10, 20, 30, 40)))
    return path


def replace_line(path: Path, number: int, line: bytes) -> list[bytes]:
    """Replaces a line, from 0; returns the lines that were there."""
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:number], line, *lines[number + 1 :]]) + b"\n")
    return lines


def test_rows_are_read_as_they_were_logged_whatever_their_version_wrote(path: Path) -> None:
    assert read_rows(path) == [row(step) for step in (10, 20, 30, 40)]
    older = [row(50), {"step": 60, "eval_loss": float("nan"), "loss": float("-inf")}]
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in older)
    before = path.read_bytes()
    kept, said = go_on_from(path, 60)
    assert kept[4:] == [row(50), {"step": 60, "eval_loss": None, "loss": None}]
    assert said == [] and path.read_bytes() == before


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_last_line_that_a_kill_cut_short_is_dropped(path: Path, cut: int) -> None:
    path.write_bytes(path.read_bytes()[: -1 - cut])
    assert [row["step"] for row in read_rows(path)] == [10, 20, 30]
    assert go_on_from(path, 40)[1] == []
    assert path.read_bytes().endswith(b"}\n")


DAMAGE = [
    b"",
    b"\x00" * 40,
    b'{"step": 20, "loss": 0.5',
    b'{"step": 20, "loss": \xff\xfe}',
    b"[" * 100_000,
    b'{"step": 20, "loss": ' + b"9" * 400 + b"}",
    b'{"step": 20, "loss": ' + b"9" * 5000 + b"}",
    b'{"step": 20, "loss": "0.5"}',
    b'{"step": 20, "loss": 0.5, "loss": 0.5}',
    b'{"step": 20, "loss": 0.5, "crc": 1}',
    b'{"step": 20, "loss": 0.5, "crc": null}',
    b'{"step": "20", "loss": 0.5}',
    b'{"step": true, "loss": 0.5}',
    b'{"step": 20.5, "loss": 0.5}',
    b'{"step": -20, "loss": 0.5}',
    b'{"step": 35, "loss": 0.5}',
    b'{"step": 15, "loss": 0.5} {}',
    b'{"stop": 20, "loss": 0.5}',
    b"20",
    b"null",
]


@pytest.mark.parametrize("line", DAMAGE, ids=lambda line: repr(line[:30]))
def test_a_damaged_row_is_moved_aside_and_named_and_all_others_are_kept(
    path: Path, line: bytes
) -> None:
    lines = replace_line(path, 1, line)
    kept, (said,) = go_on_from(path, 40)
    assert kept == [row(step) for step in (10, 30, 40)]
    assert path.read_bytes().splitlines() == [lines[0], *lines[2:]]
    assert path.with_name(DAMAGED).read_bytes() == line + b"\n"
    assert f"{path} is damaged in 1 of its lines (2); moved to" in said


def test_every_other_digit_of_a_row_is_noticed_also_of_the_last_ones_step(path: Path) -> None:
    line, whole = path.read_bytes().splitlines()[-1], path.read_bytes()
    for place in [i for i, digit in enumerate(line) if chr(digit).isdigit()]:
        damaged = bytearray(line)
        damaged[place] = ord("0") + (damaged[place] - ord("0") + 1) % 10
        replace_line(path, 3, bytes(damaged))
        assert [row["step"] for row in read_rows(path)] == [10, 20, 30], bytes(damaged)
        path.write_bytes(whole)
    replace_line(path, 3, line.replace(b'"step": 40', b'"step": 90'))
    kept, (said,) = go_on_from(path, 40)
    assert len(kept) == 3 and "damaged in 1 of its lines (4)" in said
    assert b'"step": 90' in path.with_name(DAMAGED).read_bytes()


def test_sound_rows_past_the_step_are_dropped_and_counted(path: Path) -> None:
    kept, (said,) = go_on_from(path, 20)
    assert kept == read_rows(path) == [row(10), row(20)]
    assert said.startswith("note: 2 rows of ")
    assert said.endswith("past step 20 (steps 30 to 40) are removed; the run writes them again")
    assert not path.with_name(DAMAGED).exists()
    assert go_on_from(path.with_name("none.jsonl"), 20) == ([], [])


def test_no_flipped_bit_loses_a_sound_row_or_the_damaged_one(path: Path) -> None:
    path.write_text("".join(line_of(row(step)) for step in range(10, 200, 10)))
    lines, generator = path.read_bytes().splitlines(), np.random.default_rng(0)
    for _ in range(200):
        number = int(generator.integers(len(lines)))
        line = bytearray(lines[number])
        line[generator.integers(len(line))] ^= 1 << generator.integers(8)
        content = b"\n".join([*lines[:number], line, *lines[number + 1 :]]) + b"\n"
        path.write_bytes(content)
        go_on_from(path, 1000)
        damaged = path.with_name(DAMAGED)
        left = path.read_bytes() + (damaged.read_bytes() if damaged.exists() else b"")
        assert sorted(left.split(b"\n")) == sorted(content.split(b"\n"))
        assert {*lines} - {lines[number]} <= {*path.read_bytes().splitlines()}
        damaged.unlink(missing_ok=True)
