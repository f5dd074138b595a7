"""What a trained network draws: the config's sampler and denoiser, and the numbers that compile nothing anew."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.denoiser import Denoise
from diffusion_jax.errors import InputError, RunError
from diffusion_jax.experiment.build import Experiment, make_process
from diffusion_jax.experiment.checks import (
    accepted,
    sampler_takes,
    warn_of_grid,
    warn_of_prior,
    warn_of_solver,
)
from diffusion_jax.guidance import classifier_free, clip_denoised, dynamic_threshold
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.samplers import (
    DEFAULT_STEPS,
    SAMPLERS,
    Sampler,
    SampleResult,
    Shared,
    Solve,
    image_keys,
    sample_loop,
    shared_structure,
)

# Fields that a compiled program takes as arguments.
TRACED = ("eta", "temperature", "rtol", "atol", "guidance_scale", "guidance_rescale")


class Settings(NamedTuple):
    """Numbers of a sampling job that are arguments of its compiled program: others need no other program.

    Attributes:
      seed: `sample.seed`.
      eta: `sampler.eta`.
      temperature: `sampler.temperature`.
      rtol: `sampler.rtol`.
      atol: `sampler.atol`.
      guidance_scale: `sampler.guidance_scale`; without guidance it has no meaning.
      guidance_rescale: `sampler.guidance_rescale`.
    """

    seed: Any
    eta: Any
    temperature: Any
    rtol: Any
    atol: Any
    guidance_scale: Any
    guidance_rescale: Any


def settings(config: ConfigDict) -> Settings:
    """Returns the config's own."""
    numbers = (np.float32(config.sampler[name] or 0) for name in TRACED)
    return Settings(np.uint32(config.sample.seed), *numbers)


