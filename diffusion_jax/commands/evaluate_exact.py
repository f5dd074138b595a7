"""The metric ode_bpd of `--mode=evaluate`: bits per dimension by the exact likelihood of the probability-flow ODE."""

import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax import data
from diffusion_jax.commands import job
from diffusion_jax.commands.environment import own
from diffusion_jax.commands.images_bar import ImagesBar
from diffusion_jax.errors import InputError
from diffusion_jax.evaluation.exact_bits import ExactBits, exact_figure
from diffusion_jax.evaluation.parts import make_measure
from diffusion_jax.keys import stream
from diffusion_jax.reporting import results
from diffusion_jax.runs import Run

# Fields of the eval group that decide the likelihood of an image.
DECISIVE = ("u_min", "num_dequantizations", "num_probes", "probes", "rtol", "atol", "max_steps")


def measure_exact(run: Run, split: data.Split, mesh: jax.sharding.Mesh, workdir: Path) -> None:
    """Measures bits per dimension of each image; they lie in results/ode_bpd/<job>/ode_bpd.npz.

    What was measured of each batch is kept beside it, in parts/, for another start.

    Raises:
      InputError: The ODE of an image was not solved within eval.max_steps.
    """
    started = time.monotonic()
    fields = run.config.eval
    total = min(fields.num_images, split.num_images)
    folder = workdir / "results" / "ode_bpd" / job.measurement_name(run, split, DECISIVE)
    key = stream(fields.seed, "exact likelihood")
    measure = make_measure(
        exact_figure(run.exact_likelihood(), fields.num_dequantizations, key),
        split,
        mesh,
        conditional=run.conditional,
        num_images=fields.num_images,
        batch_size=fields.batch_size,
    )
    own(folder, "evaluate")
    with ImagesBar(total, 1, fields.batch_size) as bar:
        result = measure(run.params, folder / "parts", bar.done)
    if result.unfinished:
        raise InputError(_not_solved(run, result))
    if jax.process_index() == 0:
        file = folder / "ode_bpd.npz"
        results.write_npz(file, bits=result.bits)
        seconds = round(time.monotonic() - started, 1)
        files = [str(file.relative_to(workdir / "results"))]
        record = {**_record(run, result), "files": files, "seconds_this_start": seconds}
        path = results.add_metric(workdir, "evaluate", "ode_bpd", record)
        print(_summary(record), f"results {path}", sep="\n", file=sys.stderr)


def _not_solved(run: Run, result: ExactBits) -> str:
    fields = run.config.eval
    count = len(result.bits) * fields.num_dequantizations
    return (
        f"eval.max_steps is {fields.max_steps}: {result.unfinished} of {count} solutions of the ODE had not reached "
        f"the prior by then, the slowest std / signal = {result.least_sigma:.3g}, with eval.rtol={fields.rtol:g} and "
        f"eval.atol={fields.atol:g}; allow more steps, or a larger error"
    )


def _record(run: Run, result: ExactBits) -> dict[str, Any]:
    """Returns the figures, and all that they depend on."""
    fields = run.config.eval
    known = np.isfinite(result.of_estimator)
    return {
        "total": {"value": result.total.value, "stderr": result.total.stderr},
        "stderr_of_estimator": result.of_estimator if known else None,
        "num_images": len(result.bits),
        "nfe": result.evaluations,
        "nfe_most": result.most_evaluations,
        **{name: fields[name] for name in ("split", "seed", *DECISIVE)},
        **job.measured(run),
    }


def _summary(record: dict[str, Any]) -> str:
    """Returns the total in one line, and in another what it depends on."""
    total, spread = record["total"], record["stderr_of_estimator"]
    of_estimator = "" if spread is None else f" (of which dequantisation and probes {spread:.4f})"
    return (
        f"{total['value']:.4f} ± {total['stderr']:.4f}{of_estimator} bits/dim by the exact likelihood of the ODE\n"
        f"of {record['num_images']} {record['split']} images, {record['num_dequantizations']} dequantisation(s) with "
        f"{record['num_probes']} probe(s) each, {record['nfe']:.0f} evaluations, checkpoint {record['step']}"
    )
