"""Each weighting times the squared error of eps, computed in float64 from the papers' definitions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.losses import (
    LOSSES,
    WEIGHTINGS,
    NoiseDraw,
    Objective,
    TrainingLoss,
    Weighting,
    loss_function,
    simple,
    simple_loss,
)
from diffusion_jax.losses.weightings import min_snr, p2
from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.models.preconditioning import PREDICTIONS
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import SMALLEST, Point, Process
from diffusion_jax.processes.schedules import make_schedule, schedule_arrays
from diffusion_jax.processes.sde import VE, VP, SubVP

T = 100
SCHEDULE = make_schedule("linear", T)
PROCESS = DDPM(SCHEDULE)
BETA = schedule_arrays(SCHEDULE).betas.astype(float)
ALPHA_BAR = np.cumprod(1 - BETA)
TIMES = np.array([0, 20, 45, 99])

# Of alpha_bar = a: sigmoid(b - log SNR) = 1 / (1 + e^-b SNR).
BY_HAND: dict[str, Callable[[Any], Any]] = {
    "snr": lambda a: a**0,
    "truncated_snr": lambda a: np.maximum(a, 1 - a) / a,
    "min_snr": lambda a: np.minimum(a, 5 * (1 - a)) / a,
    "p2": lambda a: 1 - a,
    # The SDE with log alpha_bar linear in t has g^2 = -log(1 - beta_t) in a step, of which there are T in u.
    "likelihood": lambda a: -T / 2 * np.log(1 - BETA[TIMES]) / (1 - a),
    "sigmoid": lambda a: (1 - a) / (1 - a + np.exp(-2) * a),
}
# Of the mean, Ho et al. (2020), Eq. 7: the coefficients of x_0 and x_t.
BEFORE = np.append(1.0, ALPHA_BAR)[TIMES]
COEF_X0, COEF_XT = (
    x[:, None, None, None]
    for x in (
        np.sqrt(BEFORE) * BETA[TIMES] / (1 - ALPHA_BAR[TIMES]),
        np.sqrt(1 - BETA[TIMES]) * (1 - BEFORE) / (1 - ALPHA_BAR[TIMES]),
    )
)
# Of EDM, Karras et al. (2022), Table 1.
SIGMA = np.sqrt(1 / ALPHA_BAR[TIMES] - 1)[:, None, None, None]
SKIP, OUT = 0.25 / (SIGMA**2 + 0.25), SIGMA * 0.5 / np.sqrt(SIGMA**2 + 0.25)
TARGETS: dict[str, Callable[..., Any]] = {
    "eps": lambda a, s, x0, eps: eps,
    "x0": lambda a, s, x0, eps: x0,
    "v": lambda a, s, x0, eps: a * eps - s * x0,
    "mean": lambda a, s, x0, eps: COEF_X0 * x0 + COEF_XT * (a * x0 + s * eps),
    # std times the gradient of log N(x_t; a x0, s^2).
    "score": lambda a, s, x0, eps: s * (-(s * eps) / s**2),
    "velocity": lambda a, s, x0, eps: eps - x0,
    # Karras et al. (2022), Eq. 8, of y = x0 + sigma eps and data of standard deviation 0.5.
    "edm": lambda a, s, x0, eps: (x0 - SKIP * (x0 + s / a * eps)) / OUT,
}
# What eps the network's output stands for, from x_t = a x0 + s eps.
EPS: dict[str, Callable[..., Any]] = {
    "eps": lambda a, s, x_t, output: output,
    "x0": lambda a, s, x_t, output: (x_t - a * output) / s,
    "v": lambda a, s, x_t, output: s * x_t + a * output,
    "mean": lambda a, s, x_t, output: (x_t - a * (output - COEF_XT * x_t) / COEF_X0) / s,
    "score": lambda a, s, x_t, output: -output,
    "velocity": lambda a, s, x_t, output: (x_t + a * output) / (a + s),
    "edm": lambda a, s, x_t, output: (x_t - a * (SKIP * x_t / a + OUT * output)) / s,
}


def weighting_of(name: str, process: Process = PROCESS) -> Weighting:
    """The weighting of that name, given the process if it takes one."""
    return WEIGHTINGS[name].bind(process=process)()


def losses(prediction: str, output: Any, x0: Any, eps: Any, **options: Any) -> np.ndarray:
    """Returns the losses at TIMES of a network with this output."""
    x0, eps, output = (jnp.asarray(x, jnp.float32) for x in (x0, eps, output))
    times = jnp.asarray(TIMES)
    network = lambda params, *_: params  # noqa: E731
    return np.asarray(
        simple_loss(DiffusionModel(PROCESS, prediction, network), output, x0, times, eps, **options)
    )


@pytest.fixture
def images(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x0, eps, and an error of the network's output."""
    x0, eps, error = rng.normal(size=(3, 4, 2, 2, 3))
    return x0, eps, error


