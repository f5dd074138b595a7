"""From a network to a denoiser: whatever the network predicts, samplers see x0, eps, v and the score.

A network with twice the channels of the image also says how large the variance of a reverse step is (Nichol &
Dhariwal, 2021, Section 3.1).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.errors import InputError, choose
from diffusion_jax.processes import gaussian
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import Point, Process

# A network as a pure function, (params, x, time, labels=None, dropout_keys=None) -> output: images x of shape
# (b, *dims), scaled as `network_output` says, float time and integer labels of shape (b,); keys of shape (b,) turn
# dropout on. The output has the shape of x, or twice its channels. `networks.as_functions` makes one of a Linen module.
Network = Callable[..., Array]


class Prediction(NamedTuple):
    """What is predicted from x_t, in every form (`jit` drops the forms that are not used).

    Attributes:
      x0: The clean image.
      eps: The noise.
      v: The velocity.
      score: Gradient of log q(x_t).
      fraction: Where the log variance of a reverse step lies between its bounds, 0 at the posterior's, log
        beta_tilde_t, and 1 at log beta_t, unlimited; None if the network predicts none.
    """

    x0: Float[Array, " b *dims"]
    eps: Float[Array, " b *dims"]
    v: Float[Array, " b *dims"]
    score: Float[Array, " b *dims"]
    fraction: Float[Array, " b *dims"] | None = None


# (x_t, point) -> Prediction
Denoise = Callable[[Float[Array, " b *dims"], Point], Prediction]


class Parameterization(NamedTuple):
    """What the output of a network means.

    Attributes:
      target: (point, x_t, x0, eps) -> what the network should return.
      predict: (point, x_t, output) -> (x0, eps).
      eps_error: point -> factor between errors: eps_hat - eps = factor * (output - target).
    """

    target: Callable[[Point, Array, Array, Array], Array]
    predict: Callable[[Point, Array, Array], tuple[Array, Array]]
    eps_error: Callable[[Point], Array]


def _eps(process: Process) -> Parameterization:
    del process
    return Parameterization(
        target=lambda point, x_t, x0, eps: eps,
        predict=lambda point, x_t, eps: (gaussian.x0_from_eps(point, x_t, eps), eps),
        eps_error=lambda point: jnp.ones_like(point.signal),
    )


def _score(process: Process) -> Parameterization:
    """The network returns std times the score, -eps: its output is divided by the noise level (Song & Ermon, 2020)."""
    del process
    return Parameterization(
        target=lambda point, x_t, x0, eps: -eps,
        predict=lambda point, x_t, output: (gaussian.x0_from_eps(point, x_t, -output), -output),
        eps_error=lambda point: -jnp.ones_like(point.signal),
    )


def _x0(process: Process) -> Parameterization:
    del process
    return Parameterization(
        target=lambda point, x_t, x0, eps: x0,
        predict=lambda point, x_t, x0: (x0, gaussian.eps_from_x0(point, x_t, x0)),
        eps_error=lambda point: -point.signal / point.std,
    )


def _v(process: Process) -> Parameterization:
    del process
    return Parameterization(
        target=lambda point, x_t, x0, eps: gaussian.v_from_x0_eps(point, x0, eps),
        predict=lambda point, x_t, v: (
            gaussian.x0_from_v(point, x_t, v),
            gaussian.eps_from_v(point, x_t, v),
        ),
        eps_error=lambda point: point.signal / point.scale,
    )


def _mean(process: Process) -> Parameterization:
    """mu_tilde, the mean of q(x_s | x_t, x_0), where s is the step before t on the process's whole grid.

    Its coefficients (Ho et al., 2020, Eq. 7) are those of the time, whichever steps a sampler takes; between two times
    of the grid they are interpolated.
    """
    grid = make_grid(process)
    table = gaussian.steps(grid)
    times = jnp.asarray(grid.time[-2::-1], jnp.float32)  # Ascending, without the data.

    def interpolated(point: Point, values: Float[np.ndarray, " n"]) -> Array:
        return jnp.interp(point.time, times, jnp.asarray(values[::-1], jnp.float32))

    def coefficients(point: Point, x: Array) -> list[Array]:
        return [
            gaussian.per_image(interpolated(point, values), x)
            for values in (table.coef_x0, table.coef_xt)
        ]

    def target(point: Point, x_t: Array, x0: Array, eps: Array) -> Array:
        del eps
        coef_x0, coef_xt = coefficients(point, x_t)
        return coef_x0 * x0 + coef_xt * x_t

    def predict(point: Point, x_t: Array, mean: Array) -> tuple[Array, Array]:
        coef_x0, coef_xt = coefficients(point, x_t)
        x0 = (mean - coef_xt * x_t) / coef_x0
        return x0, gaussian.eps_from_x0(point, x_t, x0)

    def eps_error(point: Point) -> Array:
        return -point.signal / point.std / interpolated(point, table.coef_x0)

    return Parameterization(target, predict, eps_error)


# The process decides the mean's coefficients, and nothing of the others.
PARAMETERIZATIONS: dict[str, Callable[[Process], Parameterization]] = {
    "eps": _eps,
    "x0": _x0,
    "v": _v,
    "mean": _mean,
    "score": _score,
}


def parameterization(prediction: str, process: Process) -> Parameterization:
    """Returns what the output of a network means that makes this prediction.

    Raises:
      InputError: Unknown prediction.
    """
    return choose("prediction", prediction, PARAMETERIZATIONS)(process)


class Output(NamedTuple):
    """What a network says of x_t.

    Attributes:
      mean: Its prediction.
      fraction: As in `Prediction`; None if the network has no channels for it.
    """

    mean: Float[Array, " b *dims"]
    fraction: Float[Array, " b *dims"] | None


def network_output(
    network: Network,
    params: Any,
    x_t: Float[Array, " b *dims"],
    point: Point,
    *given: Any,
) -> Output:
    """Returns the network's output for x_t, split into the prediction and what it says of the variance.

    The network is given x_t / r, r^2 = signal^2 + std^2, which is of the size of data and noise whatever the process:
    r is 1 for DDPM and VP; for VE it is the input scaling of Karras et al. (2022). If its output has twice the channels
    of x_t, the second half, v in [-1, 1] with 0 before training, gives the fraction (v + 1) / 2.

    Args:
      network: (params, scaled x_t, time, *given) -> output.
      params: Its parameters.
      x_t: Noised images.
      point: Where they are.
      *given: What else the network is given: labels, dropout keys.

    Raises:
      InputError: The output has neither the channels of x_t nor twice as many.
    """
    scaled = x_t / gaussian.per_image(point.scale, x_t)
    output = network(params, scaled, point.time, *given)
    if output.shape == x_t.shape:
        return Output(output, None)
    if output.shape != (*x_t.shape[:-1], 2 * x_t.shape[-1]):
        raise InputError(
            f"the network returns {output.shape} for images of {x_t.shape}; it must return their channels, or twice "
            "as many for learned variances"
        )
    mean, v = jnp.split(output, 2, axis=-1)
    return Output(mean, (v + 1) / 2)


def make_denoiser(
    process: Process,
    prediction: str,
    network: Network,
    params: Any,
    *,
    labels: Int[Array, " b"] | Int[np.ndarray, " b"] | None = None,
) -> Denoise:
    """Returns (x_t, point) -> Prediction, where `point` says how noisy each image is.

    Args:
      process: The process that the network was trained on.
      prediction: What the network predicts, a key of `PARAMETERIZATIONS`.
      network: As `network_output` takes it.
      params: Parameters of the network.
      labels: Class of each image.

    Raises:
      InputError: Unknown prediction.
    """
    predict = parameterization(prediction, process).predict

    def denoise(x_t: Float[Array, " b *dims"], point: Point) -> Prediction:
        output = network_output(network, params, x_t, point, labels)
        return complete(point, *predict(point, x_t, output.mean), output.fraction)

    return denoise


def complete(
    point: Point,
    x0: Float[Array, " b *dims"],
    eps: Float[Array, " b *dims"],
    fraction: Float[Array, " b *dims"] | None = None,
) -> Prediction:
    """Returns the prediction that x0 and eps of one x_t are parts of."""
    v, score = gaussian.v_from_x0_eps(point, x0, eps), gaussian.score_from_eps(point, eps)
    return Prediction(x0, eps, v, score, fraction)
