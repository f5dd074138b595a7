"""Runs survive kills, signals, damaged checkpoints and full disks, and end bit for bit the same."""

import errno
import logging
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from slow import slow_after, slow_but
from tiny_run import (
    Outcome,
    assert_same_run,
    checkpoint_steps,
    digits_in,
    environment,
    finish,
    results,
    run,
    start,
    state_of,
    write_config,
)

from diffusion_jax.checkpoints import store
from diffusion_jax.commands import (
    evaluate,
    inpaint,
    interpolate,
    job,
    sample,
    train as train_command,
)
from diffusion_jax.errors import RunError
from diffusion_jax.lifecycle.ownership import Lock
from diffusion_jax.metrics import VariationalBits
from diffusion_jax.parallel.resumable import Batches
from diffusion_jax.reporting import pictures
from diffusion_jax.training.meter import Meter
from diffusion_jax.training.run_log import RunLog

# Ends the process, as a kill would, when the checkpoint of step 8 is whole but not yet committed.
KILLED_BEFORE_COMMIT = """
import os, signal
from diffusion_jax.checkpoints import store
from diffusion_jax.commands import (
    evaluate,
    inpaint,
    interpolate,
    job,
    sample,
)
from diffusion_jax.commands import train as train_command
from diffusion_jax.errors import RunError
from diffusion_jax.lifecycle.ownership import Lock
def trap(directory):
    write_manifest(directory)
    if directory.name.startswith("8."):
        os.kill(os.getpid(), signal.SIGKILL)
write_manifest = store.write_manifest
store.write_manifest = trap
"""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with digits_in(tmp_path_factory.mktemp("cache")) as folder:
        yield folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def uninterrupted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    outcome = run(f"--config={tiny}", f"--workdir={workdir}")
    assert outcome.status == 0, outcome.err
    return workdir


@pytest.fixture
def workdir(uninterrupted: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(uninterrupted, tmp_path / "run")


@pytest.fixture
def train(tiny: Path, tmp_path: Path) -> Callable[..., Outcome]:
    def train(*fields: str) -> Outcome:
        flags = [f"--config.{field}" for field in fields]
        return run(f"--config={tiny}", f"--workdir={tmp_path / 'run'}", *flags)

    return train


def assert_failed(outcome: Outcome, *fragments: str) -> None:
    assert outcome.status == 1, outcome.err
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in outcome.err, outcome.err
    assert outcome.err.splitlines()[-1] == errors[0]
    for fragment in fragments:
        assert fragment in errors[0]


# Kills and signals


def test_a_run_killed_while_it_saves_ends_bit_for_bit_like_one_that_was_not(
    tiny: Path, tmp_path: Path, train: Callable[..., Outcome], uninterrupted: Path
) -> None:
    flags = [f"--config={tiny}", f"--workdir={tmp_path / 'run'}"]
    killed = finish(start(flags, environment(), KILLED_BEFORE_COMMIT))
    assert killed.status == -signal.SIGKILL
    assert checkpoint_steps(tmp_path / "run") == [4]
    assert len(list((tmp_path / "run" / "checkpoints").glob("*-tmp*"))) == 1
    resumed = train()
    assert resumed.status == 0 and "resuming at step 4" in resumed.err, resumed.err
    assert_same_run(tmp_path / "run", uninterrupted)
    assert not list((tmp_path / "run" / "checkpoints").glob("*-tmp*"))


@pytest.fixture
def signal_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, signal.Signals], None]:
    """Has this process get a signal, once, when the metrics of a step are read."""

    def signal_after(step: int, number: signal.Signals) -> None:
        read = Meter.read

        def read_and_signal(self: Meter, metrics: Any) -> None:
            read(self, metrics)
            if self.step == step:
                monkeypatch.setattr(Meter, "read", read)
                os.kill(os.getpid(), number)

        monkeypatch.setattr(Meter, "read", read_and_signal)

    return signal_after


