"""Do the fields of a config fit one another, what they choose, and the data?"""

import inspect
import warnings
from collections.abc import Callable, Container, Iterable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax.errors import InputError, choose
from diffusion_jax.losses import OBJECTIVES, WEIGHTINGS
from diffusion_jax.models import MODELS
from diffusion_jax.processes.grid import make_grid, outermost
from diffusion_jax.processes.process import Grid, Process
from diffusion_jax.samplers import INVERSES, MERGES, SAMPLERS

LONG_STEP = 30  # Factor of std / signal in a step of Heun's method; digits drawn with longer ones are poor, or noise.
UNEVEN = 2  # The longest step over the shortest: rounding to timesteps alone makes it no more.
TINY_SIGNAL = 1e-3
LARGE_SIGNAL = 0.3  # Relative to the noise: starting a sampler there from noise alone shows.
MOST_LEFT = 0.101  # Of the signal relative to the noise at the last time: a tenth, of VE by Technique 1 for digits.
# Fields that leave less signal at the last time.
LESS_SIGNAL = {
    "ddpm": "process.num_timesteps or process.beta_end larger, or leave beta_start and beta_end unset",
    "vp": "process.beta_max larger, such as 20",
    "subvp": "process.beta_max larger, such as 20",
    "ve": "process.sigma_max to about the largest distance between two images",
    "ncsn": "process.sigma_max to about the largest distance between two images",
}
LARGE_VARIANCE = 2  # Relative to the posterior's: in less the two are much the same.
FITTING = {"langevin": ("ve", "ncsn")}  # Processes of the solvers that are not for all.
# Fields of the sampler group that no update rule takes: its name, grid and x_T, limits and guidance of its denoiser.
OF_ALL_SAMPLERS = {"name", "num_steps", "spacing", "u_min", "temperature"}
OF_ALL_SAMPLERS |= {"clip", "dynamic_threshold"}
# Samplers of which another code keeps eps where x_0 is limited: their options have clip_keeps.
KEEPING = {"ddim"}
OF_GUIDANCE = {"guidance_scale", "guidance_interval", "guidance_rescale", "guidance_rescale_of"}


