"""Averages of the parameters: tracked beside the main one, saved, and kept as snapshots."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_run import assert_same_run, digits_in, run, write_config

from diffusion_jax.checkpoints.store import CheckpointStore
from diffusion_jax.runs.run import snapshot_store

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
