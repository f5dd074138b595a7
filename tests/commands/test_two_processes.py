"""Two real processes do one command: same losses and images as one process, one checkpoint, one way to stop."""

import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import chex
import numpy as np
import pytest
import tiny_features
from tiny_run import (
    checkpoint_steps,
    digits_in,
    environment,
    finish_all,
    results,
    rows,
    run,
    start,
    state_of,
    write_config,
)

from diffusion_jax.checkpoints.store import CheckpointStore
from diffusion_jax.commands.image_files import ImageFiles
from diffusion_jax.data import image_file
from diffusion_jax.features import FEATURES
from diffusion_jax.runs.parameters import snapshot_store

pytestmark = pytest.mark.slow  # Every test starts several commands.


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with digits_in(tmp_path_factory.mktemp("cache")) as folder:
        yield folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one device."""
    folder = tmp_path_factory.mktemp("trained")
    outcome = run(f"--config={write_config(folder)}", f"--workdir={folder / 'run'}")
    assert outcome.status == 0, outcome.err
    return folder / "run"


# A mesh that takes the devices of the two processes in turn, as one made by topology may.
IN_TURN = """
from jax.sharding import Mesh
from diffusion_jax.parallel import sharding
by_process = sharding.make_mesh
def in_turn(*arguments, **named):
    mesh = by_process(*arguments, **named)
    assert [device.process_index for device in mesh.devices.flat] == [0, 0, 1, 1]
    return Mesh(mesh.devices[[0, 2, 1, 3]], mesh.axis_names, axis_types=mesh.axis_types)
sharding.make_mesh = in_turn
"""


def pair(*flags: str, prologue: str = "", second: tuple[str, ...] = ()) -> list:
    """Starts the command in two processes of two devices each; the second one may get more flags."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    joined = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    flags = (*flags, "--config.mesh.data=-1")
    return [
        start(
            (*flags, *second[: i * len(second)]),
            environment(2, **joined, JAX_PROCESS_ID=str(i)),
            prologue,
        )
        for i in range(2)
    ]


def test_two_processes_train_like_one_save_once_and_one_goes_on_alone(tmp_path: Path) -> None:
    tiny, workdir, alone = write_config(tmp_path), tmp_path / "run", tmp_path / "alone"
    fields = (f"--config={tiny}", "--config.train.eval_every=3", "--config.eval.num_images=8")
    fields = (*fields, "--config.train.bpd_every=6", "--config.eval.num_terms=3")
    fields = (*fields, "--config.sampler.num_steps=5")  # Which is warned of.
    # Kernels of 384 x 384, so that the optimizer's state and the average are split over the devices.
    fields = (*fields, "--config.model.channels=384")
    # Saved between the checkpoints, and at the same step as one.
    fields = (*fields, "--config.optimizer.ema_lengths=0.05,0.1")
    fields = (*fields, "--config.optimizer.ema_snapshot_every=2")
    flags = (*fields, f"--workdir={workdir}")
    processes = pair(*flags, "--config.train.num_steps=6", prologue=IN_TURN)
    outcome = run(*fields, f"--workdir={alone}", "--config.train.num_steps=9")
    assert outcome.status == 0
    outcomes = finish_all(processes)
    assert [o.status for o in outcomes] == [0, 0], outcomes
    assert "4 device(s)" in outcomes[0].err and outcomes[0].err.count("warning: ") == 1
    assert outcomes[1].err == ""
    assert results(workdir, "train")["provenance"]["processes"] == 2
    assert checkpoint_steps(workdir) == [4, 6]
    assert snapshot_store(CheckpointStore(workdir / "checkpoints")).steps() == [2, 4]
    outcome = run(*flags, "--config.train.num_steps=9")
    assert outcome.status == 0 and "resuming at step 6" in outcome.err
    assert [row["step"] for row in rows(workdir)] == [3, 3, 6, 6, 6, 9, 9, 9]
    for row, expected in zip(rows(workdir), rows(alone), strict=True):
        # Sums over four devices instead of one: float32 rounding.
        for name in {"loss", "grad_norm", "param_norm", "eval_loss", "eval_bpd"} & expected.keys():
            assert row[name] == pytest.approx(expected[name], rel=1e-5)


