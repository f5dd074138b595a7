"""What is measured of an experiment: metrics with the options of the config's `eval` group."""

from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.experiment.build import Experiment
from diffusion_jax.experiment.checks import warn_of_grid
from diffusion_jax.metrics import METRICS, Metric, make_measure
from diffusion_jax.processes.grid import make_grid


def metric_options(config: ConfigDict, name: str) -> dict[str, Any]:
    """Returns the fields that decide a metric of an image; an unset variance is the process's own."""
    options = {field: config.eval[field] for field in METRICS[name].options}
    if "variance" in options:
        options["variance"] = options["variance"] or config.process.variance
    return options


def make_metric(exp: Experiment, name: str) -> Metric[Any, Any]:
    """Returns the metric of that name; warns of steps that do not suit it, as `make_sampler` does."""
    options = metric_options(exp.config, name)
    given = {"process": exp.process, "denoiser": exp.denoiser, "seed": exp.config.eval.seed}
    metric = METRICS[name].given(**given, **options)
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
