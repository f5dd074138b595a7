"""The exact likelihood of known densities, divergences, and dequantization."""

import jax
import jax.numpy as jnp
import mixture_data
import numpy as np
import pytest
from samplers import normal_data
from slow import slow_but

from diffusion_jax.errors import InputError
from diffusion_jax.keys import indexed
from diffusion_jax.likelihood.divergence import (
    PROBES,
    draw_probes,
    exact_divergence,
    hutchinson,
)
from diffusion_jax.likelihood.exact import (
    bits_per_dim,
    dequantize,
    dequantized_likelihood,
    exact_likelihood,
    flow_likelihood,
)
from diffusion_jax.parallel.sharding import make_mesh, over_batch
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import Grid
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.processes.sde import VE, VP, SubVP

PROCESSES = {
    "ddpm": DDPM(make_schedule("linear", 1000)),
    "vp": VP(),
    "subvp": SubVP(),
    "ve": VE(sigma_min=0.02, sigma_max=100.0),
}


U_MIN = {"vp": 1e-5}


def keys_of(n: int) -> jax.Array:
    return indexed(jax.random.key(5), jnp.arange(n))


def noised(grid: Grid, x0: np.ndarray, rng: np.random.Generator) -> jax.Array:
    """Draws at the grid's last point before the data."""
    signal, std = np.exp(grid.log_signal[-2]), grid.std[-2]
    return jnp.asarray(signal * x0 + std * rng.normal(size=x0.shape), jnp.float32)


def log_mixture(grid: Grid, x: np.ndarray) -> np.ndarray:
    """Log density of the noised mixture at the grid's last point before the data: components as wide as they get."""
    signal, std = np.exp(grid.log_signal[-2]), grid.std[-2]
    c = signal**2 * mixture_data.STDS**2 + std**2
    away = np.asarray(x, np.float64)[:, None] - signal * mixture_data.MEANS
    parts = mixture_data.WEIGHTS / (2 * np.pi * c) * np.exp(-(away**2).sum(-1) / (2 * c))
    return np.log(parts.sum(-1))


@pytest.mark.parametrize("name", slow_but(["vp"], PROCESSES))
def test_the_likelihood_of_a_mixture_is_its_density_to_a_thousandth_of_a_nat_a_dimension(name, rng):
    process = PROCESSES[name]
    grid = make_grid(process, 2, u_min=U_MIN.get(name))
    x = noised(grid, mixture_data.draw(rng, 200), rng)
    result = jax.jit(lambda x: exact_likelihood(mixture_data.optimal, grid, process, x))(x)
    assert result.finished.all()
    error = np.abs(np.asarray(result.log_likelihood) - log_mixture(grid, np.asarray(x)))
    # The model's prior is not quite what the data become (of sub-VP: of std 1 in place of 0.99996).
    assert error.mean() / 2 < 1e-3, error.mean() / 2


def test_the_likelihood_of_normal_data_is_the_normal_density_with_any_probes(rng):
    """A normal flow is linear with a diagonal Jacobian: of it signs give the trace without any variance."""
    process, shape = PROCESSES["vp"], (4, 4, 3)
    grid = make_grid(process, 2, u_min=U_MIN["vp"])
    x = noised(grid, rng.normal(normal_data.MEAN, normal_data.STD, (8, *shape)), rng)
    drawn = draw_probes(keys_of(8), shape)

    def score(x, drawn):
        exact = exact_likelihood(normal_data.optimal, grid, process, x)
        probes = hutchinson(jnp.moveaxis(drawn, 1, 0))
        signs = exact_likelihood(normal_data.optimal, grid, process, x, probes)
        return exact, signs

    mesh = make_mesh(2)
    exact, signs = jax.jit(over_batch(lambda _, x, e: score(x, e), mesh, (0, 0)))(
        (), x, jnp.moveaxis(drawn, 1, 0)
    )
    width = normal_data.width(grid, grid.num_steps - 1)
    unit = (np.asarray(x, np.float64) - np.exp(grid.log_signal[-2]) * normal_data.MEAN) / width
    log_p = (-(unit**2) / 2 - np.log(width) - np.log(2 * np.pi) / 2).sum((1, 2, 3))
    # x_T keeps a mean of 0.002, and its pixels are as far as that from the prior's.
    np.testing.assert_allclose(exact.log_likelihood / 48, log_p / 48, atol=1e-3)
    np.testing.assert_allclose(signs.log_likelihood / 48, log_p / 48, atol=1e-3)


def linear_field(matrix):
    return lambda y, t: y @ matrix.T * (1 + t)[:, None]


def test_the_divergence_of_a_linear_map_is_its_trace_and_hutchinsons_mean_is_it(rng, compiled):
    matrix = jnp.asarray(rng.normal(size=(3, 3)), jnp.float32)
    f, y = (lambda y: y @ matrix.T), jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
    value, trace = compiled(lambda y: exact_divergence(f, y))(y)
    np.testing.assert_allclose(value, y @ matrix.T, rtol=1e-6)
    np.testing.assert_allclose(trace, np.full(2, np.trace(matrix)), rtol=1e-5)


