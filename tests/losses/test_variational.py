"""L_vlb against the bound, whose one-step estimate it is, and L_hybrid against its definition by finite differences."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import slow, slow_after, slow_but

from diffusion_jax.errors import InputError
from diffusion_jax.keys import at_time, image_normal, indexed
from diffusion_jax.likelihood.vlb import variational_bound
from diffusion_jax.losses import NoiseDraw, Objective, hybrid, loss_function, simple, vlb
from diffusion_jax.losses.time_samplers import importance
from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.models.preconditioning import PREDICTIONS
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.reverse import VARIANCES
from diffusion_jax.processes.schedules import make_schedule, schedule_arrays

T = 12
SCHEDULE = make_schedule("linear", T, 0.01, 0.6)
PROCESS = DDPM(SCHEDULE)
SHAPE = (2, 1, 1)
FIXED = [variance for variance in VARIANCES if variance != "learned"]
STEPS = np.arange(T)  # Paper step less 1: least noisy first, as u is.


def network(params: Any, x: Any, time: Any, labels: Any = None, dropout_keys: Any = None) -> Any:
    """Of the right size for any prediction and step, but neither optimal nor linear; with variances."""
    del params, labels, dropout_keys
    time = time[:, None, None, None]
    return jnp.concatenate([0.6 * jnp.tanh((1.3 - 0.07 * time) * x), 0.1 * time - 0.6 * x], -1)


def mean_alone(*inputs: Any) -> Any:
    return network(*inputs)[..., :1]


def images(n: int) -> jax.Array:
    """n images of levels of a byte, the open ones among them."""
    levels = np.random.default_rng(0).integers(0, 256, (n, *SHAPE))
    levels[:2] = np.array([0, 255]).reshape(2, 1, 1, 1)[: len(levels[:2])]
    return jnp.asarray(levels / 127.5 - 1, jnp.float32)


def network_of(variance: str) -> Any:
    return network if variance == "learned" else mean_alone


def bound(x0: jax.Array, prediction: str, variance: str) -> Any:
    """Terms from the least noisy on, (T, b), and the noise that they were measured with."""
    keys = indexed(jax.random.key(0), jnp.arange(len(x0)))
    # Nothing is clipped.
    denoise = DiffusionModel(PROCESS, prediction, network_of(variance)).denoiser(None)
    grid = make_grid(PROCESS)
    result = jax.jit(lambda: variational_bound(denoise, grid, x0, keys, variance=variance))()
    noise = jax.vmap(lambda t: image_normal(at_time(keys, t), SHAPE))
    eps = noise(jnp.broadcast_to(jnp.arange(T, dtype=jnp.float32)[:, None], (T, len(x0))))
    return np.asarray(result.terms)[::-1], eps, result.total - result.prior


# ---- L_vlb estimates the bound -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "variance"),
    slow_but(
        [("eps", "learned"), ("eps", "fixed_large")],
        [*((p, "learned") for p in PREDICTIONS), *(("eps", v) for v in FIXED)],
    ),
)
def test_the_mean_over_all_steps_is_the_bound_without_its_prior(
    prediction: str, variance: str
) -> None:
    """With the noise that the bound draws the sum is the bound's, step by step."""
    x0 = images(5)
    terms, eps, total = bound(x0, prediction, variance)
    objective = vlb(DiffusionModel(PROCESS, prediction, network_of(variance)), variance=variance)

    @jax.jit
    def losses(u: Any, eps: Any) -> Any:
        return objective.loss(None, (), x0, None, NoiseDraw(jnp.full(5, u), eps, jnp.ones(5)), None)

    of_steps = np.stack([losses((t + 0.5) / T, eps[t]) for t in STEPS])
    np.testing.assert_allclose(of_steps / T, terms, rtol=1e-5)  # Rounding in float32.
    np.testing.assert_allclose(of_steps.mean(0), total, rtol=1e-5)
    # In each step there is something to estimate.
    assert (np.abs(terms).max(1) > 1e-5 * np.abs(terms).max()).all()


@pytest.mark.parametrize(
    ("prediction", "variance"),
    slow_after(1, [("v", "fixed_small"), ("x0", "fixed_large"), ("eps", "learned")]),
)
def test_the_expected_loss_is_the_bound_without_its_prior(prediction: str, variance: str) -> None:
    """Statistically, at the times and with the noise that the objective draws."""
    n = 40_000
    level = jnp.round((images(2)[1:] * 0.3 + 1) * 127.5)  # The bound wants one of the 256.
    x0 = jnp.broadcast_to(level / 127.5 - 1, (n, *SHAPE))
    total = np.asarray(bound(x0, prediction, variance)[2], float)
    losses = np.asarray(
        drawn_losses(
            vlb(DiffusionModel(PROCESS, prediction, network_of(variance)), variance=variance),
            (),
            x0,
            seed=5,
        )[0],
        float,
    )
    error = np.hypot(losses.std(), total.std()) / np.sqrt(n)
    assert error < 0.02 * total.mean()
    assert abs(losses.mean() - total.mean()) < 3 * error