@pytest.mark.parametrize("prediction", TARGETS)
@pytest.mark.parametrize("name", BY_HAND)
def test_the_loss_is_the_weight_times_the_squared_error_of_eps(
    name: str, prediction: str, images: tuple
) -> None:
    x0, eps, error = images
    a, s = (np.sqrt(x[TIMES])[:, None, None, None] for x in (ALPHA_BAR, 1 - ALPHA_BAR))
    output = TARGETS[prediction](a, s, x0, eps) + error
    eps_hat = EPS[prediction](a, s, a * x0 + s * eps, output)
    expected = BY_HAND[name](ALPHA_BAR[TIMES]) * np.mean((eps - eps_hat) ** 2, (1, 2, 3))
    actual = losses(prediction, output, x0, eps, weighting=weighting_of(name))
    # Inputs rounded to float32, where outputs are up to ten times their errors.
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_every_weighting_and_every_prediction_is_compared() -> None:
    assert BY_HAND.keys() == WEIGHTINGS.keys()
    assert TARGETS.keys() == EPS.keys() == PREDICTIONS.keys()


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(sigma_min=0.05, sigma_max=5.0)])
def test_the_likelihood_weighting_is_the_rate_at_which_the_kl_of_two_noised_normals_falls(
    process: Process,
) -> None:
    """d KL(p_u || q_u) / du = -g^2 / 2 E_p |score_p - score_q|^2 (Song et al., 2021b, Theorem 1), by differences."""

    def kl(time: np.ndarray) -> np.ndarray:
        points = process.at(time)
        a2, s2 = points.signal**2, points.std**2
        p, q = (
            a2 * 0.4**2 + s2,
            a2 * 0.7**2 + s2,
        )  # Variances of the noised N(0, 0.4^2) and N(0, 0.7^2).
        return (p / q - 1 - np.log(p / q)) / 2

    last, *_, data = make_grid(process).time
    u = np.array([0.02, 0.1, 0.4, 0.8])
    time, h = data + (last - data) * u, 1e-5
    fall = -(kl(time + h) - kl(time - h)) / (2 * h) * (last - data)
    points = process.at(time)
    p, q = (points.signal**2 * width**2 + points.std**2 for width in (0.4, 0.7))
    eps_error = points.std**2 * (1 / p - 1 / q) ** 2 * p  # E of (std x / p - std x / q)^2.
    weight = WEIGHTINGS["likelihood"](process=process)(process.at(jnp.asarray(time, jnp.float32)))
    np.testing.assert_allclose(weight * eps_error, fall, rtol=1e-4)  # Of times rounded to float32.


def test_min_snr_of_x0_is_the_papers_weight_of_the_x0_error(images: tuple) -> None:
    """Hang et al. (2023): min(SNR, gamma) times the squared error of x0."""
    x0, eps, error = images
    snr = ALPHA_BAR[TIMES] / (1 - ALPHA_BAR[TIMES])
    assert (snr[0] > 3) and (snr[-1] < 3)
    expected = np.minimum(snr, 3) * np.mean(error**2, (1, 2, 3))
    actual = losses("x0", x0 + error, x0, eps, weighting=min_snr(gamma=3.0))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize(("k", "gamma"), [(1.0, 1.0), (0.5, 0.0), (2.0, 0.5)])
