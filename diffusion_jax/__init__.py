"""Denoising diffusion models of images in JAX and Flax."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # What type checkers and editors see; at run time _MODULES says where a name is.
    from diffusion_jax.checkpoints.store import Checkpoint, CheckpointStore
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
    from diffusion_jax.errors import InputError, RunError
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
    from diffusion_jax.losses import loss_function, simple_loss, sliced_objective
    from diffusion_jax.models.denoiser import Prediction
    from diffusion_jax.models.diffusion_model import DiffusionModel
    from diffusion_jax.models.guidance import (
        classifier_free,
        classifier_guided,
        clip_denoised,
        dynamic_threshold,
    )
    from diffusion_jax.models.networks import MLP, Model, UNet, as_functions, count_parameters
    from diffusion_jax.processes.affine import Affine
    from diffusion_jax.processes.ddpm import DDPM
    from diffusion_jax.processes.dynamics import SDE
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
    from diffusion_jax.processes.grid import make_grid
    from diffusion_jax.processes.ncsn import NCSN, ladder_ratio, largest_distance, num_levels
    from diffusion_jax.processes.process import Grid, Point, Process, Rates
    from diffusion_jax.processes.reverse import p_posterior, posterior_kl
    from diffusion_jax.processes.schedules import (
        Schedule,
        make_schedule,
        respace,
        schedule_arrays,
        schedule_from_betas,
    )
    from diffusion_jax.processes.sde import VE, VP, ContinuousProcess, SubVP
    from diffusion_jax.reporting.pictures import grid, strip
    from diffusion_jax.runs import Run, load_run
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
        ode_adaptive,
        ode_decode,
        ode_encode,
        ode_heun,
        pndm,
        predictor_corrector,
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
    "Affine",
    "Bound",
    "Checkpoint",
    "CheckpointStore",
    "ContinuousProcess",
    "DDPM",
    "DiffusionModel",
    "Grid",
    "InputError",
    "Likelihood",
    "MLP",
    "Model",
    "NCSN",
    "Point",
    "Prediction",
    "Process",
    "Rates",
    "Run",
    "RunError",
    "SDE",
    "Sampler",
    "Schedule",
    "Split",
    "State",
    "SubVP",
    "TrainState",
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
    "ladder_ratio",
    "langevin",
    "largest_distance",
    "load",
    "load_run",
    "loss_function",
    "make_grid",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "nearest_point",
    "num_levels",
    "ode_adaptive",
    "ode_decode",
    "ode_encode",
    "ode_heun",
    "p_posterior",
    "predictor_corrector",
    "pndm",
    "posterior_kl",
    "q_posterior",
    "q_sample",
    "random_flip",
    "rate_distortion",
    "respace",
    "reverse_diffusion",
    "sample_loop",
    "schedule_arrays",
    "schedule_from_betas",
    "score_from_eps",
    "shared_structure",
    "simple_loss",
    "slerp",
    "sliced_objective",
    "strip",
    "to_model_range",
    "to_uint8",
    "unipc",
    "v_from_x0_eps",
    "variational_bound",
    "x0_from_eps",
    "x0_from_v",
]

# The public names of each module, which is imported when one of them is first used: none costs those who use another.
_NAMES = {
    "checkpoints.store": ["Checkpoint", "CheckpointStore"],
    "config": ["default_config"],
    "data": [
        "Split",
        "batch_indices",
        "batches",
        "load",
        "random_flip",
        "to_model_range",
        "to_uint8",
    ],
    "models.denoiser": ["Prediction"],
    "models.diffusion_model": ["DiffusionModel"],
    "errors": ["InputError", "RunError"],
    "models.guidance": [
        "classifier_free",
        "classifier_guided",
        "clip_denoised",
        "dynamic_threshold",
    ],
    "likelihood.bound": ["Bound", "variational_bound"],
    "likelihood.decoder": ["check_levels", "discretized_gaussian", "gaussian_density"],
    "likelihood.exact": [
        "Likelihood",
        "bits_per_dim",
        "dequantise",
        "dequantised_likelihood",
        "exact_likelihood",
        "flow_likelihood",
    ],
    "likelihood.progressive": ["rate_distortion"],
    "losses": ["loss_function", "simple_loss", "sliced_objective"],
    "models.networks": ["MLP", "Model", "UNet", "as_functions", "count_parameters"],
    "processes.affine": ["Affine"],
    "processes.ddpm": ["DDPM"],
    "processes.dynamics": ["SDE"],
    "processes.gaussian": [
        "clip_x0",
        "eps_from_v",
        "eps_from_x0",
        "q_posterior",
        "q_sample",
        "score_from_eps",
        "v_from_x0_eps",
        "x0_from_eps",
        "x0_from_v",
    ],
    "processes.grid": ["make_grid"],
    "processes.ncsn": ["NCSN", "ladder_ratio", "largest_distance", "num_levels"],
    "processes.process": ["Grid", "Point", "Process", "Rates"],
    "processes.reverse": ["p_posterior", "posterior_kl"],
    "processes.schedules": [
        "Schedule",
        "make_schedule",
        "respace",
        "schedule_arrays",
        "schedule_from_betas",
    ],
    "processes.sde": ["ContinuousProcess", "SubVP", "VE", "VP"],
    "reporting.pictures": ["grid", "strip"],
    "runs": ["Run", "load_run"],
    "samplers": [
        "Sampler",
        "State",
        "ancestral",
        "ddim",
        "dpmpp_2m",
        "dpmpp_2m_sde",
        "dpmpp_3m",
        "encode",
        "encoding_nfe",
        "euler_maruyama",
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
        "nearest_point",
        "ode_adaptive",
        "ode_decode",
        "ode_encode",
        "ode_heun",
        "predictor_corrector",
        "pndm",
        "reverse_diffusion",
        "sample_loop",
        "shared_structure",
        "slerp",
        "unipc",
    ],
    "training.optimizer": ["ema_decay", "make_optimizer"],
    "training.state": ["TrainState", "create_state"],
    "training.step": ["make_train_step"],
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


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
