"""How the times of a batch are drawn."""

from typing import Any

import jax
from jaxtyping import Array, Key

from diffusion_jax.keys import standard_normal
from diffusion_jax.losses.objective import Draws


def draw_uniform(aux: Any, key: Key[Array, ""], shape: tuple[int, ...]) -> Draws:
    """Returns independent uniform u and normal eps."""
    del aux
    u_key, eps_key = jax.random.split(key)
    return Draws(jax.random.uniform(u_key, shape[:1]), standard_normal(eps_key, shape))