def test_p2_is_the_papers_weight_of_the_variational_loss(
    k: float, gamma: float, images: tuple
) -> None:
    """Choi et al. (2022), Eq. 5-8: lambda_t / (k + SNR)^gamma, lambda_t = (1 - beta)(1 - alpha_bar) / beta."""
    x0, eps, error = images
    beta, a = BETA[TIMES], ALPHA_BAR[TIMES]
    variational = beta / ((1 - beta) * (1 - a)) * np.mean(error**2, (1, 2, 3))
    weight = (1 - beta) * (1 - a) / beta / (k + a / (1 - a)) ** gamma
    actual = losses("eps", eps + error, x0, eps, weighting=p2(k=k, gamma=gamma))
    np.testing.assert_allclose(actual, weight * variational, rtol=1e-5)


def test_weighing_by_snr_an_eps_prediction_is_l_simple(images: tuple) -> None:
    x0, eps, error = images
    weighted = losses("eps", eps + error, x0, eps, weighting=WEIGHTINGS["snr"]())
    np.testing.assert_array_equal(weighted, losses("eps", eps + error, x0, eps))


EXTREME = Point(jnp.zeros(2), jnp.array([SMALLEST, 1.0]), jnp.array([1.0, SMALLEST]))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weights_are_finite_from_an_erased_image_to_an_untouched_one(
    name: str, prediction: str
) -> None:
    process = DDPM(make_schedule("jsd", T))
    end = process.at(jnp.array([0, T - 1]))
    assert end.signal.min() == np.float32(SMALLEST)
    for point in (end, EXTREME):
        factor = PREDICTIONS[prediction].bind(process=process)().eps_error(point)
        weight = weighting_of(name, process)(point) * jnp.square(factor)
        assert np.isfinite(weight).all() and (np.asarray(weight) >= 0).all()


def test_weights_with_the_widest_options_are_finite() -> None:
    for k, gamma in ((1e-3, 10.0), (1e3, 10.0), (1e-3, 0.0)):
        weight = p2(k=k, gamma=gamma)(EXTREME)
        assert np.isfinite(np.asarray(weight * jnp.square(EXTREME.signal / EXTREME.std))).all()
    for gamma in (1e-3, 1e6):
        assert np.isfinite(np.asarray(min_snr(gamma=gamma)(EXTREME))).all()


def test_a_loss_without_weighting_refuses_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(model: DiffusionModel) -> Objective:
        return simple(model)

    monkeypatch.setitem(LOSSES, "plain", TrainingLoss(plain, "plain"))
    network = lambda params, x, *_: x  # noqa: E731
    loss_function("plain", DiffusionModel(PROCESS, "eps", network))
    with pytest.raises(InputError, match="the loss 'plain' takes no weighting"):
        loss_function("plain", DiffusionModel(PROCESS, "eps", network), weighting=p2())


# ---- gradients ---------------------------------------------------------------------------------------


def perceptron(params: Any, x: Any, time: Any, labels: Any, dropout_keys: Any) -> Any:
    """Two inputs and the time through three hidden units."""
    time = time[:, None] / T
    hidden = jnp.tanh(jnp.concatenate([x, time], 1) @ params[:9].reshape(3, 3))
    return hidden @ params[9:].reshape(3, 2)


@pytest.mark.parametrize("name", [None, *WEIGHTINGS])
def test_gradients_are_those_of_finite_differences(
    name: str | None, rng: np.random.Generator
) -> None:
    weighting = weighting_of(name) if name else None
    objective = loss_function(
        "simple", DiffusionModel(PROCESS, "v", perceptron), weighting=weighting
    )
    with jax.enable_x64(True):
        params, x0, eps = (jnp.asarray(rng.normal(size=n)) for n in (15, (6, 2), (6, 2)))
        draws = NoiseDraw(jnp.linspace(0, 0.99, 6), eps, jnp.ones(6))
        loss = lambda params: objective.loss(params, (), x0, None, draws, None).mean()  # noqa: E731
        value, gradient = jax.jit(jax.value_and_grad(loss))(params)
        assert value.dtype == gradient.dtype == jnp.float64
        h = 1e-4
        both = jax.jit(jax.vmap(loss))(
            params[None] + h * jnp.stack([jnp.eye(15), -jnp.eye(15)]).reshape(30, 15)
        )
        differences = (both[:15] - both[15:]) / (2 * h)
    # Truncation is h^2 = 1e-8 of the third derivative, rounding 1e-16 / h = 1e-12 of the loss.
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-6 * np.abs(gradient).max())
