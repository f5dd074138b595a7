"""Checks that the fields of a config fit one another, the components that they choose, and the data."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax.errors import InputError
from diffusion_jax.losses import LOSSES
from diffusion_jax.models.preconditioning import PREDICTIONS
from diffusion_jax.options.kinds import Steps
from diffusion_jax.processes.grid import make_grid, outermost
from diffusion_jax.processes.process import Grid, Process, are_counted, levels_of
from diffusion_jax.processes.registry import PROCESSES
from diffusion_jax.samplers import SAMPLERS

LARGE_SIGNAL = 0.3  # Relative to the noise: starting a sampler there from noise alone shows.
MOST_LEFT = 0.101  # Of the signal relative to the noise at the last time: a tenth, of VE by Technique 1 for digits.
LARGE_VARIANCE = 2  # Relative to the posterior's: in less the two are much the same.


def check_solver_fits(config: ConfigDict) -> None:
    """Raises if the solver is for another kind of process."""
    name, process = config.sampler.name, config.process.name
    fitting = SAMPLERS[name].processes
    if fitting and process not in fitting:
        raise InputError(
            f"sampler.name is {name!r}, which does not fit the process {process!r}; it fits {', '.join(fitting)}"
        )


def check_sampler_options(config: ConfigDict) -> None:
    """Raises if options of the sampler do not fit one another."""
    rule = SAMPLERS[config.sampler.name]
    if problem := rule.check(config_lib.options_of(config, "sampler")):
        raise InputError(problem)


def check_profile(config: ConfigDict) -> None:
    """Raises an InputError if train.profile is not of the training's steps."""
    steps, num_steps = config.train.profile, config.train.num_steps
    if steps is not None and Steps.ends(steps)[1] > num_steps:
        raise InputError(
            f"train.profile is {steps}, but train.num_steps is {num_steps}; name steps that the run has"
        )


def check_variance(config: ConfigDict) -> None:
    """Raises if variances are learned, but the network does not predict them or the loss does not train them."""
    trained, loss = config.process.variance, config.loss.name
    if trained == "learned" and not LOSSES[loss].takes("variance"):
        raise InputError(
            f"process.variance is 'learned', but the loss {loss!r} does not train it; set loss.name to hybrid or vlb"
        )
    only = LOSSES[loss].only_variance
    if only is not None and trained != only:
        raise InputError(
            f"loss.name is {loss!r}, but process.variance is {trained!r}; it must be {only}"
        )
    for group in ("sampler", "eval"):
        if config[group].get("variance") == "learned" != trained:
            raise InputError(
                f"{group}.variance is 'learned', but the model has no channels for it: process.variance is {trained!r}"
            )


def check_zero_snr(config: ConfigDict) -> None:
    """Raises if the last step erases the image, but the prediction there says nothing of it."""
    name = config.process.prediction
    if config.process.zero_snr and PREDICTIONS[name].noise_alone:
        able = ", ".join(other for other, kind in PREDICTIONS.items() if not kind.noise_alone)
        raise InputError(
            f"process.zero_snr is True, but the prediction {name!r} does not tell the image from pure noise; set "
            f"process.prediction to one of {able}"
        )


def check_guidance(config: ConfigDict) -> None:
    """Raises if guidance is set, but the model was not trained for it."""
    fields = config.sampler
    scale, interval = fields.guidance_scale, fields.guidance_interval
    if scale is None:
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


def check_classifier(config: ConfigDict) -> None:
    """Raises if a classifier is to guide what its gradient cannot be added to."""
    fields = config.sampler
    if fields.classifier is None:
        return
    if config.process.zero_snr:
        raise InputError(
            "sampler.classifier is set, but process.zero_snr is True: at the last step there is no image to classify"
        )
    if fields.clip_keeps is not None:
        raise InputError(
            f"sampler.clip_keeps is {fields.clip_keeps!r}, but sampler.classifier changes eps; leave it unset"
        )


