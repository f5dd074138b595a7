"""Every file in configs/ gives a valid config whose parts can be built."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.build import AVERAGE, build, make_averages_of, make_optimizer_of, validate
from diffusion_jax.config import load_file
from diffusion_jax.models import count_parameters

FILES = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
SHAPES = {
    "digits": ((8, 8, 1), 10),
    "fashion_mnist": ((28, 28, 1), 10),
    "cifar10": ((32, 32, 3), 10),
}
PARAMETERS = {"cifar10": 35_746_307, "celebahq256": 113_673_219, "lsun256": 113_673_219}


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_every_config_file_is_valid_and_its_network_can_be_built(path):
    config = load_file(str(path))
    validate(config)
    name, size = config.data.name, config.data.image_size
    shape, classes = SHAPES.get(name) or ((size, size, 3), config.model.num_classes)
    experiment = build(config, shape, classes)
    experiment.objective()
    experiment.sampler()
    make_optimizer_of(config)
    params = jax.eval_shape(experiment.model.init, jax.random.key(0))
    if path.stem in PARAMETERS:
        assert count_parameters(params) == PARAMETERS[path.stem]


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_the_recipes_of_ho_et_al_average_without_a_warm_up(path):
    config = load_file(str(path))
    first = float(make_averages_of(config)[AVERAGE](jnp.asarray(0)))
    of_ho_et_al = path.stem in PARAMETERS
    assert first == pytest.approx(0.9999 if of_ho_et_al else 0.1)
