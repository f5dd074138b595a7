"""A part of the steps of a sampling job, to be compiled once for all parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax import data
from diffusion_jax.experiment.build import Experiment
from diffusion_jax.experiment.sampling import TracedOptions, all_finite, drawing
from diffusion_jax.processes.ode import SolverStats
from diffusion_jax.samplers import first_noise, sample_loop


def make_draw_part(experiment: Experiment) -> Callable[..., tuple]:
    """Returns what draws steps `start` to `stop` of a sampler without memory, for `make_sampler_in_parts`."""

    def draw(
        params: Any,
        traced: TracedOptions,
        start: Array,
        stop: Array,
        indices: Array,
        labels: Array | None,
        x: Float[Array, "b h w c"],
    ) -> tuple[Array, Array, SolverStats, Array]:
        parts, shape = drawing(experiment, params, traced, indices, labels), experiment.image_shape
        x = jnp.where(start == 0, parts.sampler.prior_std * first_noise(parts.keys, shape), x)
        result = sample_loop(*parts, shape, x_init=x, start=start, stop=stop)
        finite = all_finite(result.images)
        return result.images, data.to_uint8(result.images), result.stats, finite

    return draw