def drawn_losses(objective: Objective, aux: Any, x0: jax.Array, seed: int) -> tuple[Any, NoiseDraw]:
    @jax.jit
    def run(aux: Any, x0: Any, key: Any) -> tuple[Any, NoiseDraw]:
        draws = objective.draw(aux, key, x0.shape)
        return objective.loss(None, (), x0, None, draws, None), draws

    return run(aux, x0, jax.random.key(seed))


def test_with_the_posteriors_variance_it_is_the_papers_weighted_error_of_eps() -> None:
    """Ho et al. (2020), Eq. 12, in float64; beta^2 / (2 sigma^2 alpha (1 - alpha_bar)) |eps - eps_hat|^2."""
    beta = schedule_arrays(SCHEDULE).betas.astype(float)
    alpha_bar = np.cumprod(1 - beta)
    beta_tilde = beta[1:] * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])
    weight = beta[1:] ** 2 / (2 * beta_tilde * (1 - beta[1:]) * (1 - alpha_bar[1:]))
    x0, eps = np.random.default_rng(1).normal(size=(2, T - 1, *SHAPE)).astype(np.float32)
    draws = NoiseDraw((jnp.arange(1, T) + 0.5) / T, jnp.asarray(eps), jnp.ones(T - 1))
    loss = vlb(
        DiffusionModel(PROCESS, "eps", lambda p, x, *_: 0.3 * x), variance="fixed_small"
    ).loss
    a = alpha_bar[1:].reshape(-1, 1, 1, 1)
    error = eps - 0.3 * (np.sqrt(a) * x0 + np.sqrt(1 - a) * eps)
    expected = T * weight * np.mean(error**2, (1, 2, 3)) / np.log(2)
    np.testing.assert_allclose(
        loss(None, (), jnp.asarray(x0), None, draws, None), expected, rtol=1e-5
    )


@pytest.mark.slow
def test_importance_times_leave_the_expected_loss_unchanged_and_lower_its_spread() -> None:
    n = 40_000
    level = jnp.round((images(2)[1:] * 0.3 + 1) * 127.5)  # The bound wants one of the 256.
    x0 = jnp.broadcast_to(level / 127.5 - 1, (n, *SHAPE))
    even, uneven = (
        vlb(DiffusionModel(PROCESS, "eps", network), variance="learned", times=times)
        for times in (None, importance(num_bins=T))
    )
    aux = uneven.init(None)
    for seed in range(10):  # Until each step has its ten losses.
        losses, draws = drawn_losses(uneven, aux, x0[:200], seed)
        aux = jax.jit(uneven.update)(aux, None, draws, losses)
    losses, draws = drawn_losses(uneven, aux, x0, 20)
    weighted = np.asarray(losses * draws.weight, float)
    evenly = np.asarray(drawn_losses(even, (), x0, 21)[0], float)
    error = np.hypot(weighted.std(), evenly.std()) / np.sqrt(n)
    assert abs(weighted.mean() - evenly.mean()) < 3 * error
    assert weighted.std() < 0.8 * evenly.std() and np.std(draws.weight) > 0.1


# ---- gradients ---------------------------------------------------------------------------------------


def perceptron(params: Any, x: Any, time: Any, labels: Any, dropout_keys: Any) -> Any:
    """Two inputs and the time through three hidden units to two means and two variances."""
    time = time[:, None] / T
    hidden = jnp.tanh(jnp.concatenate([x, time], 1) @ params[:9].reshape(3, 3))
    return hidden @ params[9:].reshape(3, 4)


SIZE = 21
LAMBDA = 0.3


def frozen_mean(frozen: Any) -> Any:
    """The perceptron of which only the variances follow the parameters."""

    def run(params: Any, *inputs: Any) -> Any:
        mean, variance = perceptron(frozen, *inputs), perceptron(params, *inputs)
        return jnp.concatenate([mean[:, :2], variance[:, 2:]], 1)

    return run


def _vlb(prediction: str, variance: str) -> tuple[Any, Any]:
    objective = vlb(DiffusionModel(PROCESS, prediction, perceptron), variance=variance)
    return objective.loss, lambda frozen: objective.loss


