"""Samples of a trained network: the config's sampler and denoiser, and options that need no recompilation."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Key, UInt8

from diffusion_jax import config as config_lib, data
from diffusion_jax.errors import InputError, RunError
from diffusion_jax.experiment.build import Experiment
from diffusion_jax.experiment.checks import warn_of_grid, warn_of_prior
from diffusion_jax.experiment.denoisers import denoiser_of
from diffusion_jax.models.denoiser import Denoise
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import Grid
from diffusion_jax.samplers import (
    SAMPLERS,
    Sampler,
    SampleResult,
    Shared,
    SolverStats,
    frame_steps,
    image_keys,
    sample_loop,
    shared_structure,
)
from diffusion_jax.samplers.batches import COLUMNS, make_batch_sampler

FAST = "dpmpp_2m"  # For pictures while training.
_STEPS = ("name", "num_steps", "spacing", "u_min")
_DTYPES = {int: np.int32, bool: np.bool_}  # Of other kinds: float32.


class TracedOptions(NamedTuple):
    """Numbers of a sampling job that are arguments of its compiled program: others need no other program.

    Attributes:
      seed: `sample.seed`.
      sampler: The traced fields of the sampler group that the config's sampler has, of those that are set.
      classifier: Parameters of the classifier that guides; None: there is none.
    """

    seed: Any
    sampler: dict[str, Any]
    classifier: Any = None


def traced_options(experiment: Experiment) -> TracedOptions:
    """Returns the config's own."""
    config = experiment.config
    fields = {
        name: (config_lib.FIELDS[f"sampler.{name}"], value)
        for name, value in config_lib.options_of(config, "sampler").items()
    }
    traced = {
        name: _DTYPES.get(field.kind.python_type, np.float32)(value)
        for name, (field, value) in fields.items()
        if field.traced and value is not None
    }
    classifier = experiment.classifier
    params = None if classifier is None else classifier.foreign.params
    return TracedOptions(np.uint32(config.sample.seed), traced, params)


def sampler_options(experiment: Experiment) -> dict[str, Any]:
    """Returns the fields that decide what the config's sampler draws; an unset variance is the process's own."""
    return config_lib.options_of(experiment.config, "sampler")


def decisive_options(experiment: Experiment) -> dict[str, Any]:
    """Returns these fields, but of a classifier the checksum of its file and its scale; nothing if there is none."""
    options, classifier = sampler_options(experiment), experiment.classifier
    for name in ("classifier", "classifier_settings", "classifier_scale"):
        value = options.pop(name, None)
        if classifier is not None:
            options[name] = value
    if classifier is None:
        return options
    scale = options["classifier_scale"]
    return options | {
        "classifier": classifier.sha256,
        "classifier_scale": 1.0 if scale is None else scale,
    }


def program_key(experiment: Experiment) -> str:
    """Returns what the compiled program of a sampling job depends on, besides the network and the batch."""
    traced = traced_options(experiment).sampler
    options = sampler_options(experiment).items()
    return repr([(name, "traced" if name in traced else value) for name, value in options])


def for_pictures(experiment: Experiment) -> Experiment:
    """Returns the experiment with the sampler of a training's own pictures.

    That is the one of the sampler group if its fields say which sampler, or where its steps are; otherwise a fast
    solver in `train.sample_steps` steps, guided and limited as the group says.
    """
    num_steps, values = (
        experiment.config.train.sample_steps,
        dict(config_lib.fields(experiment.config)),
    )
    decide = [
        name
        for name, field in config_lib.FIELDS.items()
        if config_lib.group_of(name) == "sampler"
        and (field.owners or name.removeprefix("sampler.") in _STEPS)
    ]
    told = any(values[name] != config_lib.FIELDS[name].default for name in decide)
    fitting = SAMPLERS[FAST].processes
    if (
        told
        or (fitting and experiment.config.process.name not in fitting)
        or not 0 < num_steps < make_grid(experiment.process).num_steps
    ):
        return experiment
    config = copy.deepcopy(experiment.config)
    config_lib.select(config, "sampler.name", FAST)
    config.sampler.num_steps, config.sampler.spacing = num_steps, "trailing"
    return dataclasses.replace(experiment, config=config)


