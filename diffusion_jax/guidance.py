"""Wrappers of a denoiser: denoiser in, denoiser out."""

from jaxtyping import Array, Float

from diffusion_jax.denoiser import Denoise, Prediction, complete
from diffusion_jax.processes.gaussian import clip_x0, eps_from_x0
from diffusion_jax.processes.process import Point


def clip_denoised(denoise: Denoise) -> Denoise:
    """Returns the denoiser with its x0 limited to [-1, 1], and eps, v and score those of the limited x0."""

    def clipped(x_t: Float[Array, " b *dims"], point: Point) -> Prediction:
        prediction = denoise(x_t, point)
        x0 = clip_x0(prediction.x0)
        return complete(point, x0, eps_from_x0(point, x_t, x0), prediction.fraction)

    return clipped
