"""Sliced score matching against the squared error of the noise, and against scores that are known."""

import jax
import jax.numpy as jnp
import nonlinear_sde
import numpy as np
import optax
import pytest
from slow import slow

from diffusion_jax.keys import SlicedScoreStream, fold_in, indexed
from diffusion_jax.likelihood.divergence import draw_probes
from diffusion_jax.losses import loss_function, sliced_objective
from diffusion_jax.losses.time_samplers import uniform
from diffusion_jax.losses.weightings import snr
from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.parallel.sharding import make_mesh, over_batch
from diffusion_jax.processes.dynamics import SDE, normal_prior
from diffusion_jax.processes.sde import VE, VP
from diffusion_jax.training.state import TrainState
from diffusion_jax.training.step import make_train_step

BATCHES, N = 40, 2000
KEYS = indexed(jax.random.key(8), jnp.arange(BATCHES))


def network(params, x, time, labels=None, dropout_keys=None):
    """Neither linear nor a gradient, with a Jacobian that has other numbers than its diagonal's."""
    first, second = params
    return jnp.tanh(x @ first) @ second + 0.1 * x


PARAMS = tuple(jax.random.normal(jax.random.key(1), (2, 2, 3))[i] for i in range(2))
PARAMS = PARAMS[0], PARAMS[1].T


def estimates(objective, draw_x0, params, n=N):
    """Loss and gradient of each of the batches of n, a row each."""

    def one(key):
        x0_key, key = jax.random.split(key)
        x0, draws = draw_x0(x0_key), objective.draw(objective.init(None), key, (n, 2))

        def mean_loss(params):
            return objective.loss(params, (), x0, None, draws, None).mean()

        loss, gradient = jax.value_and_grad(mean_loss)(params)
        return jnp.concatenate([loss[None], *(leaf.ravel() for leaf in jax.tree.leaves(gradient))])

    return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(KEYS), float)


def agree(a, b) -> None:
    """Five standard errors of the difference of the means of the batches, of the same noise."""
    error = (a - b).std(0, ddof=1) / np.sqrt(BATCHES)
    np.testing.assert_array_less(np.abs((a - b).mean(0)), 5 * error + 1e-6)


@pytest.mark.parametrize(
    ("prediction", "process", "probes"),
    [
        slow("eps", VP(), 1),
        ("score", VE(sigma_min=0.3), 1),
        slow("v", VP(), 2),
    ],
)
def test_loss_and_gradient_are_those_of_the_squared_error_of_eps_in_expectation(
    prediction, process, probes
):
    model, times = DiffusionModel(process, prediction, network), uniform(u_min=0.05)
    ours = loss_function("sliced", model, num_probes=probes, times=times)
    simple = loss_function("simple", model, weighting=snr(), times=times)

    def draw_x0(key):
        return 0.4 + 0.6 * jax.random.normal(key, (N, 2))

    got, expected = (estimates(objective, draw_x0, PARAMS) for objective in (ours, simple))
    agree(got, expected)
    # They can be told apart from no gradient and from half of one.
    spread = (got - expected).std(0) / np.sqrt(BATCHES)
    assert (np.abs(expected.mean(0)) > 20 * spread).any()


def test_a_weighting_multiplies_the_loss_and_probes_divide_its_variance(key):
    process = VP()
    x0 = 0.6 * jax.random.normal(key, (N, 2))

    def losses(first, **options):
        """Losses of the same times and noise, with keys of one's own."""
        objective = loss_function(
            "sliced", DiffusionModel(process, "eps", network), times=uniform(u_min=0.05), **options
        )
        draws = objective.draw(objective.init(None), key, (N, 2))
        draws = draws._replace(keys=indexed(key, first + jnp.arange(N)))
        return np.asarray(jax.jit(objective.loss)(PARAMS, (), x0, None, draws, None), float)

    double = losses(0, weighting=lambda point: 2 * jnp.ones_like(point.std))
    np.testing.assert_allclose(double, 2 * losses(0), rtol=1e-5, atol=1e-5)
    one, many = (losses(0, num_probes=k) - losses(N, num_probes=k) for k in (1, 16))
    assert abs((one - many).mean()) < 5 * one.std() / np.sqrt(N) * np.sqrt(17 / 16)
    # Variances of 2,000 numbers have standard errors of some percent.
    np.testing.assert_allclose(many.var() / one.var(), 1 / 16, rtol=0.25)


def test_a_batch_divided_over_devices_has_the_loss_of_the_whole(key):
    objective = loss_function("sliced", DiffusionModel(VP(), "eps", network))
    x0 = jax.random.normal(key, (8, 2))
    draws = objective.draw(objective.init(None), key, (8, 2))

    def loss(params, x0, draws):
        return objective.loss(params, (), x0, None, draws, None)

    mesh = make_mesh(4)
    parts = jax.jit(over_batch(loss, mesh))(PARAMS, x0, draws)
    np.testing.assert_allclose(parts, jax.jit(loss)(PARAMS, x0, draws), rtol=1e-5)