def accepted(make: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """Returns those of the options that a registry's entry takes."""
    return {k: v for k, v in options.items() if k in inspect.signature(make).parameters}


def check_model_takes(config: ConfigDict) -> None:
    """Refuses a field of the model group that this model has no use for."""
    taken = inspect.signature(MODELS[config.model.name]).parameters
    _refuse_unused(config, "model", taken, f"the model {config.model.name!r}")


def check_process_takes(config: ConfigDict, taken: set[str]) -> None:
    """Refuses fields that the config's process has no use for.

    Args:
      config: The config.
      taken: Names of the options that the process is made with.
    """
    owner = f"the process {config.process.name!r}"
    _refuse_unused(config, "process", {"name", "prediction", "variance"} | taken, owner)
    for group in ("loss", "sampler", "eval"):
        ours = {"u_min"} if "u_min" in taken else set()
        _refuse_unused(config, group, set(config[group]) - {"u_min"} | ours, owner)


def check_sampler_takes(config: ConfigDict) -> None:
    """Refuses a field of the sampler group that this sampler has no use for."""
    name = config.sampler.name
    _refuse_unused(config, "sampler", sampler_takes(name), f"the sampler {name!r}")


def sampler_takes(name: str) -> set[str]:
    """Returns the fields of the sampler group that decide what this sampler draws."""
    taken = inspect.signature(choose("sampler.name", name, SAMPLERS)).parameters
    keeps = {"clip_keeps"} if name in KEEPING else set()
    return OF_ALL_SAMPLERS | OF_GUIDANCE | keeps | taken.keys() - {"grid", "process"}


def check_solver_fits(config: ConfigDict) -> None:
    """Refuses a solver of another kind of process."""
    name, process = config.sampler.name, config.process.name
    fitting = FITTING.get(name)
    if fitting is not None and process not in fitting:
        raise InputError(
            f"sampler.name is {name!r}, which does not fit the process {process!r}; it fits {', '.join(fitting)}"
        )


def check_corrector(config: ConfigDict) -> None:
    """Refuses what has no use without a corrector."""
    if config.sampler.corrector_steps == 0:
        taken = set(config.sampler) - {"snr"}
        _refuse_unused(config, "sampler", taken, "sampler.corrector_steps=0")


def check_churn(config: ConfigDict) -> None:
    """Refuses a range of noise levels that is empty, and what has no use without churn."""
    if config.sampler.churn == 0:
        taken = set(config.sampler) - {"churn_min", "churn_max", "churn_noise"}
        _refuse_unused(config, "sampler", taken, "sampler.churn=0")
    low, high = config.sampler.churn_min, config.sampler.churn_max
    if high is not None and high < low:
        raise InputError(
            f"sampler.churn_max is {high!r}; it must be at least sampler.churn_min, {low!r}"
        )


OF_A_LOSS = {"weighting", "vlb_weight", "num_probes"}
OF_WHOLE_GRID = {
    "vlb",
    "hybrid",
}  # Losses of the times of the process's grid, whatever the smallest u of training.


def check_loss_takes(config: ConfigDict) -> None:
    """Refuses what the chosen loss or weighting has no use for."""
    fields = config.loss
    of_loss = inspect.signature(OBJECTIVES[fields.name]).parameters.keys() & set(fields)
    no_use = OF_A_LOSS | ({"u_min"} if fields.name in OF_WHOLE_GRID else set())
    _refuse_unused(config, "loss", set(fields) - no_use | of_loss, f"the loss {fields.name!r}")
    taken = {"name", "times", "u_min"} | OF_A_LOSS
    if fields.weighting:
        taken |= inspect.signature(WEIGHTINGS[fields.weighting]).parameters.keys()
    owner = f"the weighting {fields.weighting!r}" if fields.weighting else "an unset loss.weighting"
    _refuse_unused(config, "loss", taken, owner)


def _refuse_unused(config: ConfigDict, group: str, taken: Container[str], owner: str) -> None:
    """Refuses a field of the group that the owner does not take, unless it is left at its default."""
    for name, value in config[group].items():
        default = config_lib.FIELDS[f"{group}.{name}"].default
        if name not in taken and value != default:
            advice = (
                "leave it unset" if default is None else f"leave it at its default, {default!r}"
            )
            raise InputError(f"{group}.{name} is {value!r}, but {owner} has none; {advice}")


def check_variance(config: ConfigDict) -> None:
    """Refuses learned variances that the network does not have or the loss does not train."""
    trained, loss = config.process.variance, config.loss.name
    if trained == "learned" and loss in ("simple", "sliced"):
        raise InputError(
            f"process.variance is 'learned', but the loss {loss!r} does not train it; set loss.name to hybrid or vlb"
        )
    if loss == "hybrid" and trained != "learned":
        raise InputError(
            f"loss.name is 'hybrid', but process.variance is {trained!r}; it must be learned"
        )
    for group in ("sampler", "eval"):
        if config[group].variance == "learned" != trained:
            raise InputError(
                f"{group}.variance is 'learned', but the model has no channels for it: process.variance is {trained!r}"
            )


def check_guidance(config: ConfigDict) -> None:
    """Refuses guidance of a model that was not trained for it, and what has no use without guidance."""
    fields = config.sampler
    scale, interval = fields.guidance_scale, fields.guidance_interval
    if scale is None:
        taken = set(fields) - OF_GUIDANCE
        _refuse_unused(config, "sampler", taken, "an unset sampler.guidance_scale")
        return
    if config.model.num_classes == 0:
        raise InputError(f"sampler.guidance_scale is {scale}, but the model is unconditional")
    if config.train.label_dropout == 0:
        raise InputError(
            f"sampler.guidance_scale is {scale}, but the model was trained without label dropout "
            "(train.label_dropout is 0), so it cannot do without a class"
        )
    if interval is not None and (len(interval) != 2 or not interval[0] < interval[1]):
        raise InputError(
            f"sampler.guidance_interval is {interval}; it must be two numbers, the smaller one first"
        )


def check_limits(config: ConfigDict) -> None:
    """Refuses what stays as it is where x_0 is limited, if nothing limits it."""
    fields = config.sampler
    if not fields.clip and fields.dynamic_threshold is None:
        taken = set(fields) - {"clip_keeps"}
        _refuse_unused(config, "sampler", taken, "sampler.clip=false")
    if fields.guidance_scale is not None and fields.guidance_rescale == 0:
        taken = set(fields) - {"guidance_rescale_of"}
        _refuse_unused(config, "sampler", taken, "sampler.guidance_rescale=0")


def check_model_fits(config: ConfigDict, shape: tuple[int, int, int], num_classes: int) -> None:
    model = config.model
    if shape[2] not in (1, 3):
        raise InputError(
            f"{config.data.name} holds images of {shape[2]} channels; they must have 1 (grey) or 3 (RGB)"
        )
    if model.num_classes not in (0, num_classes):
        raise InputError(
            f"model.num_classes is {model.num_classes}; {config.data.name} has {num_classes} classes: set "
            f"{num_classes} or auto, or 0 for a model without classes"
        )
    if model.name != "unet":
        return
    factor = 2 ** (len(model.channel_mult) - 1)
    if shape[0] % factor or shape[1] % factor:
        raise InputError(
            f"image size {shape[0]}x{shape[1]} is not divisible by {factor}, the factor of a U-Net with "
            f"{len(model.channel_mult)} levels; change data.image_size or model.channel_mult"
        )
    heights = [shape[0] // 2**level for level in range(len(model.channel_mult))]
    for resolution in model.attention_resolutions:
        if resolution not in heights:
            raise InputError(
                f"model.attention_resolutions has {resolution}; the levels of this model have "
                f"{', '.join(map(str, heights))}"
            )


def check_times(config: ConfigDict, process: Process) -> None:
    """Refuses times that the process does not have, or that stand twice in a list."""
    last, first = make_grid(process, u_min=config.sampler.u_min).time[[0, -2]]
    low, high = outermost(first, last)
    allowed = f"from {first:g} to {last:g}" + (" (T - 1)" if config.process.name == "ddpm" else "")
    for name in ("sample.shared_t", "edit.times"):
        group, field = name.split(".")
        times = config[group][field]
        if times is None:
            continue
        if min(times) < low or max(times) > high or len(set(times)) < len(times):
            named = ", ".join(f"{t:.12g}" for t in times)
            raise InputError(f"{name} is ({named}); it must hold distinct times {allowed}")
    start = config.edit.start_t
    if start is not None and not low <= start <= high:
        raise InputError(f"edit.start_t is {start:.12g}; it must be {allowed}")


def check_edit(config: ConfigDict) -> None:
    """Refuses fields of an edit that its other fields have no use for."""
    fields = config.edit
    taken = (
        set(fields) - {"mask", "factor"} | inspect.signature(MERGES[fields.keep]).parameters.keys()
    )
    _refuse_unused(config, "edit", taken, f"edit.keep={fields.keep}")
    if fields.resamplings == 1:
        _refuse_unused(config, "edit", set(fields) - {"jump"}, "edit.resamplings=1")
    if not fields.latents:
        _refuse_unused(config, "edit", set(fields) - {"iterations"}, "edit.latents=false")


def check_invertible(config: ConfigDict) -> None:
    """Refuses latents of a sampler that leads to them by no way back."""
    name, eta = config.sampler.name, config.sampler.eta
    if not config.edit.latents:
        return
    if name not in INVERSES or eta > 0:
        raise InputError(
            f"edit.latents needs a sampler that can be inverted, {' or '.join(INVERSES)}, with sampler.eta=0; "
            f"sampler.name is {name!r}, with eta {eta}"
        )
    taken = set(config.edit) - {"iterations"} | inspect.signature(INVERSES[name]).parameters.keys()
    _refuse_unused(config, "edit", taken, f"the sampler {name!r}")


def check_temperature(config: ConfigDict, has_noise: bool, owner: str) -> None:
    """Refuses a temperature where no x_T is drawn or decoded that it could be of."""
    taken = set(config.sampler) - (set() if has_noise else {"temperature"})
    _refuse_unused(config, "sampler", taken, owner)


def warn_of_times(grid: Grid, times: Iterable[float | int], points: list[int], field: str) -> None:
    """Warns of times of a field that are not the grid's to six digits, with the points taken in their place."""
    taken = [f"{t:g}" for t in grid.time[points]]
    if missed := [t for t in (f"{t:g}" for t in times) if t not in taken]:
        named, nearest = ", ".join(missed), ", ".join(taken)
        warnings.warn(
            f"the sampler does not come by t = {named} of {field}; taken are the nearest times: {nearest}",
            stacklevel=2,
        )


def warn_of_grid(grid: Grid, whole: Grid, variance: str | None, group: str) -> None:
    """Warns of a chain that begins where images still show, or leaves out so much that beta_t is far too large."""
    if grid.time[0] < whole.time[0] and grid.signal[0] > LARGE_SIGNAL * grid.std[0]:
        warnings.warn(
            f"the chain starts from noise at t = {grid.time[0]:g}, where images still have a signal of "
            f"{grid.signal[0]:.2f}; let {group}.spacing hold later times",
            stacklevel=3,
        )
    if variance == "fixed_large" and 1 < grid.num_steps < whole.num_steps:
        std = grid.std[:-1]  # The step to the data adds no noise.
        most = np.square(std[:-1] / std[1:]).max()
        if most > LARGE_VARIANCE:
            warnings.warn(
                f"with {grid.num_steps} steps instead of {whole.num_steps}, the variance fixed_large is up to "
                f"{most:,.0f} times the posterior's; set --config.{group}.variance=fixed_small",
                stacklevel=3,
            )


def warn_of_prior(name: str, whole: Grid) -> None:
    """Warns of a process of that name at whose last time images still show: samples start from pure noise there."""
    signal, std = float(whole.signal[0]), float(whole.std[0])
    if signal > MOST_LEFT * std:
        warnings.warn(
            f"the process {name} does not end in noise alone: at t = {whole.time[0]:g} images keep a signal of "
            f"{signal:.2g} beside noise of {std:.2g}, but samples start without it, so they differ from the data in "
            f"what shows there; set {LESS_SIGNAL[name]}",
            stacklevel=3,
        )


def warn_of_solver(name: str, grid: Grid) -> None:
    """Warns of a grid whose steps are too long or too uneven for the solver: its images would be noise."""
    if name == "heun" and grid.num_steps > 1:
        most = np.exp(np.diff(grid.logsnr[:-1]) / 2).max()
        if most > LONG_STEP:
            warnings.warn(
                f"heun: std / signal falls by a factor of {most:,.0f} in a step; take more, and sampler.spacing=karras",
                stacklevel=3,
            )
    if name == "pndm":
        steps = -np.diff(grid.time[:-1])
        if len(steps) > 1 and steps.max() > UNEVEN * steps.min():
            warnings.warn(
                "pndm is for even steps; set sampler.spacing to leading, uniform or trailing",
                stacklevel=3,
            )
        elif grid.signal[0] < TINY_SIGNAL:
            warnings.warn(
                f"pndm divides by the signal, which is {grid.signal[0]:.1e} at t = {grid.time[0]:g}; "
                "set sampler.spacing=leading",
                stacklevel=3,
            )
