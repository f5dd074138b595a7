"""Edits of images by a trained network, as compiled functions from a config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array, Bool

from diffusion_jax import config as config_lib, data
from diffusion_jax.errors import InputError
from diffusion_jax.experiment.build import Experiment
from diffusion_jax.experiment.sampling import (
    TracedOptions,
    all_finite,
    drawing,
    evaluations,
    evaluations_of,
    sampler_options,
)
from diffusion_jax.processes.ode import Solution, SolverStats
from diffusion_jax.samplers import (
    CONSTRAINTS,
    SAMPLERS,
    Constraint,
    Sampler,
    inpaint,
    inpaint_nfe,
    interpolate,
    nearest_point,
    sample_loop,
    slerp,
)


def make_constraint(experiment: Experiment, mask: Bool[np.ndarray, "h w"] | None) -> Constraint:
    """Returns what `edit.keep` says is known of an image.

    Args:
      experiment: The run.
      mask: Which pixels are, for `edit.keep=mask`.

    Raises:
      InputError: Images that have no such part.
    """
    options = constraint_options(experiment)
    kind = CONSTRAINTS[experiment.config.edit.keep]
    if problem := kind.misfit(experiment.image_shape, options):
        raise InputError(problem)
    return kind.from_fields(options, mask=mask)


def constraint_options(experiment: Experiment) -> dict[str, Any]:
    """Returns the options of the config's constraint by field."""
    config = experiment.config
    options = config_lib.options_of(config, "edit")
    return {name: options[name] for name in CONSTRAINTS[config.edit.keep].options}


def inpaint_options(experiment: Experiment, sampler: Sampler) -> dict[str, int]:
    """Returns start, resamplings and jump of the config's edit.

    Raises:
      InputError: Nothing is kept but a start, and that is the sampler's first: noise alone.
    """
    fields = experiment.config.edit
    start = 0 if fields.start_t is None else nearest_point(sampler.grid, fields.start_t)
    if start == 0 and not CONSTRAINTS[fields.keep].keeps_part:
        raise InputError(
            f"edit.start_t is {fields.start_t:g}, and the nearest of the sampler's times is its first, "
            f"{sampler.grid.time[0]:g}, where all is noise: edit.keep={fields.keep} needs an earlier start"
        )
    return {"start": start, "resamplings": fields.resamplings, "jump": fields.jump}


def edit_nfe(experiment: Experiment, sampler: Sampler) -> int | None:
    """Returns the network evaluations an image of `make_inpaint`; guidance takes two at a time."""
    passes = inpaint_nfe(sampler, **inpaint_options(experiment, sampler))
    return evaluations_of(experiment, passes)


# uint8 images, whether all numbers of each are finite, and what the sampler says of it
Drawn = tuple[Array, Array, SolverStats]


def _drawn(images: Array, stats: SolverStats) -> Drawn:
    return data.to_uint8(images), all_finite(images), stats


def make_inpaint(experiment: Experiment, constraint: Constraint) -> Callable[..., Drawn]:
    """Returns (params, traced, indices, labels, images) -> (edited images, finite, stats), all images uint8."""

    def draw(
        params: Any, traced: TracedOptions, indices: Array, labels: Array | None, images: Array
    ) -> Drawn:
        parts = drawing(experiment, params, traced, indices, labels)
        options = inpaint_options(experiment, parts.sampler)
        edited = inpaint(*parts, data.to_model_range(images), constraint, **options)
        return _drawn(edited.images, edited.stats)

    return draw


def make_interpolate(experiment: Experiment) -> Callable[..., Drawn]:
    """Returns (params, traced, point, indices, labels, images, others, fraction) -> (images, finite, stats)."""

    def draw(
        params: Any,
        traced: TracedOptions,
        point: Any,
        indices: Array,
        labels: Array | None,
        *rows: Array,
    ) -> Drawn:
        images, others, fraction = rows
        between = interpolate(
            *drawing(experiment, params, traced, indices, labels),
            data.to_model_range(images),
            data.to_model_range(others),
            fraction,
            point,
        )
        return _drawn(between.images, between.stats)

    return draw


def make_encode(experiment: Experiment) -> Callable[..., Solution]:
    """Returns (params, traced, indices, labels, images) -> Solution, x_T.

    x_T is what the sampler, DDIM or the solver of the flow, makes these uint8 images of.
    """

    def draw(
        params: Any, traced: TracedOptions, indices: Array, labels: Array | None, images: Array
    ) -> Solution:
        denoise, sampler, _ = drawing(experiment, params, traced, indices, labels)
        inverse = SAMPLERS[experiment.sampler_name].inverse
        assert inverse is not None
        return inverse.from_fields(
            _solver_fields(experiment, traced),
            denoise=denoise,
            grid=sampler.grid,
            process=experiment.process,
            x0=data.to_model_range(images),
        )

    return draw


def _solver_fields(experiment: Experiment, traced: TracedOptions) -> dict[str, Any]:
    """Returns the fields of the options of a sampler's inverse, and of its way back."""
    return sampler_options(experiment) | traced.sampler | inversion_options(experiment)


def inversion_options(experiment: Experiment) -> dict[str, Any]:
    """Returns the options by field that the inverse of the config's sampler has in the edit group."""
    options = config_lib.options_of(experiment.config, "edit")
    return {name: options[name] for name in SAMPLERS[experiment.sampler_name].inversion_options}


def make_decode(experiment: Experiment) -> Callable[..., Drawn]:
    """Returns (params, traced, indices, labels, latents, others, fraction) -> (images, finite, stats).

    The images, uint8, are those of the x_T on the arc between, times the temperature.
    """

    def draw(
        params: Any, traced: TracedOptions, indices: Array, labels: Array | None, *rows: Array
    ) -> Drawn:
        parts = drawing(experiment, params, traced, indices, labels)
        x_init = traced.sampler["temperature"] * slerp(*rows)
        if decode := SAMPLERS[experiment.sampler_name].decode:
            solution = decode.from_fields(
                _solver_fields(experiment, traced),
                denoise=parts.denoise,
                grid=parts.sampler.grid,
                process=experiment.process,
                x_init=x_init,
            )
            return _drawn(solution.y, solution.stats)
        result = sample_loop(*parts, experiment.image_shape, x_init=x_init)
        return _drawn(result.images, result.stats)

    return draw


def latents_nfe(experiment: Experiment, encodings: list[int], decodings: list[int]) -> int | float:
    """Returns the network evaluations of one encoding and one decoding, on average.

    Args:
      experiment: The run.
      encodings: Evaluations of each encoding.
      decodings: Evaluations of each decoding.
    """
    mean = float(np.mean(encodings) + np.mean(decodings)) * evaluations(experiment)
    return int(mean) if mean.is_integer() else round(mean, 1)
