"""Images and parameters that are not finite are named, with status 1, and no picture of them is written."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import digits_in, run, write_config

from diffusion_jax.checkpoints.store import CheckpointStore
from diffusion_jax.config import default_config
from diffusion_jax.errors import InputError, RunError
from diffusion_jax.experiment import build
from diffusion_jax.experiment.sampling import check_finished
from diffusion_jax.samplers import SolverStats

OF_16 = np.arange(16) < 4  # Finished images.


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    with digits_in(tmp_path_factory.mktemp("cache")) as folder:
        yield folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = write_config(folder, "config.train.num_steps = 4")
    assert run(f"--config={config}", f"--workdir={folder / 'run'}").status == 0
    return folder / "run"


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """One number of one array of every checkpoint that is read is NaN."""

    def restore(self: Any, template: Any, step: int | None = None) -> Any:
        checkpoint = sound(self, template, step)
        assert checkpoint is not None
        leaves, tree = jax.tree.flatten(checkpoint.parts)
        leaves[0] = leaves[0].at[(0,) * leaves[0].ndim].set(np.nan)
        return dataclasses.replace(checkpoint, parts=jax.tree.unflatten(tree, leaves))

    sound = CheckpointStore.restore
    monkeypatch.setattr(CheckpointStore, "restore", restore)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("mode", "fields"),
    [
        ("sample", []),
        ("inpaint", ["edit.keep=nothing", "edit.start_t=10"]),
        ("interpolate", ["edit.times=10"]),
        ("interpolate", ["edit.times=10", "edit.latents=true", "sampler.name=ddim"]),
    ],
)
def test_parameters_that_are_not_finite_give_one_line_and_no_images(workdir, mode, fields):
    more = [f"--config.{field}" for field in fields]
    outcome = run(f"--workdir={workdir}", f"--mode={mode}", *more)
    assert outcome.status == 1
    lines = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "images are not finite, and neither are 1 of the" in lines[0], outcome.err
    assert not list(workdir.rglob("images.npz")) and not list(workdir.rglob("interpolation.npz"))


def experiment_of(sampler: str) -> build.Experiment:
    config = default_config()
    config.sampler.name, config.model.name, config.model.num_classes = sampler, "mlp", 0
    return build.build(config, (8, 8, 1), 0)


def test_images_that_are_not_finite_though_the_parameters_are_are_no_unfinished_solution():
    solved = SolverStats(jnp.full(16, 90), jnp.ones(16, bool), jnp.zeros(16))
    with pytest.raises(RunError, match="12 of 16 images are not finite, though the parameters are"):
        check_finished(experiment_of("ancestral"), {"w": np.ones(3)}, OF_16, solved)
    with pytest.raises(RunError, match="12 of 16 images are not finite, though") as raised:
        check_finished(experiment_of("ode_adaptive"), {"w": np.ones(3)}, OF_16, solved)
    assert "max_steps" not in str(raised.value)
    stuck = solved._replace(finished=jnp.asarray(OF_16), reached=jnp.full(16, 5.0))
    with pytest.raises(
        InputError, match="12 of 16 .* the solver stopped at t = 5 after sampler.max"
    ):
        check_finished(experiment_of("ode_adaptive"), {"w": np.ones(3)}, OF_16, stuck)
    check_finished(experiment_of("ancestral"), {"w": np.full(3, np.nan)}, np.ones(16, bool), solved)