def sampler_options(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields that decide what the config's sampler draws; an unset variance is the process's own."""
    options = config.sampler.to_dict()
    options["variance"] = options["variance"] or config.process.variance
    taken = sampler_takes(config.sampler.name)
    return {name: value for name, value in options.items() if name in taken}


def make_sampler(experiment: Experiment) -> Sampler:
    """Returns the sampler on its grid; warns of a start or of a variance that does not suit it."""
    sampler = sampler_of(experiment)
    variance = accepted(
        SAMPLERS[experiment.config.sampler.name], sampler_options(experiment.config)
    )
    whole = make_grid(experiment.process)
    warn_of_prior(experiment.config.process.name, whole)
    warn_of_grid(sampler.grid, whole, variance.get("variance"), "sampler")
    warn_of_solver(experiment.config.sampler.name, sampler.grid)
    return sampler


def own_prior_std(config: ConfigDict) -> float | None:
    """Returns the standard deviation that the sampler's grid starts with, if that is not the process's."""
    process, fields = make_process(config), config.sampler
    prior_std = make_grid(process, _num_steps(config), fields.spacing, fields.u_min).prior_std
    return None if np.isclose(prior_std, process.prior_std, rtol=1e-9) else prior_std


def _num_steps(config: ConfigDict) -> int | None:
    """Returns the steps of the sampler's grid: as set, or its own default; None leaves them to the process."""
    fields = config.sampler
    if fields.num_steps is None and isinstance(fields.spacing, str):  # A list says itself how many.
        return DEFAULT_STEPS.get(fields.name)
    return fields.num_steps


def sampler_of(experiment: Experiment, numbers: Settings | None = None) -> Sampler:
    """Returns the sampler, where asked for with numbers that are arguments of the program."""
    options = sampler_options(experiment.config)
    process, num_steps = experiment.process, _num_steps(experiment.config)
    grid = make_grid(process, num_steps, options["spacing"], options["u_min"])
    make = SAMPLERS[options["name"]]
    if numbers is not None:
        options |= {name: getattr(numbers, name) for name in TRACED}
    sampler = make(grid, **accepted(make, {"process": process, **options}))
    return sampler._replace(temperature=options["temperature"])


def evaluations(config: ConfigDict) -> int:
    """Returns the network evaluations of a denoiser: guidance takes two at a time."""
    return 1 if config.sampler.guidance_scale is None else 2


def all_finite(images: Float[Array, " b *dims"]) -> Bool[Array, " b"]:
    """Whether all numbers of an image are finite."""
    return jnp.isfinite(images).all(tuple(range(1, images.ndim)))


def check_finished(
    config: ConfigDict,
    params: Any,
    finite: Bool[np.ndarray, " n"] | None,
    solve: Solve | None = None,
) -> None:
    """Refuses images that are not finite, or that an adaptive sampler has not finished, which are not finite either.

    Args:
      config: The config.
      params: Parameters that they were drawn with.
      finite: Whether all of an image's numbers are; None: nobody has looked.
      solve: What an adaptive sampler says of them; None of another sampler, or where it is not known.

    Raises:
      RunError: Not all are finite.
      InputError: Not all are finished.
    """
    unfinished = None if solve is None else ~np.asarray(solve.finished)
    if finite is None:
        finite = np.ones(1, bool) if unfinished is None else ~unfinished
    if finite.all() and (unfinished is None or not unfinished.any()):
        return
    fields, arrays = config.sampler, jax.tree.leaves(params)
    limit = (
        f"sampler.max_steps={fields.max_steps} steps with sampler.rtol={fields.rtol:g} and sampler.atol="
        f"{fields.atol:g}; allow more steps, or larger tolerances"
    )
    if broken := sum(not bool(jnp.isfinite(array).all()) for array in arrays):
        raise RunError(
            f"{(~finite).sum()} of {len(finite)} images are not finite, and neither are {broken} of the {len(arrays)} "
            "arrays of the checkpoint's parameters; take an earlier checkpoint, by sample.step"
        )
    if solve is not None and unfinished is not None and unfinished.any():
        furthest = np.asarray(solve.reached)[unfinished].max()
        raise InputError(
            f"{unfinished.sum()} of {len(finite)} images were not finished: the solver stopped at t = {furthest:.4g} "
            f"after {limit}"
        )
    wrong = f"{(~finite).sum()} of {len(finite)} images are not finite, though the parameters are"
    # Edits do not say how far the solver came.
    if solve is None and "max_steps" in sampler_takes(fields.name):
        raise InputError(
            f"{wrong}: the solver stopped after {limit}; or numbers grew beyond float range: try model.dtype=float32"
        )
    raise RunError(
        f"{wrong}: numbers grow beyond float range in the sampler {fields.name!r}; try model.dtype=float32, "
        "sampler.clip=true, or less guidance"
    )


class Drawing(NamedTuple):
    """What every program that draws begins with."""

    denoise: Denoise
    sampler: Sampler
    keys: Key[Array, " b"]


def drawing(
    experiment: Experiment, params: Any, numbers: Settings, indices: Array, labels: Array | None
) -> Drawing:
    """Returns the config's denoiser and sampler, and the images' keys. To be called inside a compiled program."""
    numbers = Settings(*map(jnp.asarray, numbers))  # As a compiled program gets them anyway.
    return Drawing(
        _denoiser(experiment, params, numbers, labels),
        sampler_of(experiment, numbers),
        image_keys(numbers.seed, indices),
    )


def make_draw(
    experiment: Experiment,
    *,
    num_frames: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Callable[..., SampleResult]:
    """Returns (params, settings, indices, labels) -> SampleResult of uint8 images, to be compiled."""

    def draw(params: Any, numbers: Settings, indices: Array, labels: Array | None) -> SampleResult:
        result = sample_loop(
            *drawing(experiment, params, numbers, indices, labels),
            experiment.image_shape,
            num_frames=num_frames,
            progress=progress,
        )
        pixels = jax.tree.map(data.to_uint8, result._replace(solve=None))
        return pixels._replace(solve=result.solve, finite=all_finite(result.images))

    return draw


def make_draw_shared(experiment: Experiment, num_samples: int) -> Callable[..., Shared]:
    """Returns (params, settings, point, indices, labels) -> Shared of uint8 images, to be compiled."""

    def draw(
        params: Any, numbers: Settings, point: Any, indices: Array, labels: Array | None
    ) -> Shared:
        parts = drawing(experiment, params, numbers, indices, labels)
        result = shared_structure(*parts, experiment.image_shape, point, num_samples)
        return jax.tree.map(data.to_uint8, result)

    return draw


def _denoiser(
    experiment: Experiment, params: Any, numbers: Settings, labels: Array | None
) -> Denoise:
    """Returns the denoiser that the config samples with: guided, then limited."""
    fields = experiment.config.sampler
    if fields.guidance_scale is None:
        denoise = experiment.denoiser(params, labels)
    else:
        assert labels is not None
        no_class = jnp.full_like(labels, experiment.config.model.num_classes)
        denoise = classifier_free(
            experiment.denoiser(params, jnp.concatenate([labels, no_class])),
            numbers.guidance_scale,
            interval=fields.guidance_interval,
            rescale=numbers.guidance_rescale,
            rescale_of=fields.guidance_rescale_of or "x0",
        )
    keep_eps = fields.clip_keeps == "eps"
    if fields.dynamic_threshold is not None:
        return dynamic_threshold(denoise, fields.dynamic_threshold, keep_eps=keep_eps)
    return clip_denoised(denoise, keep_eps=keep_eps) if fields.clip else denoise
