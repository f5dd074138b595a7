"""The config of a scheduler of diffusers, in our fields: the process, and the sampler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_jax.errors import InputError

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
SCHEDULES = {"linear": "linear", "scaled_linear": "quad", "squaredcos_cap_v2": "cosine"}
VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
    "learned_range": "learned",
}
SAMPLERS = {"DDPMScheduler": "ancestral", "DDIMScheduler": "ddim", "PNDMScheduler": "pndm"}
SPACINGS = {"leading": "leading", "trailing": "trailing", "linspace": "uniform"}
NUM_STEPS = 50
# Other schedulers of the same chain, beta_t and predictions; the rest (of consistency models, EDM, flows, VQ, ..) is of
# other processes.
OF_THE_CHAIN = (
    "DDIMInverseScheduler DDIMParallelScheduler DDPMParallelScheduler DEISMultistepScheduler "
    "DPMSolverMultistepInverseScheduler DPMSolverMultistepScheduler DPMSolverSDEScheduler DPMSolverSinglestepScheduler "
    "EulerAncestralDiscreteScheduler EulerDiscreteScheduler HeunDiscreteScheduler IPNDMScheduler "
    "KDPM2AncestralDiscreteScheduler KDPM2DiscreteScheduler LMSDiscreteScheduler RePaintScheduler SASolverScheduler "
    "UniPCMultistepScheduler"
).split()


def process_fields(scheduler: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, Any]:
    """Returns our config fields of a scheduler: the process, and how it is sampled from.

    Args:
      scheduler: Its scheduler_config.json; empty: the defaults of `DDPMScheduler`.
      network: The network's config.json.

    Raises:
      InputError: It has an option that our processes have not.
    """
    if scheduler.get("_class_name") == "ScoreSdeVeScheduler":
        return _exploding(scheduler, network)
    kind = scheduler.get("_class_name", "DDPMScheduler")
    if kind not in SAMPLERS and kind not in OF_THE_CHAIN:
        raise InputError(f"{kind} is not read: its process is not that of DDPMScheduler")
    if network.get("center_input_sample"):
        raise InputError("center_input_sample is true; it is read with ScoreSdeVeScheduler alone")

    if scheduler.get("trained_betas") is not None:
        raise InputError(
            "trained_betas of the scheduler are not read: they are no schedule by name"
        )
    schedule = _chosen(scheduler, "beta_schedule", "linear", SCHEDULES)
    if scheduler.get("clip_sample_range", 1.0) != 1.0:
        raise InputError(
            "clip_sample_range of the scheduler is not 1; images are clipped to [-1, 1]"
        )
    learned = network.get("out_channels", 3) == 2 * network.get("in_channels", 3)
    variance = _chosen(scheduler, "variance_type", "fixed_small", VARIANCES)
    if learned != (variance == "learned"):
        raise InputError(
            f"variance_type is {variance}, but the network has {network.get('out_channels', 3)} output channels"
        )
    fields = {
        "process.name": "ddpm",
        "process.schedule": schedule,
        "process.num_timesteps": scheduler.get("num_train_timesteps", 1000),
        "process.prediction": _chosen(scheduler, "prediction_type", "epsilon", PREDICTIONS),
        "process.variance": variance,
    }
    if schedule in ("linear", "quad"):
        fields["process.beta_start"] = scheduler.get("beta_start", 1e-4)
        fields["process.beta_end"] = scheduler.get("beta_end", 0.02)
    if scheduler.get("rescale_betas_zero_snr"):
        fields["process.zero_snr"] = True
    return fields | _sampler_fields(scheduler)


def _sampler_fields(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    kind = scheduler.get("_class_name", "DDPMScheduler")
    name = SAMPLERS.get(kind, "ddim")
    clips = kind != "PNDMScheduler" and scheduler.get("clip_sample", True)
    fields: dict[str, Any] = {"sampler.name": name, "sampler.clip": bool(clips)}
    if name != "ancestral":
        fields |= _visited(scheduler)
    if scheduler.get("thresholding"):
        # Pixels beyond the quantile, but never more than the largest value, which is 1 if nothing is said.
        scales = scheduler.get("sample_max_value", 1.0) > 1
        fields["sampler.clip"] = not scales
        if scales:
            quantile = scheduler.get("dynamic_thresholding_ratio", 0.995)
            fields["sampler.dynamic_threshold"] = quantile
    if kind == "DDIMScheduler" and (clips or scheduler.get("thresholding")):
        fields["sampler.clip_keeps"] = "eps"
    return fields


def _visited(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of the times that a scheduler visits in 50 steps."""
    num_timesteps = scheduler.get("num_train_timesteps", 1000)
    num_steps = min(NUM_STEPS, num_timesteps)
    spacing, offset = _spacing(scheduler), scheduler.get("steps_offset", 0)
    if spacing == "leading" and offset:
        stride = num_timesteps // num_steps
        return {"sampler.spacing": tuple(float(offset + stride * i) for i in range(num_steps))}
    return {"sampler.num_steps": num_steps, "sampler.spacing": spacing}


