"""Averages of the parameters: tracked beside the main one, saved, and kept as snapshots."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from tiny_run import assert_same_run, digits_in, results, run, write_config

from diffusion_jax import load_run
from diffusion_jax.checkpoints.store import CheckpointStore
from diffusion_jax.commands.modes import MODES
from diffusion_jax.errors import InputError, RunError
from diffusion_jax.runs.parameters import Reconstruction, snapshot_store
from diffusion_jax.training.averages import PowerFunction, fit, weighted_sum

AVERAGES = (
    "config.optimizer.ema_decays = (0.5,)\n"
    "config.optimizer.ema_lengths = (0.05, 0.1)\n"
    "config.optimizer.ema_snapshot_every = 3"
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with digits_in(tmp_path_factory.mktemp("cache")) as folder:
        yield folder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config"), AVERAGES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    """Twelve steps with checkpoints at 4, 8 and 12 and snapshots at 3, 6 and 9."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    outcome = run(f"--config={config}", f"--workdir={workdir}")
    assert outcome.status == 0, outcome.err
    return workdir


def snapshots(workdir: Path) -> CheckpointStore:
    return snapshot_store(CheckpointStore(workdir / "checkpoints"))


def test_a_checkpoint_has_every_average_and_each_snapshot_those_of_power_functions(
    trained: Path,
) -> None:
    names = {"decay_0.5", "default", "length_0.05", "length_0.1"}
    assert {path.name for path in (trained / "checkpoints" / "12" / "ema").iterdir()} == names
    store = snapshots(trained)
    assert store.steps() == [3, 6, 9]
    for step in store.steps():
        parts = (Path(store.directory) / str(step) / "ema").iterdir()
        assert {path.name for path in parts} == {"length_0.05", "length_0.1"}
        assert (Path(store.directory) / str(step) / "manifest.json").exists()


@pytest.mark.slow
def test_a_run_that_begins_again_before_a_snapshot_keeps_it_and_ends_with_the_same_bits(
    trained: Path, config: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    for step in (
        8,
        12,
    ):  # As if killed after the snapshot of step 6, before the checkpoint of step 8.
        shutil.rmtree(workdir / "checkpoints" / str(step))
    shutil.rmtree(workdir / "checkpoints" / "snapshots" / "9")
    before = (workdir / "checkpoints" / "snapshots" / "6" / "manifest.json").read_bytes()
    outcome = run(f"--config={config}", f"--workdir={workdir}")
    assert outcome.status == 0 and "resuming at step 4" in outcome.err, outcome.err
    assert_same_run(trained, workdir)
    assert snapshots(workdir).steps() == [3, 6, 9]
    after = (workdir / "checkpoints" / "snapshots" / "6" / "manifest.json").read_bytes()
    assert after == before


def test_snapshots_need_averages_to_save(config: Path, tmp_path: Path) -> None:
    flags = (f"--config={config}", f"--workdir={tmp_path}", "--config.optimizer.ema_lengths=()")
    outcome = run(*flags)
    assert outcome.status == 2
    assert (
        "optimizer.ema_snapshot_every is 3, but has no effect while optimizer.ema_lengths is ()"
        in outcome.err
    )


def arrays(folder: Path) -> Any:
    """Returns the arrays of one part of a checkpoint or snapshot as Orbax itself reads them."""
    handler = ocp.PyTreeCheckpointHandler()
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
        handler.metadata(epath.Path(folder)).tree,
    )
    return handler.restore(epath.Path(folder), args=ocp.args.PyTreeRestore(restore_args=as_numpy))


@pytest.mark.parametrize(
    ("chosen", "part"),
    [
        ({"ema": True}, "ema/default"),
        ({"ema": 0.9999}, "ema/default"),  # The decay of the main average.
        ({"ema": 0.5}, "ema/decay_0.5"),
        ({"ema_length": 0.1}, "ema/length_0.1"),
        ({"ema": False}, "params"),
    ],
)
def test_a_tracked_average_is_loaded(trained: Path, chosen: Any, part: str) -> None:
    loaded = load_run(trained, step=8, **chosen)
    assert loaded.reconstruction is None and loaded.digest == load_run(trained, step=8).digest
    chex.assert_trees_all_equal(loaded.params, arrays(trained / "checkpoints" / "8" / part))


def test_another_average_is_the_sum_of_those_before_the_checkpoint_and_its_own(
    trained: Path,
) -> None:
    loaded = load_run(trained, step=8, ema_length=0.07)
    made = loaded.reconstruction
    assert made is not None and (made.lengths, made.steps) == ((0.05, 0.1), (3, 6, 8))
    folder = trained / "checkpoints"
    folders = [folder / "snapshots" / "3", folder / "snapshots" / "6", folder / "8"]
    names = {
        (PowerFunction(x), s): d / "ema" / f"length_{x}"
        for s, d in zip((3, 6, 8), folders, strict=True)
        for x in (0.05, 0.1)
    }
    found = fit(list(names), PowerFunction(0.07), 8)
    expected = weighted_sum(map(arrays, names.values()), found.coefficients)
    chex.assert_trees_all_equal(loaded.params, expected)
    assert (made.error, made.amplification) == (found.error, found.amplification)
    assert made.error < 0.05
    tracked = load_run(trained, step=8)
    chex.assert_trees_all_equal_dtypes(loaded.params, tracked.params)
    assert loaded.digest != tracked.digest


