"""Training objectives: L_simple of Ho et al. (2020), Eq. 14, and its like for x0 and v."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.errors import choose
from diffusion_jax.processes.gaussian import per_image, q_sample, v_from_x0_eps
from diffusion_jax.processes.schedules import Schedule

# (params, x_t, t, labels, dropout_key) -> output; t is the float time of each image.
TrainApplyFn = Callable[[Any, Array, Array, Array | None, Array | None], Array]

# (schedule, x0, t, eps) -> what the network should return
TARGETS: dict[str, Callable[[Schedule, Array, Array, Array], Array]] = {
    "eps": lambda schedule, x0, t, eps: eps,
    "x0": lambda schedule, x0, t, eps: x0,
    "v": v_from_x0_eps,
}


def simple_loss(
    schedule: Schedule,
    prediction: str,
    apply_fn: TrainApplyFn,
    params: Any,
    x0: Float[Array, " b *dims"],
    t: Int[Array, " b"],
    eps: Float[Array, " b *dims"],
    labels: Int[Array, " b"] | None = None,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, " b"]:
    """Returns each image's squared error of the network, the mean over all dimensions but the
    batch.

    With eps prediction: mean (eps - eps_hat(x_t, t))^2, Ho et al. (2020), Eq. 14. x0 and v are
    compared in their own space, unweighted (Salimans & Ho, 2022). The expectation over t and eps is
    the caller's: the mean over the batch.

    Args:
      schedule: Variance schedule of T steps.
      prediction: What the network predicts: eps, x0 or v.
      apply_fn: (params, x_t, t, labels, dropout_key) -> array of the shape of x_t.
      params: Parameters of the network.
      x0: Clean images in [-1, 1].
      t: Timestep of each image, in {0, ..., T - 1}.
      eps: Standard normal noise.
      labels: Class of each image.
      dropout_key: Source of the network's dropout; None turns it off.

    Raises:
      InputError: Unknown prediction.
    """
    target = choose("prediction", prediction, TARGETS)(schedule, x0, t, eps)
    x_t = q_sample(schedule, x0, t, eps)
    time = per_image(schedule.timesteps, t, ndim=1)
    output = apply_fn(params, x_t, time, labels, dropout_key)
    return jnp.mean(jnp.square(target - output), axis=tuple(range(1, x0.ndim)))


LOSSES: dict[str, Callable[..., Float[Array, " b"]]] = {"simple": simple_loss}