def _hybrid(prediction: str, variance: str) -> tuple[Any, Any]:
    """The objective, and L_simple + lambda L_vlb where the mean of L_vlb is that of frozen parameters."""
    objective = hybrid(
        DiffusionModel(PROCESS, prediction, perceptron), variance=variance, vlb_weight=LAMBDA
    )

    def by_definition(frozen: Any) -> Any:
        bound = vlb(DiffusionModel(PROCESS, prediction, frozen_mean(frozen)), variance=variance)
        first = simple(DiffusionModel(PROCESS, prediction, perceptron))
        return lambda *inputs: first.loss(*inputs) + LAMBDA * bound.loss(*inputs)

    return objective.loss, by_definition


@pytest.mark.parametrize(
    ("pair", "prediction", "variance"),
    [
        slow(_vlb, "eps", "learned"),
        slow(_vlb, "v", "fixed_large"),
        slow(_vlb, "mean", "learned"),
        slow(_hybrid, "eps", "learned"),
        (_hybrid, "x0", "learned"),
    ],
)
def test_gradients_are_those_of_finite_differences(
    pair: Any, prediction: str, variance: str, rng: np.random.Generator
) -> None:
    loss_of, definition = pair(prediction, variance)
    with jax.enable_x64(True):
        params, eps = (jnp.asarray(rng.normal(size=n)) for n in (SIZE, (2 * T, 2)))
        # Of all steps; both open levels among the images.
        x0 = (
            jnp.asarray(rng.integers(0, 256, (2 * T, 2)) / 127.5 - 1).at[0].set(-1.0).at[1].set(1.0)
        )
        draws = NoiseDraw((jnp.arange(2 * T) + 0.5) / (2 * T), eps, jnp.ones(2 * T))

        def mean(loss: Any) -> Any:
            return lambda params: loss(params, (), x0, None, draws, None).mean()

        value, gradient = jax.jit(jax.value_and_grad(mean(loss_of)))(params)
        frozen = mean(definition(params))
        # Not to 1e-16: compiled otherwise, functions of the grid's constants are rounded otherwise, in float32.
        np.testing.assert_allclose(value, jax.jit(frozen)(params), rtol=1e-7)
        h = 1e-4
        both = jax.jit(jax.vmap(frozen))(
            params[None] + h * jnp.stack([jnp.eye(SIZE), -jnp.eye(SIZE)]).reshape(-1, SIZE)
        )
        differences = (both[:SIZE] - both[SIZE:]) / (2 * h)
    assert value.dtype == gradient.dtype == jnp.float64
    # Truncation is h^2 = 1e-8 of the third derivative, which the decoder's narrow Gaussian makes large; Mills'
    # ratio is good to 1e-8.
    np.testing.assert_allclose(gradient, differences, rtol=1e-5, atol=1e-5 * np.abs(gradient).max())


def test_hybrid_trains_the_mean_by_l_simple_alone_and_the_variance_by_l_vlb_alone(
    rng: np.random.Generator,
) -> None:
    n = 2 * T
    x0, eps = images(n), jnp.asarray(rng.normal(size=(n, *SHAPE)), jnp.float32)
    draws = NoiseDraw((jnp.arange(n) + 0.5) / n, eps, jnp.ones(n))
    output = jnp.asarray(rng.normal(size=(n, 2, 1, 2)), jnp.float32)

    def gradient(objective: Objective) -> np.ndarray:
        loss = lambda output: objective.loss(output, (), x0, None, draws, None).sum()  # noqa: E731
        return np.asarray(jax.jit(jax.grad(loss))(output))

    model = DiffusionModel(PROCESS, "v", lambda params, *_: params)
    of_simple, of_vlb = gradient(simple(model)), gradient(vlb(model, variance="learned"))
    both = gradient(hybrid(model, vlb_weight=LAMBDA))
    np.testing.assert_allclose(both[..., :1], of_simple[..., :1], rtol=1e-6)
    np.testing.assert_allclose(both[..., 1:], LAMBDA * of_vlb[..., 1:], rtol=1e-6, atol=1e-6)
    # Without the stop L_vlb would have moved the mean.
    assert (np.abs(of_vlb[..., :1]) > 0).all() and (of_vlb[..., 1:] != 0).all()


