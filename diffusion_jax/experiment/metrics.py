"""Metrics of an experiment, with the options in the config's `eval` group, and the held-out loss."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from diffusion_jax import config as config_lib, data
from diffusion_jax.errors import InputError
from diffusion_jax.experiment.build import Experiment, load_split
from diffusion_jax.experiment.checks import warn_of_grid
from diffusion_jax.keys import stream
from diffusion_jax.metrics import METRICS, Metric, make_measure
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.training.held_out import make_held_out_loss
from diffusion_jax.training.hooks import Measure

# (params, the objective's aux) -> figures by name
Figures = Callable[[Any, Any], dict[str, float]]


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
        num_images=fields.num_images,
        batch_size=fields.batch_size,
        progress=progress,
    )


def held_out_measures(exp: Experiment, mesh: jax.sharding.Mesh) -> list[Measure]:
    """Returns what the config asks for: the held-out loss, bits per dimension, both or nothing.

    Raises:
      InputError: Something is asked for, but the data has no test images.
    """
    fields = exp.config.train
    asked = {
        every: make
        for every, make in (("eval_every", _loss), ("bpd_every", _bound))
        if fields[every]
    }
    if not asked:
        return []
    split = load_split(exp.config, "test")
    if split.num_images == 0:
        raise InputError(f"train.{next(iter(asked))} is set, but the data has no test images")
    made = [(every, *make(exp, split, mesh)) for every, make in asked.items()]
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
        num_images=exp.config.eval.num_images,
        batch_size=exp.config.eval.batch_size,
    )
    return "eval_loss", lambda params, aux: {"eval_loss": held_out(params, aux)}


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
