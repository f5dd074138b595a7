"""Samplers: one update rule per file, and the loop that they share."""

from collections.abc import Callable

from jaxtyping import Array

from diffusion_jax.processes.ode import Solution
from diffusion_jax.samplers.adaptive import ode_adaptive, ode_decode, ode_encode
from diffusion_jax.samplers.ancestral import ancestral
from diffusion_jax.samplers.ddim import ddim
from diffusion_jax.samplers.dpm_solver import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m
from diffusion_jax.samplers.editing import (
    MERGES,
    Merge,
    inpaint,
    inpaint_nfe,
    known_blocks,
    known_grey,
    known_nothing,
    known_pixels,
)
from diffusion_jax.samplers.heun import heun
from diffusion_jax.samplers.interpolation import interpolate, slerp
from diffusion_jax.samplers.inversion import encode, encoding_nfe
from diffusion_jax.samplers.langevin import langevin
from diffusion_jax.samplers.loop import (
    Sampler,
    SampleResult,
    Solve,
    State,
    first_noise,
    image_keys,
    moments,
    sample_loop,
)
from diffusion_jax.samplers.ode_heun import ode_heun
from diffusion_jax.samplers.pndm import pndm
from diffusion_jax.samplers.predictor_corrector import pc
from diffusion_jax.samplers.predictors import PREDICTORS, euler_maruyama, reverse_diffusion
from diffusion_jax.samplers.shared import Shared, nearest_point, shared_structure
from diffusion_jax.samplers.unipc import unipc

# (grid, process if it takes it, the options of its own) -> Sampler
SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_3m": dpmpp_3m,
    "euler_maruyama": euler_maruyama,
    "heun": heun,
    "langevin": langevin,
    "ode_heun": ode_heun,
    "pc": pc,
    "ode_adaptive": ode_adaptive,
    "pndm": pndm,
    "reverse_diffusion": reverse_diffusion,
    "unipc": unipc,
}

# Sampler that can be inverted -> (denoise, grid, process if it takes it, x0, the options of its own) -> x_T
INVERSES: dict[str, Callable[..., Array | Solution]] = {"ddim": encode, "ode_adaptive": ode_encode}

# Steps of an unset number: the process's whole grid but for a rule that needs no more than its two ends.
DEFAULT_STEPS = {"ode_adaptive": 2}

__all__ = [
    "DEFAULT_STEPS",
    "INVERSES",
    "MERGES",
    "Merge",
    "PREDICTORS",
    "SAMPLERS",
    "SampleResult",
    "Sampler",
    "Shared",
    "Solve",
    "State",
    "ancestral",
    "ddim",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "encode",
    "encoding_nfe",
    "euler_maruyama",
    "first_noise",
    "heun",
    "image_keys",
    "inpaint",
    "inpaint_nfe",
    "interpolate",
    "known_blocks",
    "known_grey",
    "known_nothing",
    "known_pixels",
    "langevin",
    "moments",
    "nearest_point",
    "ode_heun",
    "pc",
    "ode_adaptive",
    "ode_decode",
    "ode_encode",
    "pndm",
    "reverse_diffusion",
    "sample_loop",
    "shared_structure",
    "slerp",
    "unipc",
]
