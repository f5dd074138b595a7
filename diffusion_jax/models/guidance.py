"""Wrappers of denoisers: clipping, dynamic thresholding, classifier-free and classifier guidance."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.errors import choose
from diffusion_jax.models.denoiser import Denoise, Prediction, complete
from diffusion_jax.processes.gaussian import (
    clip_x0,
    eps_from_x0,
    per_image,
    x0_from_eps,
    x0_from_v,
)
from diffusion_jax.processes.process import Point

TINY = 1e-12  # An image without any contrast has nothing to rescale.


# Forms of a prediction that guidance is rescaled in: (point, x_t, the form) -> x0
RESCALED: dict[str, Callable[[Point, Array, Array], Array]] = {
    "x0": lambda point, x_t, x0: x0,
    "eps": x0_from_eps,
    "v": x0_from_v,
}


def clip_denoised(denoise: Denoise, *, keep_eps: bool = False) -> Denoise:
    """Returns the denoiser with its x0 limited to [-1, 1].

    Args:
      denoise: Any denoiser.
      keep_eps: Whether eps, v and score stay the network's, as in diffusers' DDIM; x_0 and eps then share no x_t.
        Otherwise they follow from the limited x0, as in Nichol & Dhariwal's code.

    Example:
      >>> def bright(x_t, point):
      ...     return dj.models.complete(point, jnp.full_like(x_t, 3.0), x_t)
      >>> point = dj.VP().at(jnp.array([500.0]))
      >>> dj.clip_denoised(bright)(jnp.zeros((1, 2)), point).x0
      Array([[1., 1.]], dtype=float32)
    """
    return _limited(denoise, clip_x0, keep_eps)


def dynamic_threshold(
    denoise: Denoise, percentile: float = 0.995, *, keep_eps: bool = False
) -> Denoise:
    """Returns the denoiser with its x0 clipped to [-s, s] and divided by s, image by image.

    s is the given quantile of |x0|, or 1 if that is larger (Saharia et al., 2022, Section 2.3): otherwise strong
    guidance drives many pixels to the ends of their range.

    Args:
      denoise: Any denoiser.
      percentile: The quantile, in (0, 1).
      keep_eps: See `clip_denoised`.
    """

    def limit(x0: Float[Array, " b *dims"]) -> Float[Array, " b *dims"]:
        sizes = jnp.abs(x0).reshape(x0.shape[0], -1)
        s = per_image(jnp.maximum(jnp.quantile(sizes, percentile, axis=1), 1.0), x0)
        return jnp.clip(x0, -s, s) / s

    return _limited(denoise, limit, keep_eps)


def _limited(denoise: Denoise, limit: Callable[[Array], Array], keep_eps: bool) -> Denoise:
    def limited(x_t: Float[Array, " b *dims"], point: Point) -> Prediction:
        prediction = denoise(x_t, point)
        x0 = limit(prediction.x0)
        eps = prediction.eps if keep_eps else eps_from_x0(point, x_t, x0)
        return complete(point, x0, eps, prediction.fraction)

    return limited


def classifier_free(
    denoise: Denoise,
    scale: float | Float[Array, ""],
    *,
    interval: tuple[float, float] | None = None,
    rescale: float | Float[Array, ""] = 0.0,
    rescale_of: str = "x0",
) -> Denoise:
    """Returns the guided denoiser: eps = eps_without + scale (eps_with - eps_without), and x0 likewise.

    Ho & Salimans (2022), in the convention where scale 1 is the conditional model and 0 the unconditional one. Both
    are computed in one call on a doubled batch.

    Args:
      denoise: A denoiser of the doubled batch, the second half unconditional: made with labels
        `jnp.concatenate([labels, jnp.full_like(labels, num_classes)])`.
      scale: Guidance scale; may be traced.
      interval: Lowest and highest sigma = std / signal at which to guide (Kynkäänniemi et al., 2024); elsewhere the
        conditional model is returned. None: everywhere.
      rescale: Weight of the guided prediction rescaled to the standard deviation of the conditional one (Lin et al.,
        2024, Eq. 15-16), in [0, 1]; may be traced.
      rescale_of: The form to rescale, a key of `RESCALED`: x0; or, as in diffusers' rescale_noise_cfg, the form that
        the network predicts, eps or v.

    Raises:
      InputError: Unknown form.

    Example:
      >>> def both(x_t, point):
      ...     x0 = jnp.array([[0.4], [0.1]])  # With the class, and without.
      ...     return dj.models.complete(point, x0, dj.processes.eps_from_x0(point, x_t, x0))
      >>> guided = dj.classifier_free(both, 2.0)
      >>> guided(jnp.zeros((1, 1)), dj.VP().at(jnp.array([500.0]))).x0.round(3)
      Array([[0.7]], dtype=float32)
    """
    to_x0 = choose("rescale_of", rescale_of, RESCALED)

    def guided(x_t: Float[Array, " b *dims"], point: Point) -> Prediction:
        twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), (x_t, point))
        both = denoise(*twice)
        with_class, without = (
            jax.tree.map(lambda a, part=part: jnp.split(a, 2)[part], both) for part in (0, 1)
        )
        strength = jnp.broadcast_to(jnp.asarray(scale, x_t.dtype), point.signal.shape)
        if interval is not None:
            inside = (interval[0] <= point.sigma) & (point.sigma <= interval[1])
            strength = jnp.where(inside, strength, 1.0)
        conditional, other = (getattr(one, rescale_of) for one in (with_class, without))
        form = other + per_image(strength, x_t) * (conditional - other)
        ratio = _std(conditional) / jnp.maximum(_std(form), TINY)
        x0 = to_x0(point, x_t, form * per_image(1 + rescale * (ratio - 1), x_t))
        return complete(point, x0, eps_from_x0(point, x_t, x0), with_class.fraction)

    return guided


def classifier_guided(
    denoise: Denoise,
    gradient: Callable[[Float[Array, " b *dims"], Point], Float[Array, " b *dims"]],
    scale: float | Float[Array, ""] = 1.0,
) -> Denoise:
    """Returns the denoiser guided by a classifier of noisy images (Dhariwal & Nichol, 2021, Algorithm 2).

    scale * gradient is added to the score: eps = eps - scale std gradient, and x0 = x0 + scale std^2 / signal gradient.

    Args:
      denoise: Any denoiser.
      gradient: (x_t, point) -> gradient of log p(y | x_t) by x_t, such as
        `jax.grad(lambda x, point: log_prob(x, point).sum())`, where log_prob returns one number per image.
      scale: Guidance scale; 1 is Bayes' rule. May be traced.
    """

    def guided(x_t: Float[Array, " b *dims"], point: Point) -> Prediction:
        prediction = denoise(x_t, point)
        eps = prediction.eps - scale * per_image(point.std, x_t) * gradient(x_t, point)
        return complete(point, x0_from_eps(point, x_t, eps), eps, prediction.fraction)

    return guided


def _std(images: Float[Array, " b *dims"]) -> Float[Array, " b"]:
    return jnp.std(images, axis=tuple(range(1, images.ndim)))
