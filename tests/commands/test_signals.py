"""A signal asks a command to stop: nothing swallows it, what is finished is kept, and a second one ends it at once."""

import gc
import os
import shutil
import signal
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import io_callback
from slow import slow, slow_after
from tiny_run import (
    Outcome,
    checkpoint_steps,
    digits_in,
    environment,
    finish,
    rows,
    run,
    start,
    write_config,
)

from diffusion_jax.commands import interpolate, sample_pictures, signals
from diffusion_jax.commands.images_bar import ImagesBar
from diffusion_jax.data import prepare
from diffusion_jax.data.locked import locked
from diffusion_jax.lifecycle import stopping
from diffusion_jax.metrics import base
from diffusion_jax.parallel.resumable import Batches
from diffusion_jax.planning import fit
from diffusion_jax.reporting import pictures
from diffusion_jax.training import held_out

SAID = "SIGTERM: stopped; run the same command to go on"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with digits_in(tmp_path_factory.mktemp("cache")) as folder:
        yield folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    measured = "config.train.eval_every = 5\nconfig.train.bpd_every = 5\nconfig.eval.num_images = 4"
    return write_config(tmp_path_factory.mktemp("config"), measured)


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("trained") / "run"
    outcome = run(f"--config={tiny}", f"--workdir={workdir}")
    assert outcome.status == 0, outcome.err
    return workdir


