"""The ladder of NCSN, its levels, and the rules that choose it against the paper's own numbers."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import pdist

from diffusion_jax.errors import InputError
from diffusion_jax.losses.time_samplers import training_time
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.ncsn import NCSN, ladder_ratio, largest_distance, num_levels

# Song & Ermon (2020), Table 1 of the appendix: set, side of an image, sigma_1 and L, for sigma_L = 0.01.
PAPER = [(32, 50.0, 232), (64, 90.0, 500), (96, 140.0, 788), (128, 190.0, 1086), (256, 348.0, 2311)]


def test_the_whole_grid_is_the_geometric_ladder_and_then_the_data():
    grid = make_grid(NCSN(sigma_min=0.01, sigma_max=1.0, num_timesteps=5))
    np.testing.assert_allclose(grid.std, [*np.geomspace(1, 0.01, 5), 0], rtol=1e-7)
    np.testing.assert_array_equal(grid.log_signal, 0)
    assert grid.prior_std == 1


def test_training_visits_each_level_as_often_and_nothing_else(compiled):
    process = NCSN(sigma_min=0.01, sigma_max=1.0, num_timesteps=5)
    u = (jnp.arange(100) + 0.5) / 100
    point = compiled(lambda u: process.at(training_time(process, u)))(u)
    # float32 of log sigma up to 4.6 in size.
    np.testing.assert_allclose(point.std, np.repeat(np.geomspace(0.01, 1, 5), 20), rtol=2e-6)


@pytest.mark.parametrize(("side", "sigma_max", "levels"), PAPER)
def test_the_number_of_levels_is_the_papers(side, sigma_max, levels):
    dims = side * side * 3
    # All of the paper's ladders overlap by 0.567; with the 0.5 of its rule they have 6% fewer levels.
    assert num_levels(0.01, sigma_max, dims, overlap=0.567) == pytest.approx(levels, rel=2e-3)
    assert num_levels(0.01, sigma_max, dims) == pytest.approx(0.943 * levels, rel=5e-3)


def test_noise_of_neighboring_levels_overlaps_as_the_rule_says(rng):
    """The length of noise of 300 dimensions, drawn: how often it is within three deviations of the level above's."""
    dims, n = 300, 4000
    gamma = ladder_ratio(dims)
    length = np.sqrt((rng.normal(size=(n, dims)) ** 2).sum(1))
    # In many dimensions the length is normal, of mean D^(1/2) sigma and deviation sigma / 2^(1/2).
    within = np.abs(length - gamma * np.sqrt(dims)) < 3 * gamma / np.sqrt(2)
    # The normal's own error, and five standard errors.
    assert within.mean() == pytest.approx(0.5, abs=0.03 + 5 * 0.5 / np.sqrt(n))


def test_in_few_dimensions_two_levels_overlap_however_far_apart():
    assert ladder_ratio(2) == np.inf and num_levels(0.01, 5.0, 2) == 2


@pytest.mark.parametrize(("sigma_min", "sigma_max"), [(5.0, 0.01), (1.0, 1.0), (0.0, 1.0)])
def test_a_ladder_that_does_not_rise_has_no_number_of_levels(
    sigma_min: float, sigma_max: float
) -> None:
    message = f"sigma_min is {sigma_min} and sigma_max is {sigma_max}; they must be positive"
    with pytest.raises(InputError, match=message):
        num_levels(sigma_min, sigma_max, 3072)


def test_the_largest_distance_is_that_of_all_pairs(rng):
    images = rng.uniform(-1, 1, (1203, 3, 2, 1))
    exact = pdist(images.reshape(len(images), -1)).max()
    assert largest_distance(images) == pytest.approx(exact, rel=1e-9)
    assert largest_distance(images[1100:]) <= exact


def test_a_ladder_that_does_not_rise_is_refused():
    with pytest.raises(InputError, match="sigma_min is 2.0 and sigma_max is 1.0"):
        NCSN(sigma_min=2.0, sigma_max=1.0)


def test_a_ladder_of_one_level_is_refused():
    with pytest.raises(InputError, match="num_timesteps is 1; it must be at least 2 for ncsn"):
        NCSN(num_timesteps=1)
