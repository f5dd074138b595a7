"""From a config to the objects that commands work with: process, network, data, sampler."""

import dataclasses
import inspect
import tempfile
import warnings
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax import data
from diffusion_jax.denoiser import Denoise, make_denoiser
from diffusion_jax.errors import InputError, choose
from diffusion_jax.guidance import clip_denoised
from diffusion_jax.losses import TIMES, WEIGHTINGS, Objective, Times, Weighting, loss_function
from diffusion_jax.losses.times import NUM_BINS
from diffusion_jax.models import MODELS, Model, as_functions
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.process import Grid, Process
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.samplers import (
    SAMPLERS,
    Sampler,
    SampleResult,
    Shared,
    image_keys,
    sample_loop,
    shared_structure,
)
from diffusion_jax.training.optimizer import Decay, ema_decay, make_optimizer

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
LARGE_SIGNAL = 0.3  # Relative to the noise: starting a sampler there from noise alone shows.
AVERAGE = "default"  # Name of the parameters' average that is sampled from.


def _ddpm(fields: ConfigDict) -> DDPM:
    return DDPM(
        make_schedule(fields.schedule, fields.num_timesteps, fields.beta_start, fields.beta_end)
    )


# The config's process group -> Process
PROCESSES: dict[str, Callable[[ConfigDict], Process]] = {"ddpm": _ddpm}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What data, model and process of a config stand for.

    Attributes:
      config: The config.
      process: Forward process.
      model: Network as pure functions.
      image_shape: (H, W, C).
    """

    config: ConfigDict
    process: Process
    model: Model
    image_shape: tuple[int, int, int]

    def objective(self) -> Objective:
        """Returns what training minimises."""
        return loss_function(
            *(self.config.loss.name, self.process, self.config.process.prediction),
            self.model.apply,
            weighting=_weighting(self.config),
            times=_times(self.config, self.process),
        )

    def sampler(self) -> Sampler:
        """Returns the sampler on its grid; warns of a start or of a variance that does not suit it."""
        options = sampler_options(self.config)
        grid = self.process.grid(options["num_steps"], options["spacing"])
        whole = self.process.grid()
        if grid.time[0] < whole.time[0] and grid.signal[0] > LARGE_SIGNAL * grid.std[0]:
            warnings.warn(
                f"sampling starts from noise at t = {grid.time[0]:g}, where images still have a signal of "
                f"{grid.signal[0]:.2f}; let sampler.spacing hold later times",
                stacklevel=2,
            )
        make = choose("sampler.name", options["name"], SAMPLERS)
        accepted = _accepted(make, options)
        if accepted.get("variance") == "fixed_large":
            _warn_of_noise(grid, whole.num_steps)
        return make(grid, **accepted)

    def draw(
        self,
        sampler: Sampler,
        *,
        num_frames: int = 0,
        progress: Callable[[int], object] | None = None,
    ) -> Callable[..., SampleResult]:
        """Returns (params, seed, indices, labels) -> SampleResult of uint8 images, to be compiled."""

        def draw(params: Any, seed: Any, indices: Array, labels: Array | None) -> SampleResult:
            result = sample_loop(
                self._denoiser(params, labels),
                sampler,
                image_keys(seed, indices),
                self.image_shape,
                num_frames=num_frames,
                progress=progress,
            )
            return jax.tree.map(data.to_uint8, result)

        return draw

    def draw_shared(self, sampler: Sampler, num_samples: int) -> Callable[..., Shared]:
        """Returns (params, seed, point, indices, labels) -> Shared of uint8 images, to be compiled."""

        def draw(
            params: Any, seed: Any, point: Any, indices: Array, labels: Array | None
        ) -> Shared:
            keys, denoise = image_keys(seed, indices), self._denoiser(params, labels)
            result = shared_structure(denoise, sampler, keys, self.image_shape, point, num_samples)
            return jax.tree.map(data.to_uint8, result)

        return draw

    def _denoiser(self, params: Any, labels: Array | None) -> Denoise:
        denoise = make_denoiser(
            self.process, self.config.process.prediction, self.model.apply, params, labels=labels
        )
        return clip_denoised(denoise) if self.config.sampler.clip else denoise

    @property
    def conditional(self) -> bool:
        """Whether the network is given labels."""
        return self.config.model.num_classes > 0


def _accepted(make: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """Returns those of the options that a registry's entry takes."""
    return {k: v for k, v in options.items() if k in inspect.signature(make).parameters}


def _weighting(config: ConfigDict) -> Weighting | None:
    options = config.loss.to_dict()
    make = WEIGHTINGS.get(options["weighting"])
    return make and make(**_accepted(make, options))


def _times(config: ConfigDict, process: Process) -> Times:
    make = TIMES[config.loss.times]
    num_bins = process.num_timesteps if isinstance(process, DDPM) else NUM_BINS
    return make(**_accepted(make, {"num_bins": num_bins}))


def sampler_options(config: ConfigDict) -> dict[str, Any]:
    """Returns the config's sampler group, with the process's own variance where it sets none."""
    options = config.sampler.to_dict()
    return options | {"variance": options["variance"] or config.process.variance}


def _warn_of_noise(grid: Grid, all_steps: int) -> None:
    """Warns if the grid leaves out so much that fixed_large, beta_t, is not the posterior's variance any more."""
    std = grid.std[:-1]  # The step to the data adds no noise.
    if 1 < grid.num_steps < all_steps:
        most = np.square(std[:-1] / std[1:]).max()
        warnings.warn(
            f"with {grid.num_steps} steps instead of {all_steps}, the variance fixed_large is up to {most:,.0f} times "
            "the posterior's; set --config.sampler.variance=fixed_small",
            stacklevel=3,
        )