# ---- what the network is given -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vlb", "hybrid"])
def test_the_network_is_given_x_t_time_labels_and_dropout_keys(name: str) -> None:
    seen: dict[str, Any] = {}

    def spy(params: Any, x_t: Any, time: Any, labels: Any, dropout_keys: Any) -> Any:
        seen.update(params=params, x_t=x_t, time=time, labels=labels, keys=dropout_keys)
        return jnp.concatenate([x_t, x_t], -1)

    objective = loss_function(name, DiffusionModel(PROCESS, "eps", spy), variance="learned")
    x0, eps = images(2), jnp.full((2, *SHAPE), 0.5)
    labels, keys = jnp.array([3, 4]), jax.random.split(jax.random.key(0))
    last = np.nextafter(np.float32(1), np.float32(0))
    draws = NoiseDraw(jnp.array([0.0, last]), eps, jnp.ones(2))

    @jax.jit  # All but what is returned is left out.
    def given() -> Any:
        objective.loss("params", (), x0, labels, draws, keys)
        return seen.pop("time"), seen.pop("x_t")

    time, x_t = given()
    assert seen["params"] == "params" and seen["labels"] is labels and seen["keys"] is keys
    # u = 0 is step 1 and the last u below 1 step T; a time is a step less 1.
    np.testing.assert_array_equal(time, [0, T - 1])
    alpha_bar = np.cumprod(1 - schedule_arrays(SCHEDULE).betas.astype(float))[[0, -1]].reshape(
        2, 1, 1, 1
    )
    expected = np.sqrt(alpha_bar) * np.asarray(x0) + np.sqrt(1 - alpha_bar) * 0.5
    np.testing.assert_allclose(x_t, expected, rtol=1e-5)


@pytest.mark.parametrize("num_timesteps", [1, 3, 1000, 4000])
def test_each_step_has_its_part_of_u_as_in_l_simple(num_timesteps: int) -> None:
    process = DDPM(make_schedule("cosine", num_timesteps))
    u = jnp.linspace(0, np.nextafter(np.float32(1), np.float32(0)), 501)
    draws = NoiseDraw(u, jnp.zeros((501, *SHAPE)), jnp.ones(501))
    seen: list[Any] = []

    def spy(params: Any, x_t: Any, time: Any, *_: Any) -> Any:
        seen.append(time)
        return x_t

    @jax.jit  # All but the times is left out.
    def times() -> list[Any]:
        for objective in (
            simple(DiffusionModel(process, "eps", spy)),
            vlb(DiffusionModel(process, "eps", spy)),
        ):
            objective.loss(None, (), jnp.zeros((501, *SHAPE)), None, draws, None)
        return [seen.pop(), seen.pop()]

    of_vlb, of_simple = times()
    np.testing.assert_array_equal(of_vlb, of_simple)
    assert of_vlb[0] == 0 and of_vlb[-1] == num_timesteps - 1


@pytest.mark.parametrize(
    ("name", "prediction"),
    slow_but([("vlb", "eps")], [*(("vlb", p) for p in PREDICTIONS), ("hybrid", "eps")]),
)
def test_a_chain_that_ends_in_noise_alone_has_finite_losses_and_gradients(
    name: str, prediction: str
) -> None:
    objective = loss_function(
        name,
        DiffusionModel(
            DDPM(make_schedule("jsd", T)),
            prediction,
            lambda params, *inputs: params * network(None, *inputs),
        ),
        variance="learned",
    )
    eps = jax.random.normal(jax.random.key(0), (T, *SHAPE))
    draws = NoiseDraw((jnp.arange(T) + 0.5) / T, eps, jnp.ones(T))

    @jax.jit
    def run(params: Any) -> Any:
        losses, pull = jax.vjp(
            lambda p: objective.loss(p, (), images(T), None, draws, None), params
        )
        return losses, pull(jnp.ones(T))[0]

    losses, gradients = run(jnp.ones((T, 1, 1, 1)))  # A parameter an image.
    chex.assert_tree_all_finite((losses, gradients))
    assert (np.asarray(gradients) != 0).sum() >= T - 1


# ---- wrong options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vlb", {"weighting": lambda point: point.signal}, "the loss 'vlb' takes no weighting"),
        ("vlb", {"vlb_weight": 0.1}, "the loss 'vlb' takes no vlb_weight"),
        ("simple", {"variance": "learned"}, "the loss 'simple' takes no variance"),
        ("simple", {"vlb_weight": 0.1}, "the loss 'simple' takes no vlb_weight"),
        (
            "hybrid",
            {"variance": "fixed_large"},
            "'hybrid' is for the variance 'learned', not 'fixed_l",
        ),
    ],
)
def test_options_that_a_loss_does_not_have_are_refused(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        loss_function(name, DiffusionModel(PROCESS, "eps", network), **options)


@pytest.mark.parametrize(
    ("variance", "message"),
    [("lerned", "unknown variance 'lerned'"), ("learned", "no channels for it")],
)
def test_a_variance_that_is_unknown_or_that_the_network_lacks_is_refused(
    variance: str, message: str
) -> None:
    draws = NoiseDraw(jnp.array([0.5]), jnp.zeros((1, *SHAPE)), jnp.ones(1))
    with pytest.raises(InputError, match=message):
        vlb(DiffusionModel(PROCESS, "eps", mean_alone), variance=variance).loss(
            None, (), images(1), None, draws, None
        )
