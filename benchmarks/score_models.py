"""Trains the four kinds of score models on digits in the demo's budget, and judges them as the demo is judged.

Of each of vp, subvp, ve and ncsn (configs/digits_KIND.py): a training, --num_images samples of each sampler, judged by
the classifier of digits_quality.py (confidence and agreement relative to those of held-out digits, copies, and whether
all ten digits appear, by the classifier), and the exact bits per dimension of --num_test held-out digits with its
standard error (ncsn and ve: of the flow between sigma_min and sigma_max); of vp the variational bound beside it. Then,
of a run, the mean absolute error of encoding and decoding held-out digits by the flow.

  python benchmarks/score_models.py --runs=runs --out=score_models.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import report
from command import Command
from digits_quality import compare_distances, judge, pixels, real_digits, train_classifier

import diffusion_jax as dj
from diffusion_jax import data
from diffusion_jax.experiment.build import make_process
from diffusion_jax.processes.grid import make_grid

# Samplers of each kind, as flags; {} is the config's own.
OF_SDE: dict[str, dict[str, str]] = {
    "euler_maruyama": {"name": "euler_maruyama"},
    "reverse_diffusion": {"name": "reverse_diffusion"},
    "pc": {"name": "pc"},
    "ancestral": {"name": "ancestral"},
    "ode_heun, 50 steps": {"name": "ode_heun", "num_steps": "50"},
    "ode_adaptive": {"name": "ode_adaptive"},
    "dpmpp_3m, 20 steps": {"name": "dpmpp_3m", "num_steps": "20", "spacing": "logsnr"},
}
SAMPLERS = {
    "vp": OF_SDE,
    "subvp": OF_SDE,
    "ve": OF_SDE,
    "ncsn": {"langevin": {"name": "langevin"}, "ode_adaptive": {"name": "ode_adaptive"}},
}
BITS = ("eval.num_dequantizations=2", "eval.batch_size=360")


def command(workdir: Path, cache: Path, *flags: str, config: Path | None = None) -> None:
    """Runs the command line on a run."""
    named = [f"--config={config}"] if config else []
    Command([*named, f"--workdir={workdir}", *flags], cache).finish(0)


def result(workdir: Path, mode: str) -> dict[str, Any]:
    """Returns what a finished command filed."""
    return json.loads((workdir / "results" / f"{mode}.json").read_text())


def quality(workdir: Path, cache: Path, sampler: dict[str, str], num_images: int) -> dict[str, Any]:
    """Draws and judges samples."""
    flags = [f"--config.sampler.{name}={value}" for name, value in sampler.items()]
    sizes = f"--config.sample.num_images={num_images}", "--config.sample.batch_size=500"
    command(workdir, cache, "--mode=sample", *sizes, *flags)
    job = result(workdir, "sample")
    folder = workdir / "samples" / job["job"]
    with np.load(folder / "images.npz", allow_pickle=False) as drawn:
        images, labels = drawn["images"], drawn["labels"]
    (train, of_train), (held_out, of_held_out) = real_digits("train"), real_digits("test")
    classifier = train_classifier(train, of_train)
    judged, classes = judge(classifier, images, held_out)
    accuracy = classifier.score(pixels(held_out), of_held_out)
    return {
        "nfe": job["nfe"],
        "confidence": judged["ratio"],
        "agreement": float((classes == labels).mean() / accuracy),
        "digits": int((np.bincount(classes, minlength=10) > 0).sum()),
        "copies": compare_distances(images, held_out, train)["samples"]["copies"],
        "grid": str(folder / "grid.png"),
    }


def round_trip(workdir: Path, num_test: int, rtol: float) -> dict[str, float]:
    """Encodes held-out digits by the flow and decodes them again; returns the mean absolute error in gray levels."""
    run = dj.load_run(workdir)
    process = make_process(run.config)
    batch = data.load("digits", "test").read(np.arange(num_test))

    @jax.jit
    def there_and_back(params: Any, x0: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
        denoise = run.denoiser(params, labels)
        there = dj.samplers.ode_encode(
            denoise, make_grid(process, 2, u_min=1e-5), process, x0, rtol=rtol, atol=rtol
        )
        back = dj.samplers.ode_decode(
            denoise, make_grid(process, 2, u_min=1e-5), process, there.y, rtol=rtol, atol=rtol
        )
        return (
            back.y,
            there.stats.evaluations,
            back.stats.evaluations,
            back.stats.finished & there.stats.finished,
        )

    x0 = dj.data.to_model_range(jnp.asarray(batch["image"]))
    back, *evaluations, finished = there_and_back(run.params, x0, jnp.asarray(batch["label"]))
    return {
        "gray_levels": float(jnp.abs(back - x0).mean() * 127.5),
        "evaluations": float(sum(np.mean(n) for n in evaluations)),
        "finished": float(finished.mean()),
    }


def measure(kind: str, runs: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains one kind, unless that is done, and returns its figures."""
    workdir, cache = (runs / kind).absolute(), data.default_cache_dir()
    config = Path(__file__).parents[1] / "configs" / f"digits_{kind}.py"
    command(workdir, cache, *arguments.overrides, config=config)
    metrics = "bpd,ode_bpd" if kind == "vp" else "ode_bpd"
    flags = [f"--config.{flag}" for flag in BITS]
    sizes = f"--config.eval.metrics={metrics}", f"--config.eval.num_images={arguments.num_test}"
    command(workdir, cache, "--mode=evaluate", *sizes, *flags)
    evaluated = result(workdir, "evaluate")
    return {
        "train_seconds": result(workdir, "train")["train_seconds"],
        "samples": {
            name: quality(workdir, cache, sampler, arguments.num_images)
            for name, sampler in SAMPLERS[kind].items()
        },
        **{name: evaluated[name] for name in metrics.split(",")},
        "round_trip": round_trip(workdir, arguments.num_test, arguments.rtol),
    }


