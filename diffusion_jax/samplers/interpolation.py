"""Interpolation of two images: of their x_t (Ho et al., 2020, Figure 8), or their latents (Song et al., 2021)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.models.denoiser import Denoise
from diffusion_jax.processes.gaussian import per_image, q_sample
from diffusion_jax.samplers.loop import Sampler, SampleResult, first_noise, sample_loop

PARALLEL = 1e-4  # Angle below which a straight line is the arc, to seven digits.


def interpolate(
    denoise: Denoise,
    sampler: Sampler,
    keys: Key[Array, " b"],
    x0: Float[Array, " b *dims"],
    other: Float[Array, " b *dims"],
    fraction: Float[Array, " b"],
    point: int | Int[Array, ""],
) -> SampleResult:
    """Interpolates two images: x_t = (1 - fraction) x_t + fraction x_t', then the reverse process; call inside `jit`.

    Both have the same noise, so that the mixture has the noise of the point as well. Images with one key and several
    fractions share it too, and the noise of the steps.

    Args:
      denoise: (x_t, point) -> Prediction.
      sampler: Update rule.
      keys: One key per image.
      x0: Images at fraction 0, in [-1, 1].
      other: Images at fraction 1.
      fraction: Position of each image between both.
      point: Index of the point of the grid to mix at, in {0, ..., num_steps - 1}; may be traced, so that one program
        serves all. At 0, the noisiest, little of the images is left.
    """
    at = sampler.grid.at(jnp.full(keys.shape, point))
    eps = first_noise(keys, x0.shape[1:])
    x_t, other_t = (q_sample(at, images, eps) for images in (x0, other))
    mixed = per_image(1 - fraction, x0) * x_t + per_image(fraction, x0) * other_t
    return sample_loop(denoise, sampler, keys, x0.shape[1:], x_init=mixed, start=point)


def slerp(
    x: Float[Array, " b *dims"], other: Float[Array, " b *dims"], fraction: Float[Array, " b"]
) -> Float[Array, " b *dims"]:
    """Returns the point at that fraction of the arc from x to another, image by image (Shoemake, 1985).

    Between two normal noises it is as long as they are; a straight line would be shorter in the middle.

    Args:
      x: Images at fraction 0.
      other: Images at fraction 1.
      fraction: Part of the way, in [0, 1].

    Example:
      >>> x, other = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
      >>> dj.samplers.slerp(x, other, jnp.array([0.5])).round(3)
      Array([[0.707, 0.707]], dtype=float32)
    """

    def inner(a: Array, b: Array) -> Array:
        return jnp.sum(a * b, axis=tuple(range(1, x.ndim)))

    cosine = inner(x, other) / jnp.sqrt(inner(x, x) * inner(other, other))
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    safe = jnp.maximum(angle, PARALLEL)
    weights = [
        jnp.where(angle < PARALLEL, part, jnp.sin(part * safe) / jnp.sin(safe))
        for part in (1 - fraction, fraction)
    ]
    return per_image(weights[0], x) * x + per_image(weights[1], x) * other
