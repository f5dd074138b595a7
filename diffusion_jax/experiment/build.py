"""Construction of process, network, data, objective and bound from a config."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import optax
from jaxtyping import Array
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib, data
from diffusion_jax.errors import InputError
from diffusion_jax.experiment.checks import (
    check_average,
    check_classes_of,
    check_classifier,
    check_guidance,
    check_model_fits,
    check_profile,
    check_sampler_options,
    check_solver_fits,
    check_times,
    check_variance,
    check_zero_snr,
)
from diffusion_jax.experiment.classifier import Classifier, load_classifier
from diffusion_jax.likelihood.vlb import check_num_terms
from diffusion_jax.losses import (
    LOSSES,
    TIME_SAMPLERS,
    WEIGHTINGS,
    Objective,
    TimeSampler,
    Weighting,
)
from diffusion_jax.models.denoiser import Denoise
from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.models.inputs import INPUTS
from diffusion_jax.models.networks import NETWORKS, Model, as_functions
from diffusion_jax.models.preconditioning import PREDICTIONS, Preconditioning
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import Grid, Process, levels_of
from diffusion_jax.processes.registry import PROCESSES
from diffusion_jax.reporting import expected
from diffusion_jax.reporting.expected import Expected
from diffusion_jax.training.optimizer import learning_rate_schedule, make_optimizer
from diffusion_jax.training.tracked import Tracked


def make_process(config: ConfigDict) -> Process:
    """Returns the config's process.

    Raises:
      InputError: A beta for a schedule that has none to set; ends in the wrong order.
    """
    return PROCESSES[config.process.name].from_fields(dict(config.process))


def make_prediction(config: ConfigDict, process: Process) -> Preconditioning:
    """Returns what the config's network is given and predicts.

    Raises:
      InputError: Inputs that the process has not.
    """
    fields, kind = dict(config.process), PREDICTIONS[config.process.prediction]
    prediction = kind.from_fields(fields, process=process)
    if kind.own_inputs:
        return prediction
    inputs = INPUTS[config.process.inputs].from_fields(fields, process=process)
    return dataclasses.replace(prediction, inputs=inputs)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What data, model and process of a config stand for.

    Attributes:
      config: The config, with what it left to the data (`config.left_open`).
      model: Process and network, and what the network predicts.
      network: The network as pure functions.
      image_shape: (H, W, C).
      class_names: Names of the data's classes; empty if there are none, or they are not known.
      module: The network's own module, such as a `UNet`.
    """

    config: ConfigDict
    model: DiffusionModel
    network: Model
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    module: Any

    def objective(self) -> Objective:
        """Returns what training minimizes."""
        return LOSSES[self.config.loss.name].from_fields(
            dict(self.config.loss),
            model=self.model,
            variance=self.config.process.variance,
            weighting=_weighting(self.config, self.process),
            times=_times(self.config, self.process),
        )

    def denoiser(self, params: Any, labels: Array | None) -> Denoise:
        """Returns the network as a denoiser, neither limited nor guided."""
        return self.model.denoiser(params, labels)

    @property
    def process(self) -> Process:
        """The forward process."""
        return self.model.process

    @property
    def num_classes(self) -> int:
        """Number of classes that the network knows; 0: it is given no labels."""
        return self.config.model.num_classes

    @property
    def conditional(self) -> bool:
        """Whether the network is given labels."""
        return self.num_classes > 0

    @property
    def classifier(self) -> Classifier | None:
        """The classifier that guides samples; None: there is none.

        Raises:
          InputError: See `load_classifier`; or it knows other classes than the model.
        """
        fields = self.config.sampler
        if fields.classifier is None:
            return None
        settings, scale = fields.classifier_settings or "", self.config.model.time_scale
        found = load_classifier(fields.classifier, settings, self.image_shape, scale)
        check_classes_of(self.config, found.num_classes)
        return found

    @property
    def label_classes(self) -> int:
        """Number of classes that images are drawn of: the network's or, if it knows none, its classifier's."""
        if self.conditional or self.classifier is None:
            return self.num_classes
        return self.classifier.num_classes

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of these classes; empty if they are not known."""
        return self.class_names if self.conditional else ()

    @property
    def classless(self) -> bool:
        """Whether the network was trained to do without a class as well."""
        return self.conditional and self.config.train.label_dropout > 0

    @property
    def data_name(self) -> str:
        """Name of the data."""
        return self.config.data.name

    @property
    def sampler_name(self) -> str:
        """Name of the sampler."""
        return self.config.sampler.name

    @property
    def guidance_scale(self) -> float | None:
        """Guidance scale of the sampler; None: no guidance."""
        return self.config.sampler.guidance_scale

    @property
    def init_from(self) -> str | None:
        """Folder of the run whose parameters a new training begins from; None: they are random."""
        return self.config.train.init_from

    def changes_from(self, other: Experiment, groups: Sequence[str]) -> str:
        """Returns "field is VALUE there and VALUE here; ..." for the fields that differ from another experiment's.

        Args:
          other: The other one.
          groups: Groups of the fields.
        """
        found = []
        for name in config_lib.differing(other.config, self.config):
            (there, leaf), (here, _) = (config_lib.locate(e.config, name) for e in (other, self))
            if name.partition(".")[0] in groups:
                found.append(f"{name} is {there[leaf]!r} there and {here[leaf]!r} here")
        return "; ".join(found)

    @property
    def config_hash(self) -> str:
        """The hash of all fields that decide the trained result."""
        return config_lib.config_hash(self.config)

    @functools.cached_property
    def expected(self) -> Expected | None:
        """What runs of this recipe have had as losses; None if the config is no recipe's with such a record."""
        return expected.find(config_lib.recipe_hash(self.config))


