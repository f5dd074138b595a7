"""Samplers: one update rule per file, and the loop that they share."""

from __future__ import annotations

from diffusion_jax.processes.ode import SolverStats
from diffusion_jax.samplers.adaptive import ode_adaptive, ode_decode, ode_encode
from diffusion_jax.samplers.ancestral import ancestral
from diffusion_jax.samplers.ddim import ddim
from diffusion_jax.samplers.dpm_solver import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m
from diffusion_jax.samplers.editing import (
    CONSTRAINTS,
    Constraint,
    inpaint,
    inpaint_nfe,
    project_blocks,
    project_gray,
    project_nothing,
    project_pixels,
)
from diffusion_jax.samplers.heun import heun
from diffusion_jax.samplers.interpolation import interpolate, slerp
from diffusion_jax.samplers.inversion import encode, encoding_nfe
from diffusion_jax.samplers.langevin import langevin
from diffusion_jax.samplers.loop import (
    Sampler,
    SampleResult,
    State,
    first_noise,
    frame_steps,
    image_keys,
    sample_loop,
)
from diffusion_jax.samplers.ode_heun import ode_heun
from diffusion_jax.samplers.pndm import pndm
from diffusion_jax.samplers.predictor_corrector import predictor_corrector
from diffusion_jax.samplers.predictors import PREDICTORS, euler_maruyama, reverse_diffusion
from diffusion_jax.samplers.registry import SAMPLERS, UpdateRule
from diffusion_jax.samplers.shared import Shared, nearest_point, shared_structure
from diffusion_jax.samplers.unipc import unipc

__all__ = [
    "CONSTRAINTS",
    "Constraint",
    "PREDICTORS",
    "SAMPLERS",
    "SampleResult",
    "Sampler",
    "Shared",
    "SolverStats",
    "State",
    "UpdateRule",
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
    "project_blocks",
    "project_gray",
    "project_nothing",
    "project_pixels",
    "langevin",
    "frame_steps",
    "nearest_point",
    "ode_heun",
    "ode_adaptive",
    "ode_decode",
    "ode_encode",
    "pndm",
    "predictor_corrector",
    "reverse_diffusion",
    "sample_loop",
    "shared_structure",
    "slerp",
    "unipc",
]
