"""The divergence of a vector field, the trace of its Jacobian: exact, or Hutchinson's estimate.

The trace is estimated without bias by e' J e, with random e of covariance I (Hutchinson; Grathwohl et al., 2019), at
the cost of one derivative along e. Derivatives use forward mode: with a U-Net of 0.7 M parameters, for 100 digits on
one core, a field and its estimate take 85 ms, and in reverse mode 87 ms and more memory; the field alone takes
36 ms.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.errors import choose
from diffusion_jax.keys import fold_in, image_normal

# (f, y) -> f(y) and its divergence, where row i of f(y) depends on row i of y alone.
Divergence = Callable[[Callable[[Array], Array], Array], tuple[Array, Array]]


def exact_divergence(
    f: Callable[[Array], Array], y: Float[Array, " b *dims"]
) -> tuple[Float[Array, " b *dims"], Float[Array, " b"]]:
    """Returns f(y) and the trace of its Jacobian, with one derivative per dimension of an image: for a few.

    Example:
      >>> _, divergence = dj.likelihood.exact_divergence(lambda y: 2 * y, jnp.ones((1, 3)))
      >>> divergence
      Array([6.], dtype=float32)
    """
    value, along = jax.linearize(f, y)
    basis = jnp.eye(math.prod(y.shape[1:]), dtype=y.dtype).reshape(-1, *y.shape[1:])

    def diagonal(direction: Float[Array, "*dims"]) -> Float[Array, " b"]:
        tangent = y - y + direction[None]
        return inner(along(tangent), tangent)

    return value, jax.lax.map(diagonal, basis).sum(0)


def hutchinson(probes: Float[Array, " k b *dims"]) -> Divergence:
    """Returns the estimate of a divergence as the mean of e' J e over the probes e of each image."""

    def divergence(
        f: Callable[[Array], Array], y: Float[Array, " b *dims"]
    ) -> tuple[Float[Array, " b *dims"], Float[Array, " b"]]:
        if len(probes) == 1:
            value, tangent = jax.jvp(f, (y,), (probes[0],))
            return value, inner(tangent, probes[0])
        value, along = jax.linearize(f, y)
        return value, jax.lax.map(lambda e: inner(along(e), e), probes).mean(0)

    return divergence


def _rademacher(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, " b ..."]:
    def signs(key: Key[Array, ""]) -> Float[Array, ...]:
        return jax.random.rademacher(key, (math.prod(shape),), jnp.float32).reshape(shape)

    return jax.vmap(signs)(keys)


# (keys, shape of an image) -> e, of mean 0 and covariance I. Signs have the least variance.
PROBES: dict[str, Callable[[Array, tuple[int, ...]], Array]] = {
    "rademacher": _rademacher,
    "gaussian": image_normal,
}


def draw_probes(
    keys: Key[Array, " b"], shape: tuple[int, ...], num_probes: int = 1, kind: str = "rademacher"
) -> Float[Array, " k b ..."]:
    """Returns the probes of each image, from its own key.

    Args:
      keys: One key per image.
      shape: Shape of one image.
      num_probes: Number of probes, 1 or more.
      kind: A key of `PROBES`.

    Raises:
      InputError: An unknown kind.
    """
    draw = choose("probes", kind, PROBES)
    return jnp.stack([draw(fold_in(keys, k), shape) for k in range(num_probes)])


def inner(a: Float[Array, " b *dims"], b: Float[Array, " b *dims"]) -> Float[Array, " b"]:
    """Returns the inner product of each image of a with that of b."""
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)))