@pytest.fixture
def workdir(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(trained, tmp_path / "run")


class Signaling:
    """Sends this process a signal when it is destroyed, which is where Python swallows exceptions."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def swallowed_signal() -> None:
    """Sends a signal where an exception of its handler would be ignored."""
    thing = Signaling()
    del thing
    gc.collect()


def once_before(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, action: Callable[[], None]
) -> None:
    """Has something done just before a function is called, the first time."""
    function = getattr(owner, name)

    def first(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(owner, name, function)
        action()
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, first)


def test_a_signal_in_a_callback_of_a_compiled_program_is_not_swallowed():
    with signals.handled():
        send = lambda x: (os.kill(os.getpid(), signal.SIGTERM), x)[1]  # noqa: E731
        shape = jax.ShapeDtypeStruct((), np.float32)
        draw = jax.jit(lambda x: io_callback(send, shape, x))
        jax.block_until_ready(draw(np.float32(1)))
        with pytest.raises(stopping.Stopped, match="SIGTERM"):
            stopping.check()
        with stopping.held():
            stopping.check()
    stopping.check()  # The command is over.


@pytest.mark.parametrize(
    ("mode", "fields", "owner", "name"),
    [
        ("sample", ["sample.batch_size=2"], ImagesBar, "done"),
        ("sample", [], ImagesBar, "advance"),  # In the middle of the only batch.
        ("evaluate", ["eval.num_images=4", "eval.batch_size=2"], Batches, "write"),
        slow("sample", ["sample.progressive=true"], sample_pictures, "frame_steps"),
        slow("sample", ["sample.shared_t=5,10"], sample_pictures, "nearest_point"),
        slow("sample", ["sample.formats=npz"], pictures, "save_png"),
        slow("inpaint", ["edit.keep=coarse", "sample.batch_size=2"], ImagesBar, "done"),
        slow("interpolate", ["edit.num_between=1"], ImagesBar, "done"),
        slow(
            "interpolate", ["edit.latents=true", "sampler.name=ddim"], interpolate, "_evaluations"
        ),
        slow("evaluate", ["eval.metrics=ode_bpd", "eval.num_images=2"], Batches, "write"),
    ],
)
def test_a_signal_that_python_would_swallow_stops_a_job_which_goes_on_later(
    mode: str,
    fields: list[str],
    owner: Any,
    name: str,
    workdir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = [f"--mode={mode}", f"--workdir={workdir}", *(f"--config.{field}" for field in fields)]
    once_before(monkeypatch, owner, name, swallowed_signal)
    stopped = run(*flags)
    assert (stopped.status, stopped.err.splitlines()[-1]) == (75, SAID), stopped.err
    assert not (workdir / "results" / f"{mode}.json").exists()
    assert not list(workdir.rglob("*.part")) + list(workdir.rglob("lock*"))
    assert run(*flags).status == 0
    assert (workdir / "results" / f"{mode}.json").exists()


def test_a_signal_stops_a_plan_before_the_next_compilation(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt(*_: Any) -> fit.Attempt:
        swallowed_signal()
        return fit.Attempt({}, None, None, False)

    monkeypatch.setattr(fit, "attempt", attempt)
    outcome = run("--mode=plan", f"--config={tiny}", f"--workdir={tmp_path}")
    assert outcome.status == 75 and outcome.err.splitlines() == [SAID]


def figures(workdir: Path) -> set[tuple[Any, ...]]:
    names = ("step", "loss", "eval_loss", "eval_bpd")
    return {tuple(row.get(name) for name in names) for row in rows(workdir)}


@pytest.mark.parametrize("owner", slow_after(1, [held_out, base]))
def test_a_signal_while_training_measures_saves_there_and_the_rest_is_measured_later(
    owner: Any, tiny: Path, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [f"--config={tiny}", f"--workdir={tmp_path / 'run'}"]
    make = owner.map_batches

    def signaled(*args: Any, **options: Any) -> Any:
        made = types.SimpleNamespace(mapped=make(*args, **options))
        once_before(patch, made, "mapped", swallowed_signal)
        return lambda *inputs: made.mapped(*inputs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, "map_batches", signaled)
        stopped = run(*flags)
    assert stopped.status == 75 and "SIGTERM: saved step 5;" in stopped.err
    assert checkpoint_steps(tmp_path / "run") == [4, 5]
    assert run(*flags).status == 0
    assert figures(tmp_path / "run") == figures(trained)


def test_a_signal_after_the_last_step_stops_before_the_report(
    tiny: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion_jax.commands import train

    (workdir / "results" / "train.json").unlink()
    once_before(monkeypatch, train, "draw_pictures", swallowed_signal)
    stopped = run(f"--config={tiny}", f"--workdir={workdir}")
    assert stopped.status == 75 and stopped.err.splitlines()[-1] == SAID
    assert not (workdir / "results" / "train.json").exists()


def test_data_that_are_prepared_stop_at_a_signal_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with signals.handled():
        once_before(monkeypatch, prepare, "_info", swallowed_signal)
        contents = prepare.Contents((2, 2, 1), (), 1, {"train": iter([(np.zeros((2, 2, 1)), 0)])})
        with pytest.raises(stopping.Stopped):
            prepare.write_images(tmp_path, contents)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_wait_for_another_process_that_prepares_ends_at_a_signal(tmp_path: Path) -> None:
    with signals.handled(), locked(tmp_path / "lock"):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(stopping.Stopped, match="SIGINT"), locked(tmp_path / "lock"):
            pass


def test_a_pipe_in_place_of_a_lock_of_the_system_is_refused_and_not_waited_for(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(OSError, match="not a regular file.*lock"), locked(tmp_path / "lock"):
        pass


def second_signal(pause: float, *numbers: signal.Signals) -> Outcome:
    program = "import hashlib\nfrom diffusion_jax.commands import signals\nsignals.install()\n"
    program += "print('ready', flush=True)\n"
    # Like a compiler: it leaves the interpreter to other threads, and runs no handler for minutes.
    program += "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**30)\n"
    process = start([], environment(), program)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for number in numbers:
        process.send_signal(number)
        time.sleep(pause)
    return finish(process, 30)


@pytest.mark.parametrize("number", signals.NUMBERS)
def test_a_second_signal_ends_the_command_at_once_also_inside_compiled_code(
    number: signal.Signals,
) -> None:
    outcome = second_signal(signals.SAME + 0.3, signal.SIGTERM, number)
    assert outcome.status == 128 + number
    assert outcome.err.startswith(f"{number.name} again: ended at once")


def test_a_signal_during_the_first_moments_of_the_command_counts() -> None:
    """It waits while the command starts itself again, and while modules are imported."""
    trap = "import os, signal\nfrom diffusion_jax.commands import signals\nsignals.block()\n"
    trap += "os.kill(os.getpid(), signal.SIGTERM)\nsignals.install()\n"
    outcome = finish(start(["--config=configs/digits.py"], environment(), trap))
    assert outcome.status == 75 and outcome.err.splitlines() == [SAID]


def test_a_signal_after_the_end_leaves_the_status_that_was_decided() -> None:
    """It comes when Python has given its handlers up, and modules are taken apart."""
    trap = "import os, signal\nfrom diffusion_jax.commands import signals\nsignals.install()\n"
    trap += "class Late:\n    def __del__(self, kill=os.kill, pid=os.getpid()): kill(pid, 15)\n"
    outcome = finish(start(["--help"], environment(), f"{trap}late = Late()\n"))
    assert outcome.status == 0 and not outcome.err


def test_handlers_are_as_they_were_after_a_command_in_a_program_of_ones_own() -> None:
    before = [signal.getsignal(number) for number in signals.NUMBERS]
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    with signals.handled():
        assert signal.getsignal(signal.SIGINT) is signals._handle
    assert [signal.getsignal(number) for number in signals.NUMBERS] == before
    assert signal.set_wakeup_fd(wakeup) == wakeup
