"""Samplers: one update rule per file, and the loop that they share."""

from diffusion_jax.samplers.ancestral import ancestral
from diffusion_jax.samplers.loop import (
    Sampler,
    SampleResult,
    Step,
    image_keys,
    image_normal,
    sample_loop,
)

SAMPLERS = {"ancestral": ancestral}

__all__ = [
    "SAMPLERS",
    "SampleResult",
    "Sampler",
    "Step",
    "ancestral",
    "image_keys",
    "image_normal",
    "sample_loop",
]
