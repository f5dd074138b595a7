"""Every file in configs/ gives a valid config whose parts can be built."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from slow import slow_after

from diffusion_jax.commands.signals import handled
from diffusion_jax.config import AUTO, load_file, with_num_classes
from diffusion_jax.errors import InputError
from diffusion_jax.experiment.build import (
    build,
    make_optimizer_of,
    tracked_of,
    validate,
)
from diffusion_jax.experiment.sampling import make_sampler
from diffusion_jax.models.networks import count_parameters
from diffusion_jax.training.tracked import AVERAGE

FILES = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
SHAPES = {
    "digits": ((8, 8, 1), 10),
    "fashion_mnist": ((28, 28, 1), 10),
    "cifar10": ((32, 32, 3), 10),
}
PARAMETERS = {  # Of the recipes from papers.
    "cifar10": 35_746_307,
    "cifar10_hybrid": 49_066_246,
    "cifar10_vlb": 49_066_246,
    "cifar10_ncsn": 35_746_307,
    "cifar10_subvp": 35_746_307,
    "cifar10_ve": 35_746_307,
    "cifar10_vp": 35_746_307,
    "celebahq256": 113_673_219,
    "lsun256": 113_673_219,
}


@pytest.mark.parametrize("path", slow_after(5, FILES), ids=[path.stem for path in FILES])
def test_every_config_file_is_valid_and_its_network_can_be_built(path):
    config = load_file(str(path))
    validate(config)
    name, size = config.data.name, config.data.image_size
    shape, classes = SHAPES.get(name) or ((size, size, 3), config.model.num_classes)
    if classes == AUTO:
        classes, config = 4, with_num_classes(config, 4)
    experiment = build(config, shape, classes)
    experiment.objective()
    make_sampler(experiment)
    make_optimizer_of(config)
    params = jax.eval_shape(experiment.network.init, jax.random.key(0))
    if path.stem in PARAMETERS:
        assert count_parameters(params) == PARAMETERS[path.stem]


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_the_recipes_from_papers_average_without_a_warm_up(path):
    config = load_file(str(path))
    first = float(tracked_of(config).make()[AVERAGE](jnp.asarray(0)))
    others = dict.fromkeys(("cifar10_ncsn", "cifar10_ve"), 0.999)
    others |= {"cifar10_h100": 0.9999, "cifar10_v5e16": 0.9999**16}  # Per 128 images, as the paper.
    known = others | {name: others.get(name, 0.9999) for name in PARAMETERS}
    assert first == pytest.approx(known.get(path.stem, 0.1))


@pytest.mark.parametrize("name", slow_after(1, ["cifar10_hybrid", "cifar10_vlb"]))
def test_the_recipes_with_learned_variances_train_means_and_variances(name):
    """With a perceptron instead of the U-Net, which compiles sooner, and whose outputs are all 0 at first."""
    config = load_file(str(FILES[0].parent / f"{name}.py"))
    config.model.update(name="mlp", channels=8, num_res_blocks=1)
    experiment = build(config, (32, 32, 3), 10)
    objective = experiment.objective()

    @jax.jit
    def gradient(key):
        x0 = jax.random.uniform(key, (2, 32, 32, 3)) * 2 - 1
        draws = objective.draw(objective.init(None), key, x0.shape)

        def loss(params):
            keys = jax.random.split(key, 2)
            return objective.loss(params, (), x0, None, draws, keys).mean()

        return jax.value_and_grad(loss)(experiment.network.init(key))

    loss, gradients = gradient(jax.random.key(0))
    assert 0 < loss < jnp.inf
    for leaf in jax.tree.leaves(gradients["dense_out"]):
        means, variances = jnp.split(leaf.reshape(-1, 6), 2, axis=1)  # Of each pixel.
        assert jnp.isfinite(leaf).all() and (means != 0).any() and (variances != 0).any()


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class E(Exception): __str__ = None\n    raise E", "E"),
    ],
)
def test_a_config_file_that_raises_what_no_command_expects_is_refused(tmp_path, body, named):
    (tmp_path / "config.py").write_text(f"def get_config():\n    {body}\n")
    with handled(), pytest.raises(InputError, match=f"config.py: {named}$"):
        load_file(str(tmp_path / "config.py"))


@pytest.mark.usefixtures("interrupts")
def test_in_a_notebook_an_interrupt_while_a_config_file_runs_is_the_users(tmp_path):
    (tmp_path / "config.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_file(str(tmp_path / "config.py"))