def off_by(theta, x, t, labels=None, dropout_keys=None):
    return nonlinear_sde.score(x, t) + theta * x


def test_along_an_sde_that_is_not_affine_the_loss_is_least_at_the_true_score_by_the_known_amount():
    """E loss(s + theta x) - E loss(s) = theta^2 E x^2, with E x^2 / 2 = tau + tau^2 / 2 in two dimensions."""
    objective = sliced_objective(nonlinear_sde.BENES, off_by, num_steps=40)
    n = 500

    def draw_x0(key):
        sign_key, key = jax.random.split(key)
        sign = jax.random.rademacher(sign_key, (n, 1), jnp.float32)
        return sign * nonlinear_sde.S * 2**-0.5 + nonlinear_sde.S**0.5 * jax.random.normal(
            key, (n, 2)
        )

    at, away = (estimates(objective, draw_x0, theta, n) for theta in (0.0, 0.5))
    first, last = nonlinear_sde.S, nonlinear_sde.S + nonlinear_sde.END
    square = ((last**2 - first**2) / 2 + (last**3 - first**3) / 6) / (last - first)
    for got, expected in ((at[:, 1], 0), (away[:, 0] - at[:, 0], 0.25 * square)):
        # Steps of 1/40 of the way, 0.0125 on average, are off by some such part of the x^2.
        error = got.std(ddof=1) / np.sqrt(BATCHES)
        assert abs(got.mean() - expected) < 5 * error + 0.0125 * square


def wells(x):
    """-grad U of the two wells U = (x_1^2 - 1)^2 + (x_2 - x_1)^2 / 2: not affine, and exp(-U) stationary."""
    x1, x2 = x[:, :1], x[:, 1:]
    return jnp.concatenate([4 * x1 * (1 - x1**2) + x2 - x1, x1 - x2], -1)


@pytest.mark.slow
def test_a_train_step_finds_the_score_of_a_stationary_density(rng):
    """Least squares of a score in a basis that has -grad U: the coefficients of the stationary Gibbs density."""
    sde = SDE(
        lambda x, t: wells(x.reshape(-1, 2)).reshape(x.shape),
        lambda t: jnp.full_like(t, 2**0.5),
        0.0,
        0.05,
        normal_prior(),
    )
    grid = np.linspace(-2.5, 2.5, 20_001)
    cdf = np.cumsum(np.exp(-((grid**2 - 1) ** 2)))
    first = np.interp(
        rng.random(1500), cdf / cdf[-1], grid
    )  # exp(-U) in x_1; x_2 is normal about it.
    x0 = jnp.asarray(np.stack([first, first + rng.normal(size=1500)], -1), jnp.float32)

    def model(params, x, t, labels=None, dropout_keys=None):
        x = x.reshape(-1, 2)
        basis = jnp.concatenate([x, x[:, :1] ** 3], -1)
        return (basis @ params).reshape(-1, 1, 1, 2)

    objective = sliced_objective(sde, model, num_steps=10)
    optimizer = optax.adam(optax.exponential_decay(0.3, 80, 0.3))
    step = jax.jit(make_train_step(objective, optimizer, jax.random.key(0)))
    params, batch = jnp.zeros((3, 2)), {"image": x0.reshape(-1, 1, 1, 2)}
    state = TrainState(
        jnp.zeros((), jnp.int32), params, {}, optimizer.init(params), objective.init(None)
    )
    for _ in range(250):
        state, _ = step(state, batch)
    # x_1: 4 x_1 - 4 x_1^3 + x_2 - x_1; x_2: x_1 - x_2.
    expected = np.array([[3, 1], [1, -1], [-4, 0]])
    # 1,500 images, moved anew in each step by steps of 0.0025 on average, whose bias is 2% of these.
    np.testing.assert_allclose(state.params, expected, atol=0.3)


def test_probes_are_independent_of_the_noise(key):
    objective = loss_function("sliced", DiffusionModel(VP(), "eps", network))
    draws = objective.draw(objective.init(None), key, (4096, 1))
    assert draws.keys is not None
    keys = fold_in(draws.keys, SlicedScoreStream.PROBES)
    probes = draw_probes(keys, (1,))[0, :, 0]
    # Five standard deviations of the correlation of independent pairs.
    assert abs(np.corrcoef(probes, draws.eps[:, 0])[0, 1]) < 5 / 64
    assert abs(np.corrcoef(probes, draws.u)[0, 1]) < 5 / 64