def make_optimizer_of(config: ConfigDict) -> optax.GradientTransformation:
    """Returns the config's optimiser."""
    fields = config.optimizer
    return make_optimizer(
        fields.learning_rate,
        fields.warmup_steps,
        fields.grad_clip,
        decay=fields.decay,
        num_steps=config.train.num_steps,
    )


def make_averages_of(config: ConfigDict) -> dict[str, Decay]:
    """Returns the decays of the config's averages of the parameters, by name."""
    fields = config.optimizer
    return {AVERAGE: ema_decay(fields.ema_decay, warmup=fields.ema_warmup)}


def load_split(config: ConfigDict, split: str) -> data.Split:
    """Opens the config's data, preparing it if this is the first time."""
    fields = config.data
    return data.load(
        fields.name,
        split,
        source_dir=fields.source_dir,
        sha256=fields.sha256,
        image_size=fields.image_size,
        test_fraction=fields.test_fraction,
        cache_dir=fields.cache_dir,
    )


def build(config: ConfigDict, image_shape: tuple[int, int, int], num_classes: int) -> Experiment:
    """Builds process and network for images of this shape.

    Args:
      config: A valid config.
      image_shape: (H, W, C) of the data.
      num_classes: Number of classes that the data has; 0 if it is not labelled.

    Raises:
      InputError: Image size or classes that the model does not fit.
    """
    model = config.model
    _check_model_fits(config, image_shape, num_classes)
    make = MODELS[model.name]
    options = {name: value for name, value in model.items() if name != "name"}
    options["dtype"] = DTYPES[model.dtype]
    options["out_channels"] = image_shape[2] * (2 if config.process.variance == "learned" else 1)
    network = as_functions(make(**_accepted(make, options)), image_shape)
    return Experiment(config, make_process(config), network, image_shape)


def _check_model_takes(config: ConfigDict) -> None:
    """Refuses a field of the model group that this model has no use for."""
    taken = inspect.signature(MODELS[config.model.name]).parameters
    _refuse_unused(config, "model", taken, f"the model {config.model.name!r}")


def _check_weighting_takes(config: ConfigDict) -> None:
    """Refuses the number of another weighting than the chosen one."""
    fields, taken = config.loss, {"name", "times", "weighting"}
    if fields.weighting:
        taken |= inspect.signature(WEIGHTINGS[fields.weighting]).parameters.keys()
    owner = f"the weighting {fields.weighting!r}" if fields.weighting else "an unset loss.weighting"
    _refuse_unused(config, "loss", taken, owner)


def _refuse_unused(config: ConfigDict, group: str, taken: Container[str], owner: str) -> None:
    """Refuses a field of the group that the owner does not take, unless it is left at its default."""
    for name, value in config[group].items():
        if name not in taken and value != config_lib.FIELDS[f"{group}.{name}"].default:
            raise InputError(f"{group}.{name} is {value!r}, but {owner} has none; leave it unset")


def _check_variance(config: ConfigDict) -> None:
    """Refuses learned variances of a network that has none."""
    trained, wanted = config.process.variance, config.sampler.variance
    if wanted == "learned" != trained:
        raise InputError(
            f"sampler.variance is 'learned', but the model has no channels for it: process.variance is {trained!r}"
        )


def _check_shared_t(config: ConfigDict) -> None:
    times, last = config.sample.shared_t, config.process.num_timesteps - 1
    if times is not None and (max(times) > last or len(set(times)) < len(times)):
        raise InputError(
            f"sample.shared_t is {times}; it must hold distinct timesteps from 0 to {last} (T - 1)"
        )


def _check_model_fits(config: ConfigDict, shape: tuple[int, int, int], num_classes: int) -> None:
    model = config.model
    if shape[2] not in (1, 3):
        raise InputError(
            f"{config.data.name} holds images of {shape[2]} channels; they must have 1 (grey) or 3 (RGB)"
        )
    if model.num_classes not in (0, num_classes):
        raise InputError(
            f"model.num_classes is {model.num_classes}; {config.data.name} has {num_classes} classes"
            f" (0 makes the model unconditional)"
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


def validate(config: ConfigDict) -> None:
    """Checks all that can be checked without data or devices.

    Raises:
      InputError: The first wrong field: its name, its value and what is allowed.
    """
    config_lib.validate(config)
    _check_model_takes(config)
    _check_variance(config)
    _check_weighting_takes(config)
    process = make_process(config)
    try:
        process.grid(config.sampler.num_steps, config.sampler.spacing)
    except InputError as error:  # It begins with an argument's name, which is the field's too.
        raise InputError(f"sampler.{error}") from error
    _check_shared_t(config)


def make_process(config: ConfigDict) -> Process:
    """Returns the config's process.

    Raises:
      InputError: A beta for a schedule that has none to set.
    """
    return PROCESSES[config.process.name](config.process)


def check_writable(workdir: Path) -> None:
    """Makes the workdir.

    Raises:
      InputError: It cannot be made or written to.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise InputError(f"--workdir: cannot write to {workdir}: {error.strerror}") from error


def keep_compiled_programs(cache_dir: str | None) -> None:
    """Turns on JAX's persistent compilation cache: a second start compiles next to nothing."""
    if jax.config.values.get("jax_compilation_cache_dir"):
        return  # The user has chosen one.
    root = Path(cache_dir).expanduser() if cache_dir else data.default_cache_dir()
    jax.config.update("jax_compilation_cache_dir", str(root.absolute() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