@pytest.mark.parametrize("kind", PROBES)
def test_hutchinsons_estimate_is_unbiased(kind, rng):
    matrix, n = rng.normal(size=(3, 3)), 20_000
    f = lambda y: y @ jnp.asarray(matrix.T, jnp.float32)  # noqa: E731
    probes = draw_probes(keys_of(n), (3,), kind=kind)
    estimates = np.asarray(jax.jit(lambda y: hutchinson(probes)(f, y)[1])(jnp.ones((n, 3))))
    # Variance of e' A e (Hutchinson, 1990): off the diagonal for signs, of the whole for normal numbers.
    symmetric = (matrix + matrix.T) / 2
    variance = 2 * (symmetric**2).sum()
    if kind == "rademacher":
        variance -= 2 * (np.diag(matrix) ** 2).sum()
    assert abs(estimates.mean() - np.trace(matrix)) < 4 * np.sqrt(variance / n)
    assert estimates.var() == pytest.approx(variance, rel=0.1)


def test_several_probes_are_averaged_and_each_image_has_its_own():
    matrix = jnp.asarray([[0.0, 1], [1, 0]])
    probes = draw_probes(keys_of(6), (2,), num_probes=3)
    assert len(np.unique(np.asarray(probes).reshape(18, 2), axis=0)) == 4
    _, trace = hutchinson(probes)(lambda y: y @ matrix, jnp.ones((6, 2)))
    np.testing.assert_allclose(trace, (2 * probes[..., 0] * probes[..., 1]).mean(0), rtol=1e-6)


def test_the_likelihood_of_a_flow_of_ones_own_is_the_normal_density_that_it_makes(rng):
    """Of dx/dt = (1 + t) A x, x_0 of a normal x_1 is normal: with M = exp(3/2 A), of covariance M^-1 M^-T."""
    matrix = np.array([[0.3, 0.8], [-0.4, -0.1]])
    x = rng.normal(size=(5, 2))
    field = linear_field(jnp.asarray(matrix, jnp.float32))

    def log_prior(y):
        return -jnp.sum(y * y, -1) / 2 - np.log(2 * np.pi)

    result = jax.jit(
        lambda x: flow_likelihood(field, x, jnp.zeros(5), jnp.ones(5), log_prior, rtol=1e-6)
    )(jnp.asarray(x, jnp.float32))
    values, vectors = np.linalg.eig(1.5 * matrix)
    m = (vectors @ np.diag(np.exp(values)) @ np.linalg.inv(vectors)).real
    end = x @ m.T
    log_p = -(end**2).sum(-1) / 2 - np.log(2 * np.pi) + np.log(np.linalg.det(m))
    np.testing.assert_allclose(result.log_likelihood, log_p, atol=1e-4)


def test_a_likelihood_that_the_limit_of_steps_cut_short_is_not_a_number():
    process = PROCESSES["ddpm"]
    x = jnp.ones((2, 2))
    result = jax.jit(
        lambda x: exact_likelihood(
            mixture_data.optimal, make_grid(process, 2), process, x, max_steps=3
        )
    )(x)
    assert not result.finished.any() and np.isnan(result.log_likelihood).all()


def test_dequantized_values_are_even_over_the_bin_of_their_level():
    levels = jnp.asarray([[0, 255, 77]] * 4000, jnp.uint8)
    x = np.asarray(dequantize(levels, keys_of(4000)))
    part = (x + 1) * 127.5 - np.asarray(levels) + 0.5  # Of the bin, from its lower end.
    assert part.min() > -1e-4 and part.max() < 1 + 1e-4
    # Mean and variance of a uniform number, to four standard errors.
    np.testing.assert_allclose(part.mean(0), 0.5, atol=4 / np.sqrt(12 * 4000))
    np.testing.assert_allclose(part.var(0), 1 / 12, atol=4 * np.sqrt(1 / 180 / 4000))
    same = dequantize(levels / jnp.float32(127.5) - 1, keys_of(4000))
    np.testing.assert_allclose(same, x, atol=1e-6)


def test_numbers_between_the_levels_are_refused():
    with pytest.raises(InputError, match="holds? 0.001"):
        dequantize(jnp.full((1, 2), 0.001), keys_of(1))
    with pytest.raises(InputError, match="unknown probes 'normal'"):
        draw_probes(keys_of(1), (2,), kind="normal")


def test_even_density_has_eight_bits_and_every_dequantization_of_normal_data_its_own():
    # A density of 1/2 on [-1, 1] gives each level but the ends 1/255.
    even = bits_per_dim(jnp.asarray([3 * np.log(0.5)], jnp.float32), 3)
    np.testing.assert_allclose(even, [np.log2(255)], rtol=1e-6)
    process = PROCESSES["vp"]
    images = jnp.asarray([[100, 150]] * 3, jnp.uint8)

    @jax.jit
    def score(images, keys):
        return dequantized_likelihood(
            normal_data.optimal, make_grid(process, 2, u_min=U_MIN["vp"]), process, images, keys
        )

    first, other = (score(images, jax.random.split(jax.random.key(k), 3)) for k in (0, 1))
    bits = np.stack([bits_per_dim(r.log_likelihood, 2) for r in (first, other)])
    assert len(np.unique(bits)) == 6
    # Bits of the levels under the normal density, whose slope within a bin is 1%.
    value = np.array([100, 150]) / 127.5 - 1
    density = np.exp(-(((value - normal_data.MEAN) / normal_data.STD) ** 2) / 2)
    density /= np.sqrt(2 * np.pi) * normal_data.STD
    np.testing.assert_allclose(bits, -np.log2(density / 127.5).mean(), atol=0.03)
