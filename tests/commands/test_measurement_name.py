"""Folders of measurements keep their names, so that those of an earlier version go on."""

import numpy as np
import pytest

import diffusion_jax
from diffusion_jax.commands import job
from diffusion_jax.config import default_config
from diffusion_jax.data.split import from_arrays
from diffusion_jax.experiment import build
from diffusion_jax.runs import Run

SPLIT = from_arrays(np.zeros((1, 8, 8, 1), np.uint8))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of which all that the fields of eval do not say is fixed."""
    monkeypatch.setattr(diffusion_jax, "__version__", "0.1.0")
    monkeypatch.setattr(build.config_lib, "config_hash", lambda config: "0123456789ab")
    monkeypatch.setattr(job.data, "fingerprint", lambda split: "fingerprint")
    config = default_config()
    config.model.name = "mlp"
    experiment = vars(build.build(config, SPLIT.image_shape, 0))
    return Run(**experiment, params=None, step=7, digest="digest", training_config=config)


# As version 0.1.0 named them.
@pytest.mark.parametrize(("metric", "digest"), [("bpd", "8b0e12ae44"), ("ode_bpd", "d93f0c077f")])
def test_a_measurement_with_the_defaults_has_its_old_name(
    run: Run, metric: str, digest: str
) -> None:
    assert job.measurement_name(run, SPLIT, metric) == f"step00000007-test-{digest}"


@pytest.mark.parametrize(("metric", "digest"), [("bpd", "aaf97baff1"), ("ode_bpd", "8ff71412d2")])
def test_options_of_a_metric_and_no_others_are_part_of_its_name(
    run: Run, metric: str, digest: str
) -> None:
    fields = run.config.eval
    fields.spacing, fields.u_min, fields.variance = (0, 4, 19), 1e-4, "fixed_small"
    fields.num_terms, fields.rtol = 5, 1e-3
    assert job.measurement_name(run, SPLIT, metric) == f"step00000007-test-{digest}"
    fields.num_images, fields.batch_size = 5, 6
    assert job.measurement_name(run, SPLIT, metric) == f"step00000007-test-{digest}"
