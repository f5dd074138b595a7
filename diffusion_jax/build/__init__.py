"""From a config to the objects that commands work with; where the config stops."""

from diffusion_jax.build.checks import validate
from diffusion_jax.build.experiment import (
    AVERAGE,
    DTYPES,
    Experiment,
    bound_variance,
    build,
    load_split,
    make_averages_of,
    make_optimizer_of,
    sampler_options,
)
from diffusion_jax.build.process import PROCESSES, make_process

__all__ = [
    "AVERAGE",
    "DTYPES",
    "PROCESSES",
    "Experiment",
    "bound_variance",
    "build",
    "load_split",
    "make_averages_of",
    "make_optimizer_of",
    "make_process",
    "sampler_options",
    "validate",
]