def check_classes_of(config: ConfigDict, num_classes: int) -> None:
    """Raises if a classifier of so many classes does not know those of the model, or those of `sample.labels`."""
    if config.model.num_classes not in (0, num_classes):
        raise InputError(
            f"sampler.classifier knows {num_classes} classes, but the model {config.model.num_classes}"
        )
    for label in config.sample.labels or ():
        if not isinstance(label, int) or label >= num_classes:
            raise InputError(
                f"sample.labels has {label!r}; the classifier's classes are numbers from 0 to {num_classes - 1}"
            )


def check_model_fits(config: ConfigDict, shape: tuple[int, int, int], num_classes: int) -> None:
    """Raises if the model does not fit the data: images of another number of channels, or other classes."""
    model = config.model
    if shape[2] not in (1, 3):
        raise InputError(
            f"{config.data.name} holds images of {shape[2]} channels; they must have 1 (gray) or 3 (RGB)"
        )
    if model.num_classes not in (0, num_classes):
        raise InputError(
            f"model.num_classes is {model.num_classes}; {config.data.name} has {num_classes} classes: set "
            f"{num_classes} or auto, or 0 for a model without classes"
        )


def check_average(ema: bool | float, ema_length: float | None) -> None:
    """Raises InputError if what names an average is out of range, or names two."""
    for name, value in (("sample.ema", ema), ("sample.ema_length", ema_length)):
        if problem := config_lib.FIELDS[name].problem(value):
            raise InputError(f"{name} {problem}")
    if ema_length is not None and ema is not True:
        raise InputError(
            f"sample.ema is {ema!r} and sample.ema_length is {ema_length!r}, which name two averages; leave one unset"
        )


def check_times(config: ConfigDict, process: Process) -> None:
    """Raises if times are out of the process's range or repeated."""
    last, first = make_grid(process, u_min=config.sampler.u_min).time[[0, -2]]
    low, high = outermost(first, last)
    levels = levels_of(process)
    allowed = f"from {first:g} to {last:g}" + (
        " (T - 1)" if levels is not None and are_counted(levels) else ""
    )
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


def check_invertible(config: ConfigDict) -> None:
    """Raises if latents are requested, but the sampler is not invertible, or its inverse lacks a set option."""
    if not config.edit.latents:
        return
    name, fields = config.sampler.name, config.sampler
    rule = SAMPLERS[name]
    if rule.inverse is None or any(fields[n] != value for n, value in rule.invertible_at.items()):
        able = [
            other
            + "".join(f" with sampler.{n}={value:g}" for n, value in rule.invertible_at.items())
            for other, rule in SAMPLERS.items()
            if rule.inverse
        ]
        values = "".join(f", with {n} {fields[n]:g}" for n in rule.invertible_at)
        raise InputError(
            f"edit.latents needs a sampler that can be inverted, {' or '.join(able)}; "
            f"sampler.name is {name!r}{values}"
        )
    config_lib.check_used(config, trained=True, strict=True)


def check_temperature(config: ConfigDict, has_noise: bool, owner: str) -> None:
    """Raises if `temperature` is set but no noise is drawn or decoded."""
    value, default = config.sampler.temperature, config_lib.FIELDS["sampler.temperature"].default
    if not has_noise and value != default:
        raise InputError(
            f"sampler.temperature is {value!r}, but {owner} has none; leave it at its default, {default!r}"
        )


def warn_of_times(grid: Grid, times: Iterable[float | int], points: list[int], field: str) -> None:
    """Warns about times of a field that are not on the grid to six digits, and names the nearest ones."""
    taken = [f"{t:g}" for t in grid.time[points]]
    if missed := [t for t in (f"{t:g}" for t in times) if t not in taken]:
        named, nearest = ", ".join(missed), ", ".join(taken)
        warnings.warn(
            f"{field}: t = {named} is not on the sampler's grid; using the nearest times {nearest}",
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
            f"what shows there; set {PROCESSES[name].less_signal}",
            stacklevel=3,
        )
