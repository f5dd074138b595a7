"""The host's sums of metrics: rows, resumes in the middle of one, and steps that are not finite."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_jax.reading.metrics_rows import read_rows
from diffusion_jax.training.meter import Meter, NotFinite
from diffusion_jax.training.row_figures import RowFigures
from diffusion_jax.training.run_log import RunLog
from diffusion_jax.training.step import StepMetrics

LOG_EVERY = 5


def metrics(step: int, **changes: Any) -> StepMetrics:
    """Metrics of a step that are not exact in binary, so that the order of sums shows."""
    rng = np.random.default_rng(step)
    values = StepMetrics(
        np.float32(rng.normal()),
        rng.normal(size=4).astype(np.float32),
        np.array([3, 0 if step <= LOG_EVERY else 1, 2, 1], np.float32),
        np.float32(rng.random()),
        np.float32(step),
    )
    return values._replace(**changes)


def make(workdir: Path, start: int = 0, num_steps: int = 13, sums: Any = None) -> Meter:
    workdir.mkdir(exist_ok=True)
    log = RunLog(workdir, start, num_steps)
    return Meter(
        log, start=start, num_steps=num_steps, log_every=LOG_EVERY, batch_size=7, started=0.0,
        sums=sums,
    )  # fmt: skip


def rows(workdir: Path) -> list[dict[str, Any]]:
    timing = ("seconds", "seconds_left", "steps_per_sec", "images_per_sec", "input_wait")
    found = read_rows(workdir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in timing} for row in found]


def test_a_row_is_the_mean_since_the_last_multiple_and_the_end_has_one(tmp_path: Path) -> None:
    meter = make(tmp_path)
    for step in range(1, 14):
        meter.read(metrics(step))
    logged = rows(tmp_path)
    assert [row["step"] for row in logged] == [5, 10, 13]
    for row, steps in zip(logged, (range(1, 6), range(6, 11), range(11, 14)), strict=True):
        seen = [metrics(step) for step in steps]
        assert row["loss"] == pytest.approx(np.mean([float(m.loss) for m in seen]), rel=1e-12)
        assert row["grad_norm"] == pytest.approx(np.mean([float(m.grad_norm) for m in seen]))
        assert row["param_norm"] == steps[-1]
        sums = np.sum([m.quartile_loss.astype(float) for m in seen], 0)
        for i, images in enumerate(np.sum([m.quartile_images for m in seen], 0)):
            expected = sums[i] / images if images else None
            assert row[f"loss_q{i + 1}"] == (expected and pytest.approx(expected, rel=1e-12))
    assert logged[0]["loss_q2"] is None


def test_several_steps_of_one_dispatch_are_read_as_if_one_by_one(tmp_path: Path) -> None:
    single, stacked = make(tmp_path / "single"), make(tmp_path / "stacked")
    for first in (1, 6):
        five = [metrics(step) for step in range(first, first + 5)]
        for one in five:
            single.read(one)
        stacked.read(StepMetrics(*(np.stack(values) for values in zip(*five, strict=True))))
    assert rows(tmp_path / "single") == rows(tmp_path / "stacked")


@pytest.mark.parametrize("stop", [3, 5, 8, 13])
def test_a_run_resumed_anywhere_logs_the_very_same_rows(tmp_path: Path, stop: int) -> None:
    whole = make(tmp_path / "whole", num_steps=20)
    for step in range(1, 21):
        whole.read(metrics(step))
    first = make(tmp_path / "cut", num_steps=20)
    for step in range(1, stop + 1):
        first.read(metrics(step))
    saved = json.loads(json.dumps(dataclasses.asdict(first.sums)))
    for step in range(stop + 1, min(stop + 3, 20)):  # Lost in the kill.
        first.read(metrics(step))
    second = make(tmp_path / "cut", start=stop, num_steps=20, sums=saved)
    for step in range(stop + 1, 21):
        second.read(metrics(step))
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


@pytest.mark.parametrize("field", ["loss", "grad_norm", "param_norm"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_first_step_that_is_not_finite_is_named(
    tmp_path: Path, field: str, value: float
) -> None:
    meter = make(tmp_path)
    meter.read(metrics(1))
    bad = metrics(3, **{field: np.float32(value)})
    three = [metrics(2), bad, metrics(4)]
    with pytest.raises(NotFinite, match="not finite at step 3$"):
        meter.read(StepMetrics(*(np.stack(values) for values in zip(*three, strict=True))))


def test_no_step_runs_while_the_first_row_counts_operations(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0, 13)
    figures = RowFigures(lambda k: 0.1, lambda: 1e12, 1e12)
    meter = Meter(
        log, start=0, num_steps=13, log_every=LOG_EVERY, batch_size=7, started=0.0, figures=figures
    )
    assert [step for step in range(1, 14) if meter.rests(step)] == [5, 10, 13]
    for step in range(1, 6):
        meter.read(metrics(step))
    assert not any(meter.rests(step) for step in range(1, 14))
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert row["learning_rate"] == 0.1 and row["tflops"] == pytest.approx(row["steps_per_sec"])
