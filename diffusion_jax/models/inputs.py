"""What a network is given of x_t and of the time, which is independent of what it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.errors import InputError
from diffusion_jax.options import Component, Registry
from diffusion_jax.processes.gaussian import per_image
from diffusion_jax.processes.process import Point, Process, levels_of


class Inputs(NamedTuple):
    """The inputs of a network.

    Attributes:
      x: The scaled x_t.
      time: One number per image, which a network embeds.
    """

    x: Float[Array, " b *dims"]
    time: Float[Array, " b"]


def unit_inputs(point: Point, x_t: Float[Array, " b *dims"]) -> Inputs:
    """Returns x_t / r, r^2 = signal^2 + std^2, and the time of the process.

    x_t / r has the scale of data and noise for every process: r is 1 for DDPM and VP; for VE it is the input
    scaling of Karras et al. (2022) for data of standard deviation 1.

    Args:
      point: Where on their way the images are: time, signal and std of each.
      x_t: Images at that point.
    """
    return Inputs(x_t / per_image(point.scale, x_t), point.time)


def ve_inputs(point: Point, x_t: Float[Array, " b *dims"]) -> Inputs:
    """Returns x_t itself and log(sigma / 2), as for the VE networks of Song et al. (2021) and of Karras et al. (2022).

    sigma / 2 is the noise of pixels in [0, 1], which these networks know.

    Args:
      point: Where on their way the images are: time, signal and std of each.
      x_t: Images at that point, with pixels in [-1, 1].
    """
    return Inputs(x_t, jnp.log(point.sigma / 2))


def level_inputs(process: Process) -> Callable[[Point, Array], Inputs]:
    """Returns (point, x_t) -> x_t itself and the index of the nearest noise level, 0 the noisiest.

    So are the networks of NCSN (Song & Ermon, 2019) and the discrete NCSN++ (Song et al., 2021) trained.

    Args:
      process: A discrete process.

    Raises:
      InputError: The process is trained at all times, or at one.
    """
    levels = levels_of(process)
    if levels is None or len(levels) < 2:
        raise InputError(
            "inputs is 'level', but the process has no noise levels to count; it is for ddpm and ncsn"
        )
    noisiest, between = float(levels[-1]), float(levels[1] - levels[0])

    def inputs(point: Point, x_t: Float[Array, " b *dims"]) -> Inputs:
        return Inputs(x_t, jnp.rint((noisiest - point.time) / between))

    return inputs


# Options -> (point, x_t) -> inputs.
INPUTS: Registry[Component[Callable[[Point, Array], Inputs]]] = Registry(
    "inputs",
    {
        "unit": Component(
            lambda: unit_inputs,
            "x_t / (signal^2 + std^2)^(1/2) and the time of the process",
        ),
        "ve": Component(lambda: ve_inputs, "x_t and log(sigma / 2), as in NCSN++ and EDM's VE"),
        "level": Component(
            level_inputs,
            "x_t and the index of the noise level, 0 the noisiest, as in NCSN (ncsn, ddpm)",
        ),
    },
    given=("process",),
)