def _spacing(scheduler: Mapping[str, Any]) -> str:
    return _chosen(scheduler, "timestep_spacing", "leading", SPACINGS)


def sampler_notes(scheduler: Mapping[str, Any]) -> list[str]:
    """Returns in what our sampler differs from a scheduler, a line each.

    Args:
      scheduler: Its scheduler_config.json.
    """
    kind, notes = scheduler.get("_class_name", "DDPMScheduler"), []
    if kind not in SAMPLERS:
        if kind != "ScoreSdeVeScheduler":
            notes.append(f"{kind} is not read: the sampler is ddim in its place")
        return notes
    if kind == "DDPMScheduler":
        return notes
    num_timesteps = scheduler.get("num_train_timesteps", 1000)
    num_steps, spacing = min(NUM_STEPS, num_timesteps), _spacing(scheduler)
    even = num_steps == num_timesteps or (spacing == "trailing" and num_timesteps % num_steps == 0)
    if spacing != "leading" and not even:
        notes.append(
            f"diffusers goes {num_timesteps // num_steps} steps back from each time that it visits, though the next "
            f"one is not always there with {scheduler['timestep_spacing']} spacing; here a step ends at the next"
        )
    if not scheduler.get("set_alpha_to_one", kind == "DDIMScheduler"):
        notes.append(
            "set_alpha_to_one is false: diffusers leaves the noise of the first time in the images; here they have none"
        )
    if kind == "PNDMScheduler" and scheduler.get("skip_prk_steps", False):
        notes.append("skip_prk_steps is true: here the first steps are Runge-Kutta's all the same")
    return notes


def _chosen(
    scheduler: Mapping[str, Any],
    name: str,
    default: Any,
    known: Mapping[str, str],
) -> Any:
    value = scheduler.get(name, default)
    if value not in known:
        raise InputError(
            f"{name} of the scheduler is {value!r}; it must be one of {', '.join(known)}"
        )
    return known[value]


def _exploding(scheduler: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of the variance-exploding SDE, whose pixels are in [0, 1]: our noise is twice theirs."""
    if not network.get("center_input_sample") or network.get("time_embedding_type") != "fourier":
        raise InputError(
            "ScoreSdeVeScheduler is read with center_input_sample and Fourier features alone"
        )
    return {
        "process.name": "ve",
        "process.sigma_min": 2 * scheduler.get("sigma_min", 0.01),
        "process.sigma_max": 2 * scheduler.get("sigma_max", 1348.0),
        "process.num_timesteps": scheduler.get("num_train_timesteps", 2000),
        "process.prediction": "score",
        "process.inputs": "ve",
        "process.variance": "fixed_small",
        "sampler.name": "predictor_corrector",
        "sampler.predictor": "reverse_diffusion",
        "sampler.snr": scheduler.get("snr", 0.15),
        "sampler.corrector_steps": scheduler.get("correct_steps", 1),
        "sampler.clip": False,
    }
