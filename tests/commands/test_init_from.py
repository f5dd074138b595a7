"""A training may begin from the averaged parameters of another run (train.init_from)."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from tiny_run import Outcome, digits_in, results, rows, run, state_of, write_config

from diffusion_jax.checkpoints.store import CheckpointStore
from diffusion_jax.config import config_hash, default_config
from diffusion_jax.runs.create import create_run
from diffusion_jax.runs.run import load_experiment, load_run


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with digits_in(tmp_path_factory.mktemp("cache")) as folder:
        yield folder


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps."""
    folder = tmp_path_factory.mktemp("origin")
    outcome = run(f"--config={write_config(folder)}", f"--workdir={folder / 'run'}")
    assert outcome.status == 0, outcome.err
    return folder / "run"


def begin(folder: Path, origin: object, *fields: str) -> Outcome:
    flags = [f"--config.{field}" for field in (f"train.init_from={origin}", *fields)]
    return run(f"--config={write_config(folder)}", f"--workdir={folder / 'new'}", *flags)


def saved_origin(workdir: Path) -> object:
    meta = CheckpointStore(workdir / "checkpoints").meta()
    return meta and meta["init_from"]


def test_it_begins_with_the_average_and_a_fresh_optimizer_and_says_where_from(
    tmp_path: Path, origin: Path
) -> None:
    copy = shutil.copytree(origin, tmp_path / "copy")
    still = ("optimizer.learning_rate=0", "optimizer.ema_decays=0.5,0.9", "mesh.fsdp=2")
    outcome = begin(tmp_path, copy, *still, "train.num_steps=3")
    assert outcome.status == 0, outcome.err
    before, after = state_of(origin), state_of(tmp_path / "new")
    average = before["ema/default"]
    chex.assert_trees_all_equal(after["params"], average)
    chex.assert_trees_all_close(after["ema/default"], average, rtol=1e-6)
    differ = [
        np.any(a != b)
        for a, b in zip(*map(jax.tree.leaves, (before["params"], average)), strict=True)
    ]
    assert any(differ)  # The average is not the parameters themselves.
    chex.assert_trees_all_close(load_run(tmp_path / "new", ema=0.5).params, average, rtol=1e-6)
    assert after["training"]["step"] == 3
    counts = [
        leaf for leaf in jax.tree.leaves(after["training"]["opt_state"]) if leaf.dtype == np.int32
    ]
    assert counts and all(count == 3 for count in counts)
    # Where from: the checkpoint that a load reports.
    known = {"workdir": str(copy), "step": 12, "digest": load_run(origin).digest}
    assert f"begins from the averaged parameters of {copy}, step 12" in outcome.err
    assert saved_origin(tmp_path / "new") == known
    assert results(tmp_path / "new", "train")["init_from"] == known
    # A resume needs the other run no more, and remembers it.
    shutil.rmtree(copy)
    resumed = begin(tmp_path, copy, *still, "train.num_steps=6")
    assert resumed.status == 0 and "resuming at step 3" in resumed.err, resumed.err
    assert "begins from" not in resumed.err.split("resuming at step 3")[1]
    assert saved_origin(tmp_path / "new") == known
    other = begin(tmp_path, origin, *still, "train.num_steps=9")
    assert other.status == 2 and "train.init_from: " in other.err


def test_its_first_losses_are_those_of_a_trained_network(tmp_path: Path, origin: Path) -> None:
    """Same images and noise as of the origin's first steps, but with its average after 12."""
    fields = ("optimizer.learning_rate=0", "train.num_steps=3")
    assert begin(tmp_path, origin, *fields).status == 0
    random = tmp_path / "random"
    flags = [f"--config.{field}" for field in fields]
    assert run(f"--config={tmp_path / 'tiny.py'}", f"--workdir={random}", *flags).status == 0
    loss, first = (rows(folder)[0]["loss"] for folder in (tmp_path / "new", random))
    assert loss < first


def test_it_begins_from_an_imported_run_in_which_nothing_can_be_trained(
    tmp_path: Path, origin: Path
) -> None:
    loaded, imported = load_run(origin), tmp_path / "imported"
    create_run(imported, load_experiment(origin), loaded.params, None, 0, {"format": "mine"})
    refused = run(f"--workdir={imported}")
    assert refused.status == 2
    assert f"train in another --workdir with --config.train.init_from={imported}" in refused.err
    still = ("optimizer.learning_rate=0", "train.num_steps=1")
    assert begin(tmp_path, imported, *still).status == 0
    chex.assert_trees_all_equal(
        state_of(tmp_path / "new")["params"], jax.tree.map(np.asarray, loaded.params)
    )


@pytest.mark.parametrize(
    ("where", "fields", "fragments"),
    [
        ("runs/one", (), ("train.init_from is 'runs/one'; it must be a full path",)),
        ("{tmp}/nothing", (), ("train.init_from: no checkpoint in", "nothing")),
        (
            "{origin}",
            ("model.channels=24",),
            ("network of other parameters: ", " there and (", "model.channels is 16 there and 24"),
        ),
        (
            "{origin}",
            ("model.num_classes=10",),
            ("missing there", "model.num_classes is 0 there and 10 here"),
        ),
    ],
)
def test_what_it_cannot_begin_from_is_named(
    tmp_path: Path, origin: Path, where: str, fields: tuple[str, ...], fragments: tuple[str, ...]
) -> None:
    outcome = begin(tmp_path, where.format(tmp=tmp_path, origin=origin), *fields)
    assert outcome.status == 2
    line = outcome.err.splitlines()[-1]
    for fragment in ("error: ", *fragments):
        assert fragment in line
    assert not (tmp_path / "new" / "checkpoints").exists()
    assert not (tmp_path / "nothing").exists()


def test_another_prediction_is_a_warning(tmp_path: Path, origin: Path) -> None:
    outcome = begin(tmp_path, origin, "process.prediction=v", "train.num_steps=1")
    assert outcome.status == 0
    assert "process.prediction is 'eps' there and 'v' here" in outcome.err


def test_it_counts_in_the_hash_of_a_run_only_where_it_is_set() -> None:
    config = default_config()
    before = config_hash(config)
    config.train.init_from = "/runs/one"
    assert config_hash(config) != before
