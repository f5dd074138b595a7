"""Wrappers of a denoiser: denoiser in, denoiser out."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.denoiser import Denoise, Prediction, complete
from diffusion_jax.processes.gaussian import clip_x0, eps_from_x0, per_image, x0_from_eps
from diffusion_jax.processes.process import Point

TINY = 1e-12  # An image without any contrast has nothing to rescale.


def clip_denoised(denoise: Denoise) -> Denoise:
    """Returns the denoiser with its x0 limited to [-1, 1], and eps, v and score those of the limited x0."""

    def clipped(x_t: Float[Array, " b *dims"], point: Point) -> Prediction:
        prediction = denoise(x_t, point)
        x0 = clip_x0(prediction.x0)
        return complete(point, x0, eps_from_x0(point, x_t, x0), prediction.fraction)

    return clipped


def dynamic_threshold(denoise: Denoise, percentile: float = 0.995) -> Denoise:
    """Returns the denoiser with its x0 clipped to [-s, s] and divided by s, image by image.

    s is the given quantile of |x0|, or 1 if that is larger (Saharia et al., 2022, Section 2.3): strong guidance would
    else drive many pixels to the ends of their range.
    """

    def limited(x_t: Float[Array, " b *dims"], point: Point) -> Prediction:
        prediction = denoise(x_t, point)
        sizes = jnp.abs(prediction.x0).reshape(len(x_t), -1)
        s = per_image(jnp.maximum(jnp.quantile(sizes, percentile, axis=1), 1.0), x_t)
        x0 = jnp.clip(prediction.x0, -s, s) / s
        return complete(point, x0, eps_from_x0(point, x_t, x0), prediction.fraction)

    return limited


def classifier_free(
    denoise: Denoise,
    scale: float | Float[Array, ""],
    *,
    interval: tuple[float, float] | None = None,
    rescale: float | Float[Array, ""] = 0.0,
) -> Denoise:
    """Returns the guided denoiser: eps = eps_without + scale (eps_with - eps_without), and x0 likewise.

    Ho & Salimans (2022), in the convention where scale 1 is the conditional model, and 0 the one without classes. Both
    are computed in one call, of twice the batch.

    Args:
      denoise: A denoiser of twice as many images, the second half without a class: made with labels
        `jnp.concatenate([labels, jnp.full_like(labels, num_classes)])`.
      scale: How far to go; it may be traced.
      interval: Lowest and highest sigma = std / signal at which to guide (Kynkäänniemi et al., 2024); elsewhere the
        conditional model is returned. None: everywhere.
      rescale: Share of the guided x0 that gets back the standard deviation of the conditional one (Lin et al., 2024,
        Eq. 15-16), in [0, 1]; it may be traced.
    """

    def guided(x_t: Float[Array, " b *dims"], point: Point) -> Prediction:
        twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), (x_t, point))
        both = denoise(*twice)
        with_class, without = (
            jax.tree.map(lambda a, part=part: jnp.split(a, 2)[part], both) for part in (0, 1)
        )
        strength = jnp.broadcast_to(jnp.asarray(scale, x_t.dtype), point.signal.shape)
        if interval is not None:
            sigma = point.std / point.signal
            inside = (interval[0] <= sigma) & (sigma <= interval[1])
            strength = jnp.where(inside, strength, 1.0)
        x0 = without.x0 + per_image(strength, x_t) * (with_class.x0 - without.x0)
        ratio = _std(with_class.x0) / jnp.maximum(_std(x0), TINY)
        x0 = x0 * per_image(1 + rescale * (ratio - 1), x_t)
        return complete(point, x0, eps_from_x0(point, x_t, x0), with_class.fraction)

    return guided


def classifier_guided(
    denoise: Denoise,
    gradient: Callable[[Float[Array, " b *dims"], Point], Float[Array, " b *dims"]],
    scale: float | Float[Array, ""] = 1.0,
) -> Denoise:
    """Returns the denoiser guided by a classifier of noisy images (Dhariwal & Nichol, 2021, Algorithm 2).

    The score gets scale * gradient added: eps = eps - scale std gradient, and x0 = x0 + scale std^2 / signal gradient.

    Args:
      denoise: Any denoiser.
      gradient: (x_t, point) -> gradient of log p(y | x_t) by x_t, such as
        `jax.grad(lambda x, point: log_prob(x, point).sum())`, where log_prob gives a number an image.
      scale: How far to go; 1 is Bayes' rule. It may be traced.
    """

    def guided(x_t: Float[Array, " b *dims"], point: Point) -> Prediction:
        prediction = denoise(x_t, point)
        eps = prediction.eps - scale * per_image(point.std, x_t) * gradient(x_t, point)
        return complete(point, x0_from_eps(point, x_t, eps), eps, prediction.fraction)

    return guided


def _std(images: Float[Array, " b *dims"]) -> Float[Array, " b"]:
    return jnp.std(images, axis=tuple(range(1, images.ndim)))