def decides_pictures(experiment: Experiment, step: int, average: dict[str, Any]) -> dict[str, Any]:
    """Returns what decides pictures drawn from a checkpoint.

    Args:
      experiment: The experiment with the sampler that draws them.
      step: Of the checkpoint.
      average: Which average of its parameters.
    """
    return {
        "config_hash": experiment.config_hash,
        "step": step,
        **average,
        "sampler": decisive_options(experiment),
        "seed": experiment.config.sample.seed,
        "labels": experiment.config.sample.labels,
    }


def picture_times(experiment: Experiment) -> Float64[np.ndarray, " f"]:
    """Returns the times of the moments of the reverse process that pictures show, from noise to data."""
    grid = sampler_of(experiment).grid
    return grid.time[frame_steps(grid.num_steps, min(COLUMNS, grid.num_steps + 1))]


def make_sampler(experiment: Experiment) -> Sampler:
    """Returns the sampler on its grid; warns of a start or of a variance that does not suit it."""
    sampler = sampler_of(experiment)
    variance = sampler_options(experiment).get("variance")
    whole = make_grid(experiment.process)
    warn_of_prior(experiment.config.process.name, whole)
    warn_of_grid(sampler.grid, whole, variance, "sampler")
    if problem := SAMPLERS[experiment.sampler_name].unsuited(sampler.grid):
        warnings.warn(problem, stacklevel=2)
    return sampler


def own_prior_std(experiment: Experiment) -> float | None:
    """Returns the standard deviation that the sampler's grid starts with, if that is not the process's."""
    prior_std = _grid(experiment).prior_std
    return None if np.isclose(prior_std, experiment.process.prior_std, rtol=1e-9) else prior_std


def _grid(experiment: Experiment) -> Grid:
    """Returns the sampler's grid, of as many steps as are set, or as are its own default, or the process's."""
    fields = experiment.config.sampler
    num_steps = fields.num_steps
    if num_steps is None and isinstance(fields.spacing, str):  # A list says itself how many.
        num_steps = SAMPLERS[fields.name].num_steps
    return make_grid(experiment.process, num_steps, fields.spacing, fields.u_min)


def sampler_of(experiment: Experiment, traced: TracedOptions | None = None) -> Sampler:
    """Returns the sampler, where asked for with numbers that are arguments of the program."""
    options = sampler_options(experiment)
    if traced is not None:
        options |= traced.sampler
    given = {"grid": _grid(experiment), "process": experiment.process}
    sampler = SAMPLERS[options["name"]].from_fields(options, **given)
    return sampler._replace(temperature=options["temperature"])


def evaluations(experiment: Experiment) -> int:
    """Returns the network evaluations of a denoiser: guidance takes two at a time."""
    return 1 if experiment.guidance_scale is None else 2


def evaluations_of(experiment: Experiment, passes: int | None) -> int | None:
    """Returns the network evaluations of so many of a denoiser; None: only the run can tell."""
    return None if passes is None else passes * evaluations(experiment)


def all_finite(images: Float[Array, " b *dims"]) -> Bool[Array, " b"]:
    """Whether all numbers of an image are finite."""
    return jnp.isfinite(images).all(tuple(range(1, images.ndim)))