@pytest.mark.parametrize("number", slow_after(1, [signal.SIGTERM, signal.SIGINT]))
def test_a_signal_saves_exits_75_and_the_same_command_goes_on(
    number: signal.Signals,
    signal_after: Callable[[int, signal.Signals], None],
    train: Callable[..., Outcome],
    tmp_path: Path,
    uninterrupted: Path,
) -> None:
    signal_after(4, number)  # Noticed a step later, in the middle of a row's three steps.
    stopped = train()
    assert stopped.status == 75
    assert f"{number.name}: saved step 5; run the same command to go on" in stopped.err
    assert f"or with --workdir={tmp_path / 'run'} alone" in stopped.err
    assert checkpoint_steps(tmp_path / "run") == [4, 5]
    assert not (tmp_path / "run" / "results").exists()
    resumed = train()
    assert resumed.status == 0 and "resuming at step 5" in resumed.err
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_signal_at_the_last_step_leaves_a_run_that_only_draws_when_restarted(
    signal_after: Callable[[int, signal.Signals], None],
    train: Callable[..., Outcome],
    tmp_path: Path,
    uninterrupted: Path,
) -> None:
    signal_after(12, signal.SIGTERM)
    stopped = train()
    assert stopped.status == 75 and "SIGTERM: saved step 12" in stopped.err
    assert not (tmp_path / "run" / "results").exists()
    assert train().status == 0
    assert_same_run(tmp_path / "run", uninterrupted)
    assert results(tmp_path / "run", "train")["step"] == 12


def test_sigterm_before_training_stops_at_once(tiny: Path, tmp_path: Path) -> None:
    trap = "import os, signal\nfrom diffusion_jax.experiment import build\n"
    trap += "build.validate = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)\n"
    flags = [f"--config={tiny}", f"--workdir={tmp_path / 'run'}"]
    outcome = finish(start(flags, environment(), trap))
    assert outcome.status == 75
    assert outcome.err.splitlines() == ["SIGTERM: stopped; run the same command to go on"]


# Owners


def held(folder: Path, mode: str) -> Lock:
    lock = Lock(folder / "lock.json", f"--mode={mode}")
    lock.acquire()
    return lock


def test_a_workdir_that_another_command_trains_in_is_refused_and_not_touched(
    train: Callable[..., Outcome], workdir: Path, tmp_path: Path
) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}

    lock, before = held(workdir, "train"), contents()
    for fields in ([], ["optimizer.learning_rate=0.01"]):
        outcome = train("train.num_steps=15", *fields)
        assert outcome.status == 2 and contents() == before
        (line,) = outcome.err.splitlines()
        assert line.startswith(f"error: {workdir} is in use by --mode=train on ")
    lock.release()
    elsewhere = tmp_path / "checkpoints"  # Of two workdirs.
    elsewhere.mkdir()
    lock = held(elsewhere, "train")
    outcome = train("train.num_steps=15", f"train.checkpoint_dir={elsewhere}")
    assert outcome.status == 2 and f"{elsewhere} is in use by --mode=train" in outcome.err
    lock.release()
    lock = held(workdir / "checkpoints", "train")  # Of another workdir, whose checkpoints are here.
    outcome = train("train.num_steps=15")
    assert outcome.status == 2
    assert f"{workdir / 'checkpoints'} is in use by --mode=train" in outcome.err
    lock.release()
    assert not list(workdir.rglob("lock*"))


