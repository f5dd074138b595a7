"""Denoising diffusion models of images in JAX and Flax."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # What type checkers and editors see; at run time _MODULES says where a name is.
    from diffusion_jax.checkpoints.store import Checkpoint, CheckpointStore
    from diffusion_jax.commands.trained import TrainedRun, load_run
    from diffusion_jax.config import default_config
    from diffusion_jax.data import (
        Split,
        batch_indices,
        batches,
        load,
        random_flip,
        to_model_range,
        to_uint8,
    )
    from diffusion_jax.denoiser import Prediction, make_denoiser
    from diffusion_jax.errors import InputError, RunError
    from diffusion_jax.guidance import (
        classifier_free,
        classifier_guided,
        clip_denoised,
        dynamic_threshold,
    )
    from diffusion_jax.likelihood.bound import Bound, variational_bound
    from diffusion_jax.likelihood.decoder import (
        check_levels,
        discretized_gaussian,
        gaussian_density,
    )
    from diffusion_jax.likelihood.exact import (
        Likelihood,
        bits_per_dim,
        dequantise,
        dequantised_likelihood,
        exact_likelihood,
        flow_likelihood,
    )
    from diffusion_jax.likelihood.progressive import rate_distortion
    from diffusion_jax.losses import loss_function, simple_loss
    from diffusion_jax.models import MLP, Model, UNet, as_functions, count_parameters
    from diffusion_jax.processes.ddpm import DDPM
    from diffusion_jax.processes.gaussian import (
        clip_x0,
        eps_from_v,
        eps_from_x0,
        q_posterior,
        q_sample,
        score_from_eps,
        v_from_x0_eps,
        x0_from_eps,
        x0_from_v,
    )
    from diffusion_jax.processes.process import Grid, Point, Process, Rates
    from diffusion_jax.processes.reverse import p_posterior, posterior_kl
    from diffusion_jax.processes.schedules import Schedule, make_schedule, respace
    from diffusion_jax.processes.sde import VE, VP, ContinuousProcess, SubVP
    from diffusion_jax.reporting.pictures import grid, strip
    from diffusion_jax.samplers import (
        Sampler,
        State,
        ancestral,
        ddim,
        dpmpp_2m,
        dpmpp_2m_sde,
        dpmpp_3m,
        encode,
        encoding_nfe,
        euler_maruyama,
        heun,
        image_keys,
        inpaint,
        inpaint_nfe,
        interpolate,
        known_blocks,
        known_grey,
        known_nothing,
        known_pixels,
        langevin,
        nearest_point,
        ode_heun,
        pc,
        pndm,
        reverse_diffusion,
        sample_loop,
        shared_structure,
        slerp,
        unipc,
    )
    from diffusion_jax.training.optimizer import ema_decay, make_optimizer
    from diffusion_jax.training.state import TrainState, create_state
    from diffusion_jax.training.step import make_train_step

__version__ = "0.1.0"

__all__ = [
    "Bound",
    "Checkpoint",
    "CheckpointStore",
    "ContinuousProcess",
    "DDPM",
    "Grid",
    "InputError",
    "Likelihood",
    "MLP",
    "Model",
    "Point",
    "Prediction",
    "Process",
    "Rates",
    "RunError",
    "Sampler",
    "Schedule",
    "Split",
    "State",
    "SubVP",
    "TrainState",
    "TrainedRun",
    "UNet",
    "VE",
    "VP",
    "ancestral",
    "as_functions",
    "batch_indices",
    "batches",
    "bits_per_dim",
    "check_levels",
    "classifier_free",
    "classifier_guided",
    "clip_denoised",
    "clip_x0",
    "count_parameters",
    "create_state",
    "ddim",
    "default_config",
    "dequantise",
    "dequantised_likelihood",
    "discretized_gaussian",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "dynamic_threshold",
    "ema_decay",
    "encode",
    "encoding_nfe",
    "eps_from_v",
    "eps_from_x0",
    "euler_maruyama",
    "exact_likelihood",
    "flow_likelihood",
    "gaussian_density",
    "grid",
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
    "load",
    "load_run",
    "loss_function",
    "make_denoiser",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "nearest_point",
    "ode_heun",
    "p_posterior",
    "pc",
    "pndm",
    "posterior_kl",
    "q_posterior",
    "q_sample",
    "random_flip",
    "rate_distortion",
    "respace",
    "reverse_diffusion",
    "sample_loop",
    "score_from_eps",
    "shared_structure",
    "simple_loss",
    "slerp",
    "strip",
    "to_model_range",
    "to_uint8",
    "unipc",
    "v_from_x0_eps",
    "variational_bound",
    "x0_from_eps",
    "x0_from_v",
]

# Module of each public name, imported when the name is first used: none costs those who use another.
_MODULES = {
    "Bound": "likelihood.bound",
    "Checkpoint": "checkpoints.store",
    "CheckpointStore": "checkpoints.store",
    "ContinuousProcess": "processes.sde",
    "DDPM": "processes.ddpm",
    "Grid": "processes.process",
    "InputError": "errors",
    "Likelihood": "likelihood.exact",
    "MLP": "models",
    "Model": "models",
    "Point": "processes.process",
    "Prediction": "denoiser",
    "Process": "processes.process",
    "Rates": "processes.process",
    "RunError": "errors",
    "Sampler": "samplers",
    "Schedule": "processes.schedules",
    "Split": "data",
    "State": "samplers",
    "SubVP": "processes.sde",
    "TrainState": "training.state",
    "TrainedRun": "commands.trained",
    "UNet": "models",
    "VE": "processes.sde",
    "VP": "processes.sde",
    "ancestral": "samplers",
    "as_functions": "models",
    "batch_indices": "data",
    "batches": "data",
    "bits_per_dim": "likelihood.exact",
    "check_levels": "likelihood.decoder",
    "classifier_free": "guidance",
    "classifier_guided": "guidance",
    "clip_denoised": "guidance",
    "clip_x0": "processes.gaussian",
    "count_parameters": "models",
    "create_state": "training.state",
    "ddim": "samplers",
    "default_config": "config",
    "dequantise": "likelihood.exact",
    "dequantised_likelihood": "likelihood.exact",
    "discretized_gaussian": "likelihood.decoder",
    "dpmpp_2m": "samplers",
    "dpmpp_2m_sde": "samplers",
    "dpmpp_3m": "samplers",
    "dynamic_threshold": "guidance",
    "ema_decay": "training.optimizer",
    "encode": "samplers",
    "encoding_nfe": "samplers",
    "eps_from_v": "processes.gaussian",
    "eps_from_x0": "processes.gaussian",
    "euler_maruyama": "samplers",
    "exact_likelihood": "likelihood.exact",
    "flow_likelihood": "likelihood.exact",
    "gaussian_density": "likelihood.decoder",
    "grid": "reporting.pictures",
    "heun": "samplers",
    "image_keys": "samplers",
    "inpaint": "samplers",
    "inpaint_nfe": "samplers",
    "interpolate": "samplers",
    "known_blocks": "samplers",
    "known_grey": "samplers",
    "known_nothing": "samplers",
    "known_pixels": "samplers",
    "langevin": "samplers",
    "load": "data",
    "load_run": "commands.trained",
    "loss_function": "losses",
    "make_denoiser": "denoiser",
    "make_optimizer": "training.optimizer",
    "make_schedule": "processes.schedules",
    "make_train_step": "training.step",
    "nearest_point": "samplers",
    "ode_heun": "samplers",
    "p_posterior": "processes.reverse",
    "pc": "samplers",
    "pndm": "samplers",
    "posterior_kl": "processes.reverse",
    "q_posterior": "processes.gaussian",
    "q_sample": "processes.gaussian",
    "random_flip": "data",
    "rate_distortion": "likelihood.progressive",
    "respace": "processes.schedules",
    "reverse_diffusion": "samplers",
    "sample_loop": "samplers",
    "score_from_eps": "processes.gaussian",
    "shared_structure": "samplers",
    "simple_loss": "losses",
    "slerp": "samplers",
    "strip": "reporting.pictures",
    "to_model_range": "data",
    "to_uint8": "data",
    "unipc": "samplers",
    "v_from_x0_eps": "processes.gaussian",
    "variational_bound": "likelihood.bound",
    "x0_from_eps": "processes.gaussian",
    "x0_from_v": "processes.gaussian",
}


if not TYPE_CHECKING:  # A type checker that saw it would take any name for a public one.

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        elif importlib.util.find_spec(f"{__name__}.{name}"):  # diffusion_jax.data and the like
            value = importlib.import_module(f"{__name__}.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value  # So that it is looked up once.
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
