"""What a run writes: metrics.jsonl across kills and resumes, TensorBoard, speed, results."""

import json
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import masked_crc32c

from diffusion_jax.errors import InputError, RunError
from diffusion_jax.reading import metrics_rows
from diffusion_jax.reporting import results
from diffusion_jax.training.meter import Meter
from diffusion_jax.training.run_log import RunLog
from diffusion_jax.training.step import StepMetrics


def rows(workdir: Path) -> list[Any]:
    return metrics_rows.read_rows(workdir / "metrics.jsonl")


def log_steps(workdir: Path, start: int, steps: list[int], mark: int) -> list[Any]:
    log = RunLog(workdir, start, 100)
    for step in steps:
        log.metrics({"step": step, "loss": 0.5, "run": mark})
    log.close()
    return log.rows


def test_a_resume_drops_the_rows_past_its_checkpoint_says_so_and_writes_them_again(
    tmp_path, capsys
):
    log_steps(tmp_path, 0, [10, 20, 30, 30], 1)
    assert "note" not in capsys.readouterr().err
    resumed = log_steps(tmp_path, 20, [30, 40], 2)
    told = "metrics.jsonl past step 20 (step 30) are removed; the run writes them again"
    assert told in capsys.readouterr().err
    assert [(row["step"], row["run"]) for row in rows(tmp_path)] == [
        (10, 1), (20, 1), (30, 2), (40, 2)]  # fmt: skip
    assert resumed == rows(tmp_path)


def test_a_start_from_nothing_drops_what_a_run_without_a_checkpoint_wrote(tmp_path):
    log_steps(tmp_path, 0, [10], 1)
    log_steps(tmp_path, 0, [10], 2)
    assert [row["run"] for row in rows(tmp_path)] == [2]


def test_a_folder_or_a_pipe_in_place_of_the_rows_is_one_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for make in (path.mkdir, lambda: os.mkfifo(path)):
        make()
        with pytest.raises(RunError, match="cannot go on with .*metrics.jsonl: "):
            RunLog(tmp_path, 0, 100)
        path.rmdir() if path.is_dir() else path.unlink()


def test_a_row_is_in_the_file_at_once(tmp_path):
    log = RunLog(tmp_path, 0, 100)
    log.metrics({"step": 1, "loss": 0.5})
    assert rows(tmp_path) == [{"step": 1, "loss": 0.5}]
    log.close()


def test_a_process_that_does_not_write_writes_nothing(tmp_path, capsys):
    log = RunLog(tmp_path, 0, 100, writes=False)
    log.metrics({"step": 1, "loss": 0.5})
    log.image("grid", np.zeros((4, 4, 1), np.uint8), 1)
    log.say("hello")
    log.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_without_a_terminal_a_row_is_a_line(tmp_path, capsys):
    log = RunLog(tmp_path, 0, 200)
    log.metrics({"step": 50, "loss": 0.12345, "images_per_sec": 640.0, "input_wait": 0.031,
                 "seconds_left": 3700.4})  # fmt: skip
    log.metrics({"step": 50, "eval_loss": 0.2})
    log.metrics({"step": 50, "eval_loss": None})
    log.say("saved")
    log.close()
    assert capsys.readouterr().err.splitlines() == [
        "step 50/200  loss 0.1235  images/s 640  input wait 3%  left 1:01:40",
        "step 50/200  eval 0.2000",
        "step 50/200  eval not finite",
        "saved",
    ]


def events(workdir: Path) -> list[Event]:
    """Reads TensorBoard's record format: length, its checksum, the event, its checksum."""
    (path,) = (workdir / "tensorboard").iterdir()
    content, found = path.read_bytes(), []
    while content:
        length = int.from_bytes(content[:8], "little")
        assert int.from_bytes(content[8:12], "little") == masked_crc32c(content[:8])
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def test_tensorboard_gets_every_number_and_picture(tmp_path):
    log = RunLog(tmp_path, 0, 100)
    log.metrics({"step": 7, "loss": 0.5, "loss_q1": None})
    log.image("grid", np.zeros((4, 6, 1), np.uint8), 7)
    log.close()
    values = [(e.step, v) for e in events(tmp_path) for v in e.summary.value]
    assert [(step, v.tag) for step, v in values] == [(7, "loss"), (7, "grid")]
    assert values[0][1].simple_value == 0.5
    assert (values[1][1].image.height, values[1][1].image.width) == (4, 6)