def check_finished(
    experiment: Experiment,
    params: Any,
    finite: Bool[np.ndarray, " n"],
    stats: SolverStats,
) -> None:
    """Raises if images are not finite, which includes those that an adaptive sampler has not finished.

    Args:
      experiment: The run.
      params: Parameters that they were drawn with.
      finite: Whether all of an image's numbers are.
      stats: What the sampler says of them.

    Raises:
      RunError: Not all are finite.
      InputError: Not all are finished.
    """
    unfinished = ~np.asarray(stats.finished)
    if finite.all() and not unfinished.any():
        return
    arrays = jax.tree.leaves(params)
    if broken := sum(not bool(jnp.isfinite(array).all()) for array in arrays):
        raise RunError(
            f"{(~finite).sum()} of {len(finite)} images are not finite, and neither are {broken} of the {len(arrays)} "
            "arrays of the checkpoint's parameters; take an earlier checkpoint, by sample.step"
        )
    if unfinished.any():
        furthest = np.asarray(stats.reached)[unfinished].max()
        advice = SAMPLERS[experiment.sampler_name].advice(sampler_options(experiment))
        raise InputError(
            f"{unfinished.sum()} of {len(finite)} images were not finished: the solver stopped at t = {furthest:.4g} "
            f"{advice}".rstrip()
        )
    raise RunError(
        f"{(~finite).sum()} of {len(finite)} images are not finite, though the parameters are: numbers grow beyond "
        f"float range in the sampler {experiment.sampler_name!r}; try model.dtype=float32, sampler.clip=true, or less "
        "guidance"
    )


class Drawing(NamedTuple):
    """Common setup of all programs that draw images."""

    denoise: Denoise
    sampler: Sampler
    keys: Key[Array, " b"]


def drawing(
    experiment: Experiment,
    params: Any,
    traced: TracedOptions,
    indices: Array,
    labels: Array | None,
) -> Drawing:
    """Returns the config's denoiser and sampler, and the images' keys. To be called inside a compiled program."""
    traced = jax.tree.map(jnp.asarray, traced)  # As a compiled program gets them anyway.
    return Drawing(
        denoiser_of(
            experiment,
            experiment.config.sampler,
            params,
            traced.sampler,
            traced.classifier,
            labels,
        ),
        sampler_of(experiment, traced),
        image_keys(traced.seed, indices),
    )


def make_draw(
    experiment: Experiment,
    *,
    num_frames: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Callable[..., SampleResult]:
    """Returns (params, traced, indices, labels) -> SampleResult of uint8 images, to be compiled."""

    def draw(
        params: Any, traced: TracedOptions, indices: Array, labels: Array | None
    ) -> SampleResult:
        result = sample_loop(
            *drawing(experiment, params, traced, indices, labels),
            experiment.image_shape,
            num_frames=num_frames,
            progress=progress,
        )
        images, x_t, x0_hat = jax.tree.map(data.to_uint8, result[:3])
        return SampleResult(images, x_t, x0_hat, result.stats, all_finite(result.images))

    return draw


def make_drawn(
    experiment: Experiment,
    mesh: jax.sharding.Mesh,
    num_images: int,
    labels: Sequence[int] | None,
) -> Callable[[Any], UInt8[np.ndarray, "n h w c"]]:
    """Returns params -> the images of the job of so many that the config describes, in memory.

    Args:
      experiment: What draws them.
      mesh: Devices.
      num_images: Number of images.
      labels: Classes in turn; None: all.

    Raises (when called):
      RunError: Not all images are finite.
      InputError: An adaptive sampler has not finished all.
    """
    fields = experiment.config.sample
    draw = make_batch_sampler(
        make_draw(experiment),
        mesh,
        min(fields.batch_size, num_images),
        num_classes=experiment.label_classes,
    )
    settings = traced_options(experiment)

    def drawn(params: Any) -> UInt8[np.ndarray, "n h w c"]:
        samples = draw(params, settings, np.arange(num_images), labels)
        check_finished(experiment, params, samples.finite, samples.stats)
        return samples.images

    return drawn


def make_draw_shared(experiment: Experiment, num_samples: int) -> Callable[..., Shared]:
    """Returns (params, traced, point, indices, labels) -> Shared of uint8 images, to be compiled."""

    def draw(
        params: Any, traced: TracedOptions, point: Any, indices: Array, labels: Array | None
    ) -> Shared:
        parts = drawing(experiment, params, traced, indices, labels)
        result = shared_structure(*parts, experiment.image_shape, point, num_samples)
        return jax.tree.map(data.to_uint8, result)

    return draw