def test_two_processes_begin_from_the_parameters_of_another_run(
    trained: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    flags = (f"--config={write_config(tmp_path)}", f"--workdir={workdir}")
    fields = (f"train.init_from={trained}", "optimizer.learning_rate=0", "train.num_steps=2")
    fields = (*fields, "mesh.fsdp=2")  # Each process has a part of the large arrays.
    outcomes = finish_all(pair(*flags, *(f"--config.{field}" for field in fields)))
    assert [o.status for o in outcomes] == [0, 0], outcomes
    chex.assert_trees_all_equal(state_of(workdir)["params"], state_of(trained)["ema/default"])


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {name: values.astype(float) for name, values in arrays.items()}


def test_two_processes_keep_what_is_drawn_and_image_i_is_the_same_whoever_draws_it(
    trained: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "run")
    flags = (f"--workdir={workdir}", "--mode=sample", "--config.sample.num_images=12")
    flags = (*flags, "--config.sample.batch_size=8")  # All batches of 8, the last one padded.
    flags = (*flags, "--config.sample.shared_t=12,4", "--config.sample.progressive=true")
    assert run(*flags).status == 0
    (folder,) = (workdir / "samples").glob("step*")
    alone = [image_file.pixels(folder / "png" / f"{i:06}.png").astype(int) for i in range(12)]
    arrays = {name: load_arrays(folder / name) for name in ("shared.npz", "progressive.npz")}
    shutil.rmtree(folder)
    # A batch of two that an earlier start has finished; negatives, which nobody draws again.
    alone[:2] = [255 - image for image in alone[:2]]
    kept = np.stack(alone[:2]).astype(np.uint8)
    files = ImageFiles(folder, 12, kept.shape[1:])
    files.parts.write({"indices": np.arange(2), "images": kept})
    outcomes = finish_all(pair(*flags, prologue=IN_TURN))
    assert [o.status for o in outcomes] == [0, 0], outcomes
    assert results(workdir, "sample")["drawn_this_start"] == 10
    for i, image in enumerate(alone):
        # Products of two rows a device instead of eight: rounding, so one level of 255.
        np.testing.assert_allclose(image_file.pixels(folder / "png" / f"{i:06}.png"), image, atol=1)
        # Far from any other image, so that the order counts.
        assert all(abs(image - other).max() > 20 for other in alone[:i])
    for name, expected in arrays.items():
        drawn = load_arrays(folder / name)
        assert drawn.keys() == expected.keys() and (folder / name).with_suffix(".png").exists()
        for key, values in drawn.items():
            np.testing.assert_allclose(values, expected[key], atol=1)


IMPATIENT = "from diffusion_jax.parallel import peers\npeers.SILENCE = 5\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_one_process_stops_both_after_a_checkpoint_if_there_is_time(
    number: signal.Signals, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    fields = ("--config.train.log_every=20", "--config.train.checkpoint_every=1000000")
    flags = (f"--config={write_config(tmp_path)}", f"--workdir={workdir}", *fields)
    processes = pair(*flags, "--config.train.num_steps=1000000", prologue=IMPATIENT)
    try:
        deadline = time.monotonic() + 600
        metrics = workdir / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text()):
            if time.monotonic() > deadline or processes[0].poll() is not None:
                break  # Below it fails, with the output of both.
            time.sleep(0.1)
        processes[1].send_signal(number)
        signaled = time.monotonic()
        outcomes = finish_all(processes)
    finally:
        for process in processes:
            process.kill()
    if number == signal.SIGTERM:
        assert [o.status for o in outcomes] == [75, 75], outcomes
        (step,) = checkpoint_steps(workdir)
        assert f"saved step {step}" in outcomes[0].err
    else:
        assert [o.status for o in outcomes] == [1, -signal.SIGKILL], outcomes
        assert f", pid {processes[1].pid}) for " in outcomes[0].err, outcomes
        assert "Traceback" not in outcomes[0].err and time.monotonic() - signaled < 60


def test_processes_that_were_started_differently_both_stop_and_name_the_field(
    tmp_path: Path,
) -> None:
    flags = (f"--config={write_config(tmp_path)}", f"--workdir={tmp_path / 'run'}")
    processes = pair(*flags, second=("--config.train.batch_size=8", "--config.data.cache_dir=own"))
    outcomes = finish_all(processes)
    assert [o.status for o in outcomes] == [2, 2], outcomes
    for outcome in outcomes:
        error = outcome.err.splitlines()[-1]
        assert error.startswith(
            "error: the processes were started differently: train.batch_size is "
        )
        assert error.endswith(" on process 0 and 8 on process 1")
    assert not (tmp_path / "run").exists()


def test_a_coordinator_that_cannot_be_reached_is_named_with_how_long_it_was_tried(
    tmp_path: Path,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = (f"--config={write_config(tmp_path)}", f"--coordinator={address}")
    flags = (*flags, "--num_processes=2", "--process_id=1")
    hasty = "from diffusion_jax.parallel import join\njoin.JOIN_TIMEOUT = 1\n"
    (outcome,) = finish_all([start(flags, environment(2), hasty)])
    assert outcome.status == 2, outcome
    (line,) = outcome.err.splitlines()
    said = f"error: no coordinator (process 0) at {address}: tried for 1 s"
    assert line.startswith(said)
    (outcome,) = finish_all([start(flags[:3], environment(2), hasty)])
    assert outcome.status == 2 and "are needed together" in outcome.err


def test_two_processes_measure_what_one_does_and_file_it_once(
    trained: Path, tmp_path: Path
) -> None:
    workdir, alone = (shutil.copytree(trained, tmp_path / name) for name in ("run", "alone"))
    flags = ("--mode=evaluate", "--config.eval.num_images=10", "--config.eval.batch_size=8")
    flags = (*flags, "--config.eval.metrics=bpd,fd,pr", "--config.eval.features=mixed")
    flags = (*flags, "--config.sample.batch_size=8")
    tiny_features.register()
    try:
        assert run(*flags, f"--workdir={alone}").status == 0
    finally:
        del FEATURES["mixed"]
    folder = Path(__file__).parents[1]
    found = f"import sys\nsys.path.append({str(folder)!r})\n"
    registered = f"{IN_TURN}{found}import tiny_features\ntiny_features.register()\n"
    outcomes = finish_all(pair(*flags, f"--workdir={workdir}", prologue=registered))
    assert [outcome.status for outcome in outcomes] == [0, 0], outcomes
    assert "bits/dim" in outcomes[0].err and outcomes[1].err == ""
    one, two = (results(folder, "evaluate")["bpd"] for folder in (alone, workdir))
    for name in ("total", "rate", "distortion", "rmse"):
        np.testing.assert_allclose(two[name]["value"], one[name]["value"], rtol=1e-5)
    one, two = (results(folder, "evaluate") for folder in (alone, workdir))
    # Samples differ by a level of 255 here and there.
    assert two["fd_mixed"]["value"] == pytest.approx(one["fd_mixed"]["value"], rel=1e-2)
    assert two["pr_mixed"]["density"] == pytest.approx(one["pr_mixed"]["density"], abs=0.2)
    assert (
        two["bpd"]["provenance"]["processes"] == 2 and results(workdir, "evaluate")["earlier"] == []
    )
