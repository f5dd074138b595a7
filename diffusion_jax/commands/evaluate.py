"""`--mode=evaluate`: metrics of a trained run, of its samples or of given images; picks up where it was killed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.commands import job, measured_images, run_config, sweep
from diffusion_jax.commands.environment import own
from diffusion_jax.commands.images_bar import ImagesBar
from diffusion_jax.errors import InputError, RunError
from diffusion_jax.experiment.image_metrics import image_metrics
from diffusion_jax.experiment.metrics import (
    NUM_IMAGES,
    make_measure_of,
    make_metric,
    metric_options,
)
from diffusion_jax.metrics import METRICS, Metric
from diffusion_jax.reporting import results
from diffusion_jax.runs import Run


def evaluate(config: ConfigDict, workdir: Path) -> int:
    """Measures config.eval.metrics; returns the exit status.

    Writes results/evaluate.json, and for each metric what its `save` says to results/<metric>/<job>/, in whose parts/
    what was measured of each batch is kept for another start.

    Raises:
      InputError: No checkpoint, another one than the config's, no images, classes that have moved, workdir not
        writable, weights or a reference that are not what they claim, or options under which a metric cannot be
        measured.
      RunError: No sound checkpoint; disk full; figures that are not finite.
    """
    of_model = [name for name in dict.fromkeys(config.eval.metrics) if name in METRICS]
    of_images = image_metrics(config)
    # What is drawn is the job of so many images.
    config.sample.num_images = config.eval.num_images or NUM_IMAGES
    if config.eval.sweep is not None:
        return sweep.sweep(config, workdir)
    if of_model and not run_config.has_run(workdir):
        raise InputError(
            f"eval.metrics is {tuple(config.eval.metrics)}, but {', '.join(of_model)} is measured of a trained run, "
            f"and there is none in {workdir}"
        )
    of_others = _of_others(config)
    if not of_model and of_others is not None:
        return of_others(config, workdir)
    run, mesh = job.open_run(config, workdir)
    run_config.check_trained(config, run.training_config, f"checkpoint {run.step}")
    if of_model:
        split = run.load_split(config.eval.split, labeled=run.conditional)
        for name in of_model:
            _measure(name, run, split, mesh, workdir)
    if of_images and of_others is not None:
        return of_others(config, workdir)
    if of_images:
        measured_images.measure_drawn(run, mesh, workdir)
    return 0


def _of_others(config: ConfigDict) -> Callable[[ConfigDict, Path], int] | None:
    """Returns what measures other images than those that the run draws, if the config says so."""
    if config.eval.selfcheck:
        from diffusion_jax.commands import self_check  # Few need it.

        return self_check.check
    return None if config.eval.images is None else measured_images.measure_given


def _measure(
    name: str, run: Run, split: data.Split, mesh: jax.sharding.Mesh, workdir: Path
) -> None:
    started = time.monotonic()
    fields, metric = run.config.eval, make_metric(run, name)
    total = min(fields.num_images or NUM_IMAGES, split.num_images)
    folder = workdir / "results" / name / job.measurement_name(run, split, name)
    own(folder, "evaluate")
    with ImagesBar(total, metric.passes, fields.batch_size) as bar:
        measure = make_measure_of(run, metric, split, mesh, bar.progress)
        result = measure(run.params, folder / "parts", bar.done)
    metric.check(result)
    if jax.process_index() == 0:
        files = metric.save(folder, result)
        record = {
            **_record(run, name, metric, result),
            "files": [str(path.relative_to(workdir / "results")) for path in files],
            "seconds_this_start": round(time.monotonic() - started, 1),
        }
        path = results.add_metric(workdir, "evaluate", name, record)
        where = f", pictures {folder}" if any(file.suffix == ".png" for file in files) else ""
        print(metric.summarize(record), f"results {path}{where}", sep="\n", file=sys.stderr)
    if problem := metric.problem(result):
        raise RunError(problem)


def _record(run: Run, name: str, metric: Metric[Any, Any], result: Any) -> dict[str, Any]:
    """Returns the figures, and all that they depend on."""
    figures, fields = metric.record(result), run.config.eval
    options = {"split": fields.split, "seed": fields.seed, **metric_options(run, name)}
    # What a metric says of an unset option, such as the number of steps, counts before it.
    return {**figures, **(options | figures), **job.measured(run)}
