"""The config of a scheduler of diffusers, in our fields: the process, and the sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
SPACINGS = ("leading", "trailing", "linspace")


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
    name = SAMPLERS.get(scheduler.get("_class_name", "DDPMScheduler"), "ddim")
    spacing = _chosen(scheduler, "timestep_spacing", "leading", SPACINGS)
    fields = {"sampler.name": name, "sampler.clip": bool(scheduler.get("clip_sample", True))}
    if name != "ancestral":
        fields |= {"sampler.num_steps": 50, "sampler.spacing": spacing}
    if scheduler.get("thresholding"):
        fields["sampler.dynamic_threshold"] = scheduler.get("dynamic_thresholding_ratio", 0.995)
        fields["sampler.clip"] = False
    return fields


def _chosen(
    scheduler: Mapping[str, Any],
    name: str,
    default: Any,
    known: Mapping[str, str] | Sequence[str],
) -> Any:
    value = scheduler.get(name, default)
    if value not in known:
        raise InputError(
            f"{name} of the scheduler is {value!r}; it must be one of {', '.join(known)}"
        )
    return known[value] if isinstance(known, Mapping) else value


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
    }