def test_an_inexact_reconstruction_is_warned_of(trained: Path) -> None:
    with pytest.warns(
        UserWarning,
        match=r"sample.ema=0.01 of step 12 is inexact: the error of its weights is .*%, above 5%: more",
    ):
        load_run(trained, ema=0.01)


def test_a_reconstruction_that_multiplies_rounding_is_inexact_too() -> None:
    good = Reconstruction((0.05, 0.1), (10, 20), error=0.01, amplification=2.0)
    assert good.problem() is None
    problem = dataclasses.replace(good, amplification=300.0).problem()
    assert problem is not None and problem.startswith("it multiplies rounding by 300: more snap")
    problem = dataclasses.replace(good, lengths=(0.1,), error=0.2).problem()
    assert problem is not None and "two or more lengths (optimizer.ema_lengths)" in problem


@pytest.mark.slow
def test_snapshots_of_one_length_are_warned_of(config: Path, tmp_path: Path) -> None:
    fields = ("optimizer.ema_lengths=0.1", "train.num_steps=3", "optimizer.warmup_steps=0")
    flags = (f"--config.{field}" for field in fields)
    outcome = run(f"--config={config}", f"--workdir={tmp_path / 'run'}", *flags)
    assert outcome.status == 0
    assert "optimizer.ema_lengths is (0.1,): from snapshots of one length no other" in outcome.err


def test_a_reconstruction_depends_on_the_snapshots_and_its_digest_says_so(
    trained: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    shutil.rmtree(workdir / "checkpoints" / "snapshots" / "6")
    runs = [load_run(folder, ema_length=0.07) for folder in (trained, workdir)]
    assert runs[0].digest != runs[1].digest
    shutil.rmtree(workdir / "checkpoints" / "snapshots")
    with pytest.raises(InputError) as error:
        load_run(workdir, ema_length=0.07)
    assert str(error.value) == (
        "sample.ema_length=0.07 was not tracked, and step 12 has no snapshots before it to reconstruct it from "
        "(optimizer.ema_snapshot_every); tracked: sample.ema=true (decay 0.9999), sample.ema=0.5, "
        "sample.ema_length=0.05, sample.ema_length=0.1"
    )


def test_a_damaged_snapshot_is_noticed_and_the_next_start_does_without(
    trained: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    folder = workdir / "checkpoints" / "snapshots"
    part = max((folder / "6" / "ema").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(RunError, match="snapshots/6 is damaged"):
        load_run(workdir, ema_length=0.07)
    made = load_run(workdir, ema_length=0.07).reconstruction
    assert made is not None and made.steps == (3, 9, 12)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"ema": 1.5}, r"sample.ema is 1.5; it must be true or false; or a number in \(0, 1\)"),
        ({"ema_length": 0.3}, r"sample.ema_length is 0.3; it must be a number in \(0, 0.28\)"),
        ({"ema": False, "ema_length": 0.1}, "name two averages"),
    ],
)
def test_what_names_no_average_is_refused(trained: Path, chosen: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_run(trained, **chosen)


def test_every_mode_on_a_run_lets_the_average_be_chosen() -> None:
    for mode in MODES.values():
        if mode.name == "report":
            continue  # It shows what the others have made.
        for name in ("sample.ema", "sample.ema_length", "sample.step"):
            assert mode.decides(name) == mode.works_on_run


def test_samples_and_measurements_say_which_average_they_are_of(trained: Path) -> None:
    flags = ("--config.sample.num_images=2", "--config.sample.ema_length=0.07")
    outcome = run("--mode=sample", f"--workdir={trained}", *flags)
    assert outcome.status == 0, outcome.err
    assert (
        "average reconstructed from the averages of length 0.05, 0.1 at 4 steps, 3 to"
        in outcome.err
    )
    result = results(trained, "sample")
    assert (result["ema"], result["ema_length"]) == (True, 0.07)
    assert result["reconstruction"]["steps"] == [3, 6, 9, 12]
    flags = ("--config.eval.num_images=2", "--config.sample.ema=0.5")
    outcome = run("--mode=evaluate", f"--workdir={trained}", *flags)
    assert outcome.status == 0, outcome.err
    record = results(trained, "evaluate")["bpd"]
    assert record["ema"] == 0.5 and "reconstruction" not in record
    outcome = run(
        "--mode=evaluate", f"--workdir={trained}", *flags, "--config.sample.ema_length=0.1"
    )
    assert outcome.status == 2 and "which name two averages" in outcome.err


def test_snapshots_of_another_config_past_the_start_are_refused(
    trained: Path, config: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    for step in (8, 12):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    flags = ("--allow_config_change", "--config.optimizer.learning_rate=0.01")
    outcome = run(f"--config={config}", f"--workdir={workdir}", *flags)
    assert outcome.status == 2
    assert "snapshots/6 is of another config than this run's, which begins at step 4" in outcome.err