@pytest.mark.parametrize(
    ("mode", "field", "folder", "other"),
    [
        ("sample", "sample.num_images=2", "samples/step*", "sample.seed=1"),
        ("inpaint", "edit.keep=coarse", "edits/step*", "sample.seed=1"),
        ("interpolate", "edit.num_between=1", "edits/step*", "sample.seed=1"),
        ("evaluate", "eval.num_images=2", "results/bpd/step*", "eval.seed=1"),
        ("evaluate", "eval.metrics=ode_bpd", "results/ode_bpd/step*", "eval.seed=1"),
    ],
)
def test_a_job_has_one_owner_and_other_jobs_of_the_workdir_go_on(
    workdir: Path,
    mode: str,
    field: str,
    folder: str,
    other: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(*fields: str) -> Outcome:
        flags = [f"--config.{name}" for name in fields]
        return run(f"--mode={mode}", f"--workdir={workdir}", *flags)

    def stop(*_: Any, **__: Any) -> None:
        raise RunError("begun")

    for owner in (job, interpolate, evaluate):
        monkeypatch.setattr(owner, "ImagesBar", stop, raising=False)
    monkeypatch.setattr(sample, "ImagesBar", stop)
    monkeypatch.setattr(inpaint, "ImagesBar", stop)
    training = held(workdir, "train")  # Does not hinder them.
    assert_failed(start(field), "begun")
    (made,) = workdir.glob(folder)
    lock = held(made, mode)
    outcome = start(field)
    assert outcome.status == 2 and f"{made} is in use by --mode={mode}" in outcome.err
    assert_failed(start(field, other), "begun")
    lock.release()
    assert_failed(start(field), "begun")
    training.release()


@pytest.mark.parametrize(
    ("mode", "owner", "name"),
    slow_but(
        [("train", Meter, "read"), ("sample", Batches, "write")],
        [
            ("train", Meter, "read"),
            ("train", train_command, "draw_pictures"),
            ("sample", Batches, "write"),
            ("inpaint", Batches, "write"),
            ("interpolate", pictures, "interpolation"),
            ("evaluate", Batches, "write"),
            ("evaluate", VariationalBits, "save"),
        ],
    ),
)
def test_a_workdir_deleted_while_a_command_runs_ends_it_in_one_line_and_stays_deleted(
    mode: str,
    owner: Any,
    name: str,
    train: Callable[..., Outcome],
    workdir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    function = getattr(owner, name)

    def delete(*args: Any, **kwargs: Any) -> Any:
        shutil.rmtree(workdir, ignore_errors=True)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, delete)
    group = "eval" if mode == "evaluate" else "sample"
    flags = [f"--mode={mode}", f"--workdir={workdir}", f"--config.{group}.seed=0"]
    flags += ["--config.edit.keep=coarse"] * (mode == "inpaint")
    flags += ["--config.eval.num_images=2"] * (mode == "evaluate")
    outcome = train("train.num_steps=15") if mode == "train" else run(*flags)
    assert_failed(outcome, "was deleted or moved while this command ran")
    assert not workdir.exists()


# Restarts


def test_a_finished_run_that_is_started_again_keeps_its_parameters(
    train: Callable[..., Outcome], workdir: Path, uninterrupted: Path
) -> None:
    (workdir / "loss.png").unlink()
    assert train().status == 0
    assert_same_run(workdir, uninterrupted)
    assert (workdir / "loss.png").exists()
    assert len(results(workdir, "train")["earlier"]) == 1


def test_the_workdir_alone_continues_a_run_with_its_own_config(
    workdir: Path, uninterrupted: Path
) -> None:
    config = (workdir / "config.json").read_text()
    refused = run(f"--workdir={workdir}", "--config.seed=7")
    assert refused.status == 2 and "seed: 0 -> 7" in refused.err
    assert run(f"--workdir={workdir}").status == 0
    assert (workdir / "config.json").read_text() == config
    assert_same_run(workdir, uninterrupted)
    longer = run(f"--workdir={workdir}", "--config.train.num_steps=13")
    assert longer.status == 0 and "resuming at step 12" in longer.err
    assert checkpoint_steps(workdir)[-1] == 13


@pytest.mark.slow
def test_a_longer_run_continues_a_finished_one_as_if_it_had_always_been_longer(
    train: Callable[..., Outcome], workdir: Path, tiny: Path, tmp_path: Path
) -> None:
    outcome = train("train.num_steps=15")
    assert outcome.status == 0 and "resuming at step 12" in outcome.err
    whole = tmp_path / "whole"
    run(f"--config={tiny}", f"--workdir={whole}", "--config.train.num_steps=15")
    assert_same_run(workdir, whole)


@pytest.mark.slow
def test_a_resumed_run_draws_its_times_by_the_losses_of_before(
    train: Callable[..., Outcome], tiny: Path, tmp_path: Path
) -> None:
    """Of four timesteps, so that each has its ten losses before the stop: the draws after it need them."""
    fields = ("loss.times=importance", "process.num_timesteps=4", "train.num_steps=9")
    assert train(*fields[:2], "train.num_steps=6").status == 0
    history = state_of(tmp_path / "run")["training"]["aux"]
    counts, losses = history["seen"], history["losses"]
    assert counts.min() >= 10 and losses.mean(1).std() > 0.01
    outcome = train(*fields)
    assert outcome.status == 0 and "resuming at step 6" in outcome.err
    flags = [f"--config.{field}" for field in fields]
    whole = tmp_path / "whole"
    assert run(f"--config={tiny}", f"--workdir={whole}", *flags).status == 0
    assert_same_run(tmp_path / "run", whole)


# Damage


def flip_a_bit(workdir: Path, step: int) -> None:
    files = (workdir / "checkpoints" / str(step)).rglob("*")
    largest = max((path for path in files if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def test_a_damaged_newest_checkpoint_is_named_moved_aside_and_the_one_before_it_used(
    train: Callable[..., Outcome],
    workdir: Path,
    uninterrupted: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    flip_a_bit(workdir, 12)
    outcome = train()
    assert outcome.status == 0 and "resuming at step 8" in outcome.err
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert str(workdir / "checkpoints" / "12") in warning and "wrong checksum" in warning
    assert (workdir / "checkpoints" / "damaged" / "12-1").is_dir()
    assert_same_run(workdir, uninterrupted)


def test_if_every_checkpoint_is_damaged_nothing_is_overwritten(
    train: Callable[..., Outcome], workdir: Path
) -> None:
    def contents() -> dict[str, bytes]:
        files = [path for path in workdir.rglob("*") if path.is_file()]
        kept = [path for path in files if "checkpoints" not in path.parts]
        return {str(path): path.read_bytes() for path in kept}

    for step in (4, 8, 12):
        flip_a_bit(workdir, step)
    before = contents()
    for _ in range(2):  # Nor by a second try.
        outcome = train()
        assert_failed(outcome, f"every checkpoint in {workdir / 'checkpoints'} is damaged")
        assert outcome.err.count("\n") == 1
        assert contents() == before
    damaged = workdir / "checkpoints" / "damaged"
    assert sorted(path.name for path in damaged.iterdir()) == ["12-1", "4-1", "8-1"]


# What cannot go on


def test_a_loss_that_is_not_finite_stops_the_run_at_its_last_good_checkpoint(
    train: Callable[..., Outcome], tmp_path: Path
) -> None:
    diverging = ("optimizer.learning_rate=1e15", "optimizer.warmup_steps=0")
    outcome = train(*diverging, "train.checkpoint_every=1")
    assert_failed(outcome, "loss or gradients are not finite at step", "learning_rate")
    match = re.search(r"at step (\d+); the last good checkpoint is step (\d+)", outcome.err)
    assert match is not None
    bad, good = map(int, match.groups())
    assert good == bad - 1 == checkpoint_steps(tmp_path / "run")[-1]
    for leaf in jax.tree.leaves(state_of(tmp_path / "run")["params"]):
        assert np.isfinite(leaf).all()
    shutil.rmtree(tmp_path / "run")
    assert_failed(train(*diverging, "train.checkpoint_every=100"), "nothing was saved yet")


def test_a_disk_that_fills_up_is_a_clear_error_and_earlier_checkpoints_stay(
    train: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Path,
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    original = store.write_manifest

    def write_manifest(directory: Any) -> None:
        if directory.name.startswith("8."):
            raise full
        original(directory)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_manifest", write_manifest)
        outcome = train()
    path = tmp_path / "run" / "checkpoints" / "8"
    assert_failed(outcome, f"cannot save checkpoint {path}: no space left on device")
    assert "earlier checkpoints are intact" in outcome.err
    assert checkpoint_steps(tmp_path / "run") == [4]

    def fail(*_: Any) -> None:
        raise full

    for owner, name in ((RunLog, "metrics"), (pictures, "save_png")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            assert_failed(train(), "No space left on device")
    assert train().status == 0
    assert_same_run(tmp_path / "run", uninterrupted)
