"""A trace of a run's steps: which ones it has, and what ends it early."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.config import default_config, override
from diffusion_jax.errors import InputError
from diffusion_jax.experiment.build import validate
from diffusion_jax.training.hooks import profile_hooks
from diffusion_jax.training.run_log import RunLog
from diffusion_jax.training.state import TrainState

STATE = TrainState(jnp.asarray(4), {}, {}, (), ())


def test_a_trace_has_its_steps_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    log = RunLog(tmp_path, 0, 10)
    hooks = profile_hooks((3, 4), tmp_path, log, start=0)
    assert [[step for step in range(11) if hook.due(step, 10)] for hook in hooks] == [[2], [4]]
    for step in range(1, 6):
        with jax.profiler.TraceAnnotation(f"number_{step}"):
            jax.block_until_ready(jnp.ones(3) + step)
        for hook in hooks:
            if hook.due(step, 10):
                hook.run(STATE, step)
    log.close()
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    names = [step for step in range(1, 6) if f"number_{step}".encode() in trace.read_bytes()]
    assert names == [3, 4]
    said = "".join(capsys.readouterr())
    assert f"trace of steps 3 to 4: tensorboard --logdir={tmp_path}/profile" in said


def test_the_last_step_of_a_trace_may_be_the_runs(tmp_path: Path):
    _, end = profile_hooks((3, 10), tmp_path, RunLog(tmp_path, 0, 10), start=0)
    assert end.due(10, 10)


@pytest.mark.parametrize(("start", "begins"), [(0, 2), (2, 2), (5, 5)])
def test_a_run_that_goes_on_traces_the_steps_that_are_left(tmp_path: Path, start: int, begins: int):
    log = RunLog(tmp_path, start, 10, writes=False)
    begin, end = profile_hooks((3, 7), tmp_path, log, start=start)
    assert begin.resumed and [step for step in range(11) if begin.due(step, 10)] == [begins]
    assert end.due(7, 10)
    assert profile_hooks((3, 7), tmp_path, log, start=7) == []


def test_a_signal_ends_a_trace_and_begins_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    log = RunLog(tmp_path, 0, 10, writes=False)
    begin, end = profile_hooks((3, 7), tmp_path, log, start=0)
    assert end.stopped and not begin.stopped
    end.run(STATE, 1)
    assert calls == []
    begin.run(STATE, 2)
    end.run(STATE, 5)
    end.run(STATE, 7)
    assert calls == ["start", "stop"]
    assert profile_hooks(None, tmp_path, log, start=0) == []


@pytest.mark.parametrize("steps", ["10", "5:3", "1:4", "a:b", "2:3:4", "-2:4", "", "2:9999999999"])
def test_a_range_that_is_none_is_one_line(steps: str):
    config = default_config()
    override(config, [("train.profile", steps)])
    with pytest.raises(InputError, match=r"^train.profile.*FIRST:LAST") as raised:
        validate(config)
    assert "\n" not in str(raised.value)


def test_a_range_outside_of_the_run_is_one_line():
    config: Any = default_config()
    config.train.num_steps = 40
    override(config, [("train.profile", "30:40")])
    validate(config)
    override(config, [("train.profile", "30:41")])
    with pytest.raises(InputError, match="train.profile is 30:41, but train.num_steps is 40"):
        validate(config)
