"""`--mode=evaluate`: figures of a trained run on a split of its data; picks up where it was killed."""

from collections.abc import Callable
from pathlib import Path

import jax
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.commands import evaluate_bound, evaluate_exact, job, run_config
from diffusion_jax.runs import Run

# What each metric measures, and writes besides results/evaluate.json.
METRICS: dict[str, Callable[[Run, data.Split, jax.sharding.Mesh, Path], None]] = {
    "bpd": evaluate_bound.measure_bound,
    "ode_bpd": evaluate_exact.measure_exact,
}


def evaluate(config: ConfigDict, workdir: Path) -> int:
    """Measures config.eval.metrics of a checkpoint; returns the exit status.

    Writes results/evaluate.json, and for each metric what `METRICS` says.

    Raises:
      InputError: No checkpoint, another one than the config's, no images, classes that have moved, or workdir not
        writable.
      RunError: No sound checkpoint; disk full; figures that are not finite.
    """
    run, mesh = job.open_run(config, workdir, "eval")
    run_config.check_trained(config, run.training_config, f"checkpoint {run.step}")
    split = run.load_split(config.eval.split, labelled=run.conditional)
    for name in dict.fromkeys(config.eval.metrics):
        METRICS[name](run, split, mesh, workdir)
    return 0
