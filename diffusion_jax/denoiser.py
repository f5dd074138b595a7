"""From a network to a denoiser: whatever the network predicts, samplers see x0, eps, v and the score."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

from diffusion_jax.errors import choose
from diffusion_jax.processes import gaussian
from diffusion_jax.processes.process import Point

# A network as a pure function, (params, x, time, labels=None, dropout_keys=None) -> output: images x of shape
# (b, *dims), float time and integer labels of shape (b,); keys of shape (b,) turn dropout on. The output has the
# shape of x, or more channels. `models.as_functions` makes one of a Linen module.
Network = Callable[..., Array]


class Prediction(NamedTuple):
    """What is predicted from x_t, in every form (`jit` drops the forms that are not used)."""

    x0: Float[Array, " b *dims"]
    eps: Float[Array, " b *dims"]
    v: Float[Array, " b *dims"]
    score: Float[Array, " b *dims"]


# (x_t, point) -> Prediction
Denoise = Callable[[Float[Array, " b *dims"], Point], Prediction]


class Parameterization(NamedTuple):
    """What the output of a network means.

    Attributes:
      target: (point, x0, eps) -> what the network should return.
      predict: (point, x_t, output) -> (x0, eps).
      outputs: Channels of the output for each channel of the image.
    """

    target: Callable[[Point, Array, Array], Array]
    predict: Callable[[Point, Array, Array], tuple[Array, Array]]
    outputs: int = 1


PARAMETERIZATIONS = {
    "eps": Parameterization(
        target=lambda point, x0, eps: eps,
        predict=lambda point, x_t, eps: (gaussian.x0_from_eps(point, x_t, eps), eps),
    ),
    "x0": Parameterization(
        target=lambda point, x0, eps: x0,
        predict=lambda point, x_t, x0: (x0, gaussian.eps_from_x0(point, x_t, x0)),
    ),
    "v": Parameterization(
        target=gaussian.v_from_x0_eps,
        predict=lambda point, x_t, v: (
            gaussian.x0_from_v(point, x_t, v),
            gaussian.eps_from_v(point, x_t, v),
        ),
    ),
}


def make_denoiser(
    prediction: str,
    network: Network,
    params: Any,
    *,
    labels: Int[Array, " b"] | None = None,
) -> Denoise:
    """Returns (x_t, point) -> Prediction, where `point` says how noisy each image is.

    Args:
      prediction: What the network predicts, a key of `PARAMETERIZATIONS`.
      network: (params, x_t, time, labels) -> array of the shape of x_t; time is `point.time`.
      params: Parameters of the network.
      labels: Class of each image.

    Raises:
      InputError: Unknown prediction.
    """
    predict = choose("prediction", prediction, PARAMETERIZATIONS).predict

    def denoise(x_t: Float[Array, " b *dims"], point: Point) -> Prediction:
        return complete(point, *predict(point, x_t, network(params, x_t, point.time, labels)))

    return denoise


def complete(
    point: Point, x0: Float[Array, " b *dims"], eps: Float[Array, " b *dims"]
) -> Prediction:
    """Returns the prediction that x0 and eps of one x_t are parts of."""
    return Prediction(
        x0, eps, gaussian.v_from_x0_eps(point, x0, eps), gaussian.score_from_eps(point, eps)
    )
