"""Images of imported runs against those that the libraries draw; benchmarks/parity/trajectories.py wrote these."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.experiment.sampling import drawing, traced_options
from diffusion_jax.main import main
from diffusion_jax.runs import load_run
from diffusion_jax.samplers import sample_loop

FIXTURES = Path(__file__).parent / "fixtures"
CASES = {
    name: case
    for name, case in json.loads(
        (Path(__file__).parents[2] / "benchmarks/parity/trajectories.json").read_text()
    ).items()
    if case.get("fixture")
}


@pytest.mark.parametrize("name", CASES)
def test_an_imported_run_draws_the_librarys_images_from_the_same_noise(name, tmp_path):
    case, source, workdir = CASES[name], tmp_path / "theirs", tmp_path / "run"
    shutil.copytree(FIXTURES / case["network"], source)
    if "scheduler" in case:
        path = source / "scheduler/scheduler_config.json"
        path.write_text(json.dumps(case["scheduler"]))
    flags = [f"--config.{field}={value}" for field, value in case.get("fields", {}).items()]
    flags += [f"--source_settings={case['settings']}"] if "settings" in case else []
    source /= case.get("file", "")
    assert main(["--mode=import", f"--source={source}", f"--workdir={workdir}", *flags]) == 0
    run = load_run(workdir)
    assert run.config.sample.seed == 0

    expected = np.load(FIXTURES / "trajectories.npz")[name]
    indices = jnp.arange(len(expected))

    def draw(params: Any) -> Any:
        parts = drawing(
            run, params, traced_options(run), indices, 7 * indices if run.num_classes else None
        )
        return sample_loop(*parts, run.image_shape).images

    images = np.asarray(jax.jit(draw)(run.params))
    assert 0.1 < np.abs(expected).mean() < 0.9
    np.testing.assert_allclose(images, expected, atol=1e-4, rtol=0)