# ---- meter -------------------------------------------------------------------------------------------


METRICS = StepMetrics(
    loss=jnp.float32(0.5),
    quartile_loss=jnp.float32([1.0, 4.0, 0.0, 9.0]),
    quartile_images=jnp.float32([2.0, 4.0, 0.0, 3.0]),
    grad_norm=jnp.float32(3.0),
    param_norm=jnp.float32(7.0),
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock of one entry that stands still unless the test moves it."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_a_row_has_means_and_the_speed_without_compilation_and_pauses(tmp_path, clock):
    log = RunLog(tmp_path, 0, 25)
    settings = dict(start=0, num_steps=25, log_every=10, batch_size=64)
    meter = Meter(log, **settings, started=90.0)  # type: ignore[arg-type]
    clock[0] += 50  # Compilation.
    meter.read(METRICS)
    with meter.waiting():
        clock[0] += 1
    with meter.paused():
        clock[0] += 100
    clock[0] += 2
    for _ in range(2, 11):
        meter.read(METRICS)
    clock[0] += 5
    for _ in range(11, 26):  # The last five take no time that the clock can see.
        meter.read(METRICS)
    log.close()
    first, second, last = rows(tmp_path)
    assert [row["step"] for row in (first, second, last)] == [10, 20, 25]
    assert first == {
        "step": 10,
        "loss": 0.5,
        "loss_q1": 0.5,
        "loss_q2": 1.0,
        "loss_q3": None,  # No image fell into that quarter.
        "loss_q4": 3.0,
        "grad_norm": 3.0,
        "param_norm": 7.0,
        "steps_per_sec": pytest.approx(9 / 3),  # The first step is not in it.
        "images_per_sec": pytest.approx(64 * 9 / 3),
        "input_wait": pytest.approx(1 / 3),
        "seconds": pytest.approx(3),
        "seconds_left": pytest.approx(15 / 3),
    }
    assert second["steps_per_sec"] == pytest.approx(10 / 5) and second["input_wait"] == 0
    assert last["steps_per_sec"] is None and last["loss"] == 0.5


# ---- results -----------------------------------------------------------------------------------------


def test_a_result_keeps_the_earlier_ones_newest_first(tmp_path):
    for fid in (3.0, 2.0, 1.0):
        path = results.add_result(tmp_path, "evaluate", {"fid": fid})
    assert path == tmp_path / "results" / "evaluate.json"
    record = json.loads(path.read_text())
    assert record["fid"] == 1.0
    assert [earlier["fid"] for earlier in record["earlier"]] == [2.0, 3.0]
    assert all("earlier" not in earlier for earlier in record["earlier"])
    assert [file.name for file in path.parent.iterdir()] == ["evaluate.json"]


def test_modes_have_files_of_their_own(tmp_path):
    for mode in ("train", "sample"):
        results.add_result(tmp_path, mode, {"mode": mode})
    assert {file.name for file in (tmp_path / "results").iterdir()} == {"train.json", "sample.json"}


def test_a_result_says_with_what_versions_and_devices_it_was_made(tmp_path):
    record = json.loads(results.add_result(tmp_path, "train", {}).read_text())
    provenance = record["provenance"]
    assert provenance["jax"] == jax.__version__ and provenance["numpy"] == np.__version__
    assert re.fullmatch(r"8 x .*cpu.* \(cpu\)", provenance["device"])
    assert provenance["processes"] == 1 and "flax" in provenance


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '{"fid": 1}', "[" * 10**5, '{"earlier": "ab"}', "\0"]
)
def test_a_file_that_holds_no_results_is_not_overwritten(tmp_path, content):
    path = tmp_path / "results" / "train.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(InputError, match="train.json does not hold results; move it away"):
        results.add_result(tmp_path, "train", {"loss": 1.0})
    assert path.read_text() == content