def _weighting(config: ConfigDict, process: Process) -> Weighting | None:
    name = config.loss.weighting
    return (
        None if name is None else WEIGHTINGS[name].from_fields(dict(config.loss), process=process)
    )


def _times(config: ConfigDict, process: Process) -> TimeSampler:
    levels = levels_of(process)
    return TIME_SAMPLERS[config.loss.times].from_fields(
        dict(config.loss),
        process=process,
        num_bins=None if levels is None else len(levels),
    )


def grid_of(process: Process, fields: ConfigDict) -> Grid:
    """Returns the grid of a group of fields that has num_steps, spacing and u_min."""
    return make_grid(process, fields.num_steps, fields.spacing, fields.u_min)


def learning_rate_of(config: ConfigDict) -> Callable[[Any], Any]:
    """Returns k -> learning rate of step k of the config's training, counted from 0."""
    fields = config.optimizer
    return learning_rate_schedule(
        fields.learning_rate, fields.warmup_steps, fields.decay, config.train.num_steps
    )


def make_optimizer_of(config: ConfigDict) -> optax.GradientTransformation:
    """Returns the config's optimizer."""
    fields = config.optimizer
    return make_optimizer(
        fields.learning_rate,
        fields.warmup_steps,
        fields.grad_clip,
        decay=fields.decay,
        num_steps=config.train.num_steps,
    )


def tracked_of(config: ConfigDict) -> Tracked:
    """Returns the averages of the parameters that the config's training tracks."""
    fields = config.optimizer
    return Tracked(
        fields.ema_decay, fields.ema_warmup, tuple(fields.ema_decays), tuple(fields.ema_lengths)
    )


def load_split(config: ConfigDict, split: str) -> data.Split:
    """Opens the config's data, preparing it if this is the first time."""
    options = data.SOURCES[config.data.name].arguments(dict(config.data))
    return data.load(config.data.name, split, cache_dir=config.data.cache_dir, **options)


def build(
    config: ConfigDict,
    image_shape: tuple[int, int, int],
    num_classes: int,
    class_names: tuple[str, ...] = (),
) -> Experiment:
    """Builds process and network for images of this shape.

    Args:
      config: A valid config.
      image_shape: (H, W, C) of the data.
      num_classes: Number of classes that the data has; 0 if it is not labeled.
      class_names: Their names, if they are known.

    Raises:
      InputError: Image size or classes that the model does not fit, or a name that no class has.
    """
    open_fields = config_lib.left_open(config)
    config = config_lib.with_num_classes(config, num_classes)
    config = config_lib.with_numbers(config, class_names)
    if open_fields:
        validate(config)
    check_model_fits(config, image_shape, num_classes)
    kind = NETWORKS[config.model.name]
    module = kind.from_fields(
        dict(config.model),
        num_classes=config.model.num_classes,
        out_channels=image_shape[2] * (2 if config.process.variance == "learned" else 1),
        image_shape=image_shape,
    )
    if problem := kind.misfit(module, image_shape):
        raise InputError(problem)
    network = as_functions(module, image_shape)
    process = make_process(config)
    model = DiffusionModel(process, make_prediction(config, process), network.apply)
    return Experiment(config, model, network, image_shape, class_names, module)


def validate(config: ConfigDict, *, trained: bool = False) -> None:
    """Checks all that can be checked without data or devices.

    Args:
      config: The config.
      trained: Whether it is a trained run's, of which an earlier version may have let fields pass that have no effect.

    Raises:
      InputError: The first wrong field: its name, its value and what is allowed.
    """
    config_lib.validate(config)
    config_lib.check_used(config, trained=trained)
    check_sampler_options(config)
    check_solver_fits(config)
    check_guidance(config)
    check_classifier(config)
    check_profile(config)
    check_variance(config)
    check_zero_snr(config)
    check_average(config.sample.ema, config.sample.ema_length)
    try:  # An error begins with an argument's name, which is the field's too.
        process = make_process(config)
        make_prediction(config, process)
    except InputError as error:
        raise InputError(f"process.{error}") from error
    for group in ("sampler", "eval"):
        try:
            grid = grid_of(process, config[group])
            if group == "eval":
                check_num_terms(config.eval.num_terms, grid.num_steps)
        except InputError as error:
            raise InputError(f"{group}.{error}") from error
    check_times(config, process)