def print_tables(figures: dict[str, Any]) -> None:
    """Prints samples, then likelihoods and round trips."""
    rows = []
    for kind, of_kind in figures.items():
        for name, row in of_kind["samples"].items():
            nfe = row["nfe"]["mean"] if isinstance(row["nfe"], dict) else row["nfe"]
            shares = (f"{row[key]:.3f}" for key in ("confidence", "agreement", "copies"))
            rows.append([kind, name, f"{nfe:.0f}", *shares, row["digits"]])
    header = ["kind", "sampler", "NFE", "confidence", "agreement", "copies", "digits that appear"]
    report.print_table(header, rows)
    rows = []
    for kind, of_kind in figures.items():
        bits, trip = of_kind["ode_bpd"], of_kind["round_trip"]
        bound = of_kind.get("bpd")
        both = [
            ""
            if metric is None
            else f"{metric['total']['value']:.3f} ± {metric['total']['stderr']:.3f}"
            for metric in (bits, bound)
        ]
        rows.append([kind, *both, f"{bits['nfe']:.0f}", f"{trip['gray_levels']:.4f}"])
    print()
    header = ["kind", "exact bits/dim", "bound", "evaluations", "encode and decode, gray levels"]
    report.print_table(header, rows)


def main() -> None:
    """Prints the tables, and writes the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs, kept")
    parser.add_argument("--num_images", type=int, default=500, help="samples of each sampler")
    parser.add_argument("--num_test", type=int, default=359, help="held-out digits to score")
    parser.add_argument("--rtol", type=float, default=1e-5, help="of the round trip")
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments, arguments.overrides = parser.parse_known_args()
    figures = {kind: measure(kind, arguments.runs, arguments) for kind in arguments.kinds}
    print_tables(figures)
    report.write(arguments.out, {"device": jax.devices()[0].device_kind, "kinds": figures})


if __name__ == "__main__":
    main()
