"""What a training says of the pictures that it draws."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.processes.ode import SolverStats
from diffusion_jax.samplers.batches import Samples
from diffusion_jax.training.hooks import pictures_hook
from diffusion_jax.training.run_log import RunLog
from diffusion_jax.training.state import TrainState


def samples(finite: bool = True) -> Samples:
    frames = np.zeros((3, 4, 8, 8, 1), np.uint8)
    known = np.full(4, finite)
    stats = SolverStats(jnp.full(4, 2), jnp.ones(4, bool), jnp.zeros(4))
    return Samples(frames[0], frames, frames, None, stats, known)


def test_each_grid_is_named_with_its_step_and_path_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(tmp_path, 0, 10, writes=True)
    state = TrainState(jnp.asarray(4), {}, {"one": {}}, (), ())
    hook = pictures_hook(lambda params: samples(), "one", tmp_path, log, every=2)
    for _ in range(2):  # A resumed run has the pictures of its step.
        hook.run(state, 4)
    said = "".join(capsys.readouterr())
    assert said.count(f"step 4: samples {tmp_path}/samples/grid-00000004.png") == 1
    with pytest.warns(UserWarning, match="no samples at step 6"):
        pictures_hook(lambda params: samples(False), "one", tmp_path, log, every=2).run(state, 6)
    assert "step 6: samples" not in "".join(capsys.readouterr())
    log.close()
