"""From a network to a denoiser: whatever the network predicts, samplers see x0, eps, v and the
score."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

from diffusion_jax.errors import choose
from diffusion_jax.processes import gaussian
from diffusion_jax.processes.gaussian import per_image
from diffusion_jax.processes.schedules import Schedule


class Prediction(NamedTuple):
    """What is predicted from x_t, in every form (`jit` drops the forms that are not used)."""

    x0: Float[Array, " b *dims"]
    eps: Float[Array, " b *dims"]
    v: Float[Array, " b *dims"]
    score: Float[Array, " b *dims"]


Denoise = Callable[[Float[Array, " b *dims"], Int[Array, " b"]], Prediction]
# apply_fn(params, x_t, t, labels): t is the float time of each image, labels None if there are
# none.
ApplyFn = Callable[[Any, Array, Array, Array | None], Array]


def _from_eps(schedule: Schedule, x_t: Array, t: Array, eps: Array) -> tuple[Array, Array]:
    return gaussian.x0_from_eps(schedule, x_t, t, eps), eps


def _from_x0(schedule: Schedule, x_t: Array, t: Array, x0: Array) -> tuple[Array, Array]:
    return x0, gaussian.eps_from_x0(schedule, x_t, t, x0)


def _from_v(schedule: Schedule, x_t: Array, t: Array, v: Array) -> tuple[Array, Array]:
    return gaussian.x0_from_v(schedule, x_t, t, v), gaussian.eps_from_v(schedule, x_t, t, v)


# (schedule, x_t, t, network output) -> (x0, eps)
PREDICTIONS: dict[str, Callable[[Schedule, Array, Array, Array], tuple[Array, Array]]] = {
    "eps": _from_eps,
    "x0": _from_x0,
    "v": _from_v,
}


def make_denoiser(
    schedule: Schedule,
    prediction: str,
    apply_fn: ApplyFn,
    params: Any,
    *,
    labels: Int[Array, " b"] | None = None,
) -> Denoise:
    """Returns (x_t, t) -> Prediction, with t the index of a step of `schedule`.

    Args:
      schedule: The schedule to sample on, possibly respaced: the network is given
        schedule.timesteps[t].
      prediction: What the network predicts, a key of `PREDICTIONS`.
      apply_fn: (params, x_t, t, labels) -> array of the shape of x_t, t being float32 of shape
        (b,).
      params: Parameters of the network.
      labels: Class of each image.

    Raises:
      InputError: Unknown prediction.
    """
    convert = choose("prediction", prediction, PREDICTIONS)

    def denoise(x_t: Float[Array, " b *dims"], t: Int[Array, " b"]) -> Prediction:
        time = per_image(schedule.timesteps, t, ndim=1)
        x0, eps = convert(schedule, x_t, t, apply_fn(params, x_t, time, labels))
        v = gaussian.v_from_x0_eps(schedule, x0, t, eps)
        return Prediction(x0, eps, v, gaussian.score_from_eps(schedule, eps, t))

    return denoise
