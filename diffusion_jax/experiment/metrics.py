"""Metrics of an experiment, with the options in the config's `eval` group, and the held-out loss."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from diffusion_jax import config as config_lib, data
from diffusion_jax.errors import InputError, RunError
from diffusion_jax.experiment import image_metrics, sampling
from diffusion_jax.experiment.build import Experiment, load_split
from diffusion_jax.experiment.checks import warn_of_grid
from diffusion_jax.keys import stream
from diffusion_jax.metrics import METRICS, Metric, make_measure
from diffusion_jax.parallel.distributed import broadcast_from_first
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.training.held_out import make_held_out_loss
from diffusion_jax.training.hooks import Measure

NUM_IMAGES = 1000  # Images to measure, or to draw, where eval.num_images is unset.

# (params, the objective's aux) -> figures by name
Figures = Callable[[Any, Any], dict[str, float]]
# (experiment, test images, devices) -> name of a figure, and all figures
Make = Callable[[Experiment, data.Split, jax.sharding.Mesh], tuple[str, Figures]]


def metric_options(exp: Experiment, name: str) -> dict[str, Any]:
    """Returns the fields that decide a metric of an image; an unset variance is the process's own."""
    values = dict(config_lib.fields(exp.config))
    return {field: config_lib.effective(f"eval.{field}", values) for field in METRICS[name].options}


def make_metric(exp: Experiment, name: str) -> Metric[Any, Any]:
    """Returns the metric of that name; warns of steps that do not suit it, as `make_sampler` does."""
    options = metric_options(exp, name)
    given = {"process": exp.process, "denoiser": exp.denoiser, "seed": exp.config.eval.seed}
    metric = METRICS[name].from_fields(options, **given)
    if metric.grid is not None:
        warn_of_grid(metric.grid, make_grid(exp.process), options.get("variance"), "eval")
    return metric


def make_measure_of(
    exp: Experiment,
    metric: Metric[Any, Any],
    split: data.Split,
    mesh: jax.sharding.Mesh,
    progress: Callable[[int], object] | None = None,
) -> Callable[..., Any]:
    """Returns what `make_measure` makes of a metric, of as many images as the config says."""
    fields = exp.config.eval
    return make_measure(
        metric,
        split,
        mesh,
        conditional=exp.conditional,
        num_images=fields.num_images or NUM_IMAGES,
        batch_size=fields.batch_size,
        progress=progress,
    )


def held_out_measures(
    exp: Experiment, mesh: jax.sharding.Mesh, *, has_test: bool = True
) -> list[Measure]:
    """Returns what the config asks for: the held-out loss, bits per dimension, the metrics of eval.metrics, or nothing.

    The held-out loss is measured without being asked for: at each checkpoint, so that the best one can be sampled.

    Args:
      exp: What is trained.
      mesh: Devices.
      has_test: Whether the data has test images.

    Raises:
      InputError: Something is asked for, but the data has no test images; or what images are measured with is missing.
    """
    fields = dict(exp.config.train)
    if fields["eval_every"] is None:
        fields["eval_every"] = fields["checkpoint_every"] if has_test else 0
    asked: list[tuple[str, Make]] = [
        *((every, make) for every, make in (("eval_every", _loss), ("bpd_every", _bound))),
        *(
            ("metrics_every", _bound if name == "bpd" else functools.partial(_metric, name))
            for name in dict.fromkeys(exp.config.eval.metrics)
            if name in METRICS
        ),
    ]
    asked = [(every, make) for every, make in asked if fields[every]]
    made: list[tuple[str, str, Figures]] = []
    if asked:
        split = load_split(exp.config, "test")
        if split.num_images == 0:
            raise InputError(f"train.{asked[0][0]} is set, but the data has no test images")
        made = [(every, *make(exp, split, mesh)) for every, make in asked]
    if fields["metrics_every"] and image_metrics.image_metrics(exp.config):
        made.append(("metrics_every", *_of_images(exp, mesh)))
    return [Measure(name, _finite(figures), fields[every]) for every, name, figures in made]


def _finite(figures: Figures) -> Callable[[Any, Any], dict[str, float | None]]:
    """Returns the figures with None for each that is not finite, which JSON has no number for."""

    def finite(params: Any, aux: Any) -> dict[str, float | None]:
        values = figures(params, aux)
        return {name: value if np.isfinite(value) else None for name, value in values.items()}

    return finite


def _loss(exp: Experiment, split: data.Split, mesh: jax.sharding.Mesh) -> tuple[str, Figures]:
    held_out = make_held_out_loss(
        exp.objective(),
        split,
        mesh,
        stream(exp.config.seed, "eval"),
        conditional=exp.conditional,
        num_images=exp.config.eval.num_images or NUM_IMAGES,
        batch_size=exp.config.eval.batch_size,
    )
    return "eval_loss", lambda params, aux: {"eval_loss": held_out(params, aux)}


def _metric(
    metric_name: str, exp: Experiment, split: data.Split, mesh: jax.sharding.Mesh
) -> tuple[str, Figures]:
    """The mean of a registered metric of the model, and its standard error."""
    metric = make_metric(exp, metric_name)
    measure = make_measure_of(exp, metric, split, mesh)
    name = f"eval_{metric_name}"

    def figures(params: Any, aux: Any) -> dict[str, float]:
        del aux
        total = measure(params).total
        return {name: total.value, f"{name}_stderr": total.stderr}

    return name, figures


def _of_images(exp: Experiment, mesh: jax.sharding.Mesh) -> tuple[str, Figures]:
    """The metrics of images, of samples drawn as --mode=evaluate would."""
    count = exp.config.eval.num_images or NUM_IMAGES
    load = functools.partial(load_split, exp.config)
    judge = image_metrics.make_judge(exp.config, mesh, load, num_drawn=count)
    draw = sampling.make_drawn(exp, mesh, count, image_metrics.drawn_classes(exp, count))

    def figures(params: Any, aux: Any) -> dict[str, float]:
        del aux
        try:
            images = draw(params)
        except (InputError, RunError) as error:  # A later step may draw better.
            warnings.warn(f"images cannot be measured: {error}; training goes on", stacklevel=2)
            return {f"eval_{name}": np.nan for name in judge.figure_names}
        features = judge.features_of(data.from_arrays(images), "eval.images")
        found = broadcast_from_first(
            "metrics of images", lambda: judge.figures(judge.measure(features)), timeout=math.inf
        )
        return {f"eval_{name}": value for name, value in found.items()}

    return f"eval_{judge.figure_names[0]}", figures


def _bound(exp: Experiment, split: data.Split, mesh: jax.sharding.Mesh) -> tuple[str, Figures]:
    """The figures that --mode=evaluate would give; the first that are not finite are warned of."""
    metric = make_metric(exp, "bpd")
    measure = make_measure_of(exp, metric, split, mesh)
    warned = False

    def figures(params: Any, aux: Any) -> dict[str, float]:
        nonlocal warned
        del aux
        result = measure(params)
        problem = metric.problem(result)
        if problem and not warned:
            warnings.warn(f"bits/dim: {problem}; training goes on", stacklevel=2)
            warned = True
        return {
            "eval_bpd": result.total.value,
            "eval_bpd_stderr": result.total.stderr,
            "eval_rate": result.rate.value,
            "eval_distortion": result.distortion.value,
        }

    return "eval_bpd", figures
