"""Measures the samplers on a finished digits run: quality by network evaluations, DDIM's consistency, its inversion.

- quality: the Fréchet distance (`frechet.py`) of --num_images samples, classes in turn, to all real digits, for every
  solver by its number of network evaluations (NFE), mean over --seeds and half of their range. As a floor the same
  between disjoint halves of the real digits of each class, and between the test and the training digits. Asked for is a
  solver that needs 10 NFE at most and is within the seeds' spread of ancestral sampling in 1,000 steps.
- consistency: mean squared difference, pixels in [0, 1], of DDIM's images (eta = 0) in 10, 20 and 50 steps to those in
  200 steps from the same x_T, and of two seeds in 200. Asked for: it falls, and at 50 is below a tenth of two seeds'.
- inversion: test digits with their labels are encoded to x_T and decoded again, DDIM in 200 steps, unclipped. Asked
  for: mean squared error of plain inversion at most 4e-4, pixels in [0, 1] (as in the DDIM paper's Table 2), mean
  absolute error of some number of fixed-point iterations at most 2/255.

Each measures the averaged parameters, unguided; samples are clipped and rounded to 256 levels for the quality, not for
consistency. --out is written anew after each row, so a run that is cut short leaves what it has.

  python benchmarks/digits_samplers.py --workdir=runs/digits --out=samplers.json --picture=samplers.png
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import frechet
import jax
import jax.numpy as jnp
import numpy as np
import report
from digits_quality import real_digits
from digits_solvers import ANCESTRAL, SOLVERS, make_sampler

from diffusion_jax import data
from diffusion_jax.models.guidance import clip_denoised
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.runs import Run, load_run
from diffusion_jax.samplers import (
    Sampler,
    ddim,
    encode,
    encoding_nfe,
    image_keys,
    sample_loop,
)

FEW = 10  # NFE that a fast solver may need.
CONSISTENT_STEPS = (10, 20, 50, 100)
LONG_STEPS = 200
ITERATIONS = (0, 1, 2, 3, 5)
TICKS = (5, 10, 20, 50, 100, 250, 1000)
PLAIN_MSE = 4e-4  # Pixels in [0, 1].

# (params, seed, indices, labels) -> images
Draw = Callable[..., jax.Array]
Figures = dict[str, Any]
Save = Callable[[Figures], None]


def compiled(run: Run, sampler: Sampler, finish: Callable[..., jax.Array]) -> Draw:
    """Returns the program that draws clipped images, which `finish` makes pixels of."""

    @jax.jit
    def draw(params: Any, seed: jax.Array, indices: jax.Array, labels: jax.Array) -> jax.Array:
        denoise = clip_denoised(run.denoiser(params, labels))
        return finish(
            sample_loop(denoise, sampler, image_keys(seed, indices), run.image_shape).images
        )

    return draw


def drawn(run: Run, draw: Draw, seed: int, arguments: argparse.Namespace) -> np.ndarray:
    """Returns images 0, 1, ... of the seed, classes in turn, batch by batch; the last batch is full too."""
    parts = []
    for first in range(0, arguments.num_images, arguments.batch_size):
        indices = first + np.arange(arguments.batch_size)
        labels = indices % run.config.model.num_classes
        parts.append(np.asarray(draw(run.params, np.uint32(seed), indices, labels)))
    return np.concatenate(parts)[: arguments.num_images]


def quality(run: Run, arguments: argparse.Namespace, save: Save) -> Figures:
    """Returns the distances of every solver, and of real digits among themselves."""
    distance, real = frechet.make_judge()
    figures: Figures = {"measure": frechet.NAME, "real": real, "rows": []}
    for name in arguments.solvers:
        solver = SOLVERS[name]
        spacing = arguments.spacing or solver.spacing
        for steps in solver.steps:
            sampler = make_sampler(run.process, name, steps, spacing)
            if sampler.nfe > arguments.most_nfe:
                continue
            started, draw = time.perf_counter(), compiled(run, sampler, data.to_uint8)
            distances = [distance(drawn(run, draw, k, arguments)) for k in arguments.seeds]
            row = {"solver": name, "spacing": spacing, "steps": steps, "nfe": sampler.nfe}
            row |= {"mean": float(np.mean(distances)), "spread": float(np.ptp(distances) / 2)}
            row |= {"distances": distances, "seconds": time.perf_counter() - started}
            figures["rows"].append(row)
            print(f"  {name}, {steps} steps: {distances} in {row['seconds']:.1f} s", flush=True)
            save(figures)
    return figures


def print_quality(figures: Figures) -> None:
    """Prints the distances, and which solvers of few evaluations are as good as the longest ancestral sampling."""
    real, rows = figures["real"], figures["rows"]
    print(f"\n{figures['measure']}; accuracy on held-out digits {real['accuracy']:.3f}")
    print(f"halves of the real digits {real['halves']:.3f} ± {real['halves_std']:.3f}", end=", ")
    print(f"test and training digits {real['test and train']:.3f}")
    shown = ("solver", "spacing", "steps", "nfe", "mean", "spread")
    report.print_table(["solver", "spacing", "steps", "NFE", "distance", "± (seeds)"],
                       [[row[key] for key in shown] for row in rows])  # fmt: skip
    reference = longest_ancestral(rows)
    if reference is None:
        return
    most = reference["mean"] + reference["spread"]
    good = [row for row in rows if row["nfe"] <= FEW and row["mean"] <= most]
    named = ", ".join(f"{row['solver']} in {row['nfe']} ({row['mean']:.3f})" for row in good)
    print(
        f"\nat most {FEW} NFE, within {most:.3f} of ancestral in {reference['steps']} steps",
        end=": ",
    )
    print(f"met by {named}" if good else "not met")


def longest_ancestral(rows: list[Figures]) -> Figures | None:
    """Returns the row of ancestral sampling in the most steps, if there is one."""
    rows = [row for row in rows if row["solver"] == ANCESTRAL]
    return max(rows, key=lambda row: row["steps"]) if rows else None


def draw_quality(axes: Any, figures: Figures) -> None:
    """Draws distance against evaluations, the longest ancestral sampling, and real digits among themselves."""
    names = dict.fromkeys(row["solver"] for row in figures["rows"])
    for k, name in enumerate(names):
        rows = [row for row in figures["rows"] if row["solver"] == name]
        nfe, mean, spread = ([row[key] for row in rows] for key in ("nfe", "mean", "spread"))
        axes.errorbar(nfe, mean, spread, fmt="s-" if name == ANCESTRAL else "o-", ms=4, label=name,
                      color=f"C{k}", capsize=2)  # fmt: skip
    reference = longest_ancestral(figures["rows"])
    if reference is not None:
        axes.axhline(reference["mean"], ls="--", color="C0", lw=1)
    axes.axhline(figures["real"]["halves"], ls=":", color="gray", label="halves of real digits")
    axes.set(xscale="log", yscale="log", xlabel="network evaluations an image (NFE)")
    number_ticks(axes, list(TICKS))
    axes.set_ylabel("Fréchet distance to real digits\n(features of a digit classifier, not FID)")
    axes.legend(fontsize=8)


def consistency(run: Run, arguments: argparse.Namespace, save: Save) -> Figures:
    """Returns how far DDIM's images lie from those in many steps, mean squared, pixels in [0, 1]."""
    spacing = arguments.spacing or SOLVERS["ddim"].spacing

    def images(steps: int, seed: int) -> np.ndarray:
        draw = compiled(run, ddim(make_grid(run.process, steps, spacing)), lambda x: (x + 1) / 2)
        return drawn(run, draw, seed, arguments)

    first = arguments.seeds[0]
    long = images(LONG_STEPS, first)
    between = float(np.square(images(LONG_STEPS, first + 1) - long).mean())
    figures = {"spacing": spacing, "long_steps": LONG_STEPS, "two_seeds": between, "rows": []}
    for steps in CONSISTENT_STEPS:
        error = float(np.square(images(steps, first) - long).mean())
        figures["rows"].append({"steps": steps, "mse": error, "of_two_seeds": error / between})
        save(figures)
    return figures


def print_consistency(figures: Figures) -> None:
    """Prints the differences, and whether they fall as they should."""
    rows = figures["rows"]
    cells = [[row["steps"], f"{row['mse']:.2e}", f"{row['of_two_seeds']:.2g}"] for row in rows]
    cells.append([f"{LONG_STEPS}, two seeds", f"{figures['two_seeds']:.2e}", 1])
    header = ["DDIM steps", f"MSE to {LONG_STEPS} steps, pixels in [0, 1]", "of two seeds'"]
    report.print_table(header, cells)
    falls = all(a["mse"] > b["mse"] for a, b in zip(rows, rows[1:], strict=False))
    at_50 = next(row["of_two_seeds"] for row in rows if row["steps"] == 50)
    met = "met" if falls and at_50 < 0.1 else "not met"
    print(
        f"\nfalls with the steps: {falls}; at 50 steps {at_50:.2g} of two seeds', below 0.1: {met}"
    )


def draw_consistency(axes: Any, figures: Figures) -> None:
    """Draws the differences, and those of two seeds."""
    rows = figures["rows"]
    axes.plot([row["steps"] for row in rows], [row["mse"] for row in rows], "o-", label="same seed")
    axes.axhline(figures["two_seeds"], ls="--", color="gray", label="another seed")
    axes.set(xscale="log", yscale="log", xlabel="DDIM steps (eta = 0)")
    number_ticks(axes, [row["steps"] for row in rows])
    axes.set_ylabel(f"mean squared difference to {LONG_STEPS} steps\n(pixels in [0, 1])")
    axes.legend(fontsize=8)


def inversion(run: Run, arguments: argparse.Namespace, save: Save) -> Figures:
    """Returns the errors of held-out digits that are encoded and decoded again, by fixed-point iterations."""
    images, labels = (values[: arguments.num_test] for values in real_digits("test"))
    x0 = images.astype(np.float32) / 127.5 - 1
    spacing = arguments.spacing or SOLVERS["ddim"].spacing
    grid = make_grid(run.process, LONG_STEPS, spacing)

    @partial(jax.jit, static_argnames="iterations")
    def there_and_back(params: Any, x0: jax.Array, labels: jax.Array, iterations: int) -> jax.Array:
        denoise = run.denoiser(params, labels)
        x_init = encode(denoise, grid, x0, iterations=iterations).y
        keys = image_keys(0, jnp.arange(len(x0)))  # Without noise they say only how many there are.
        return sample_loop(denoise, ddim(grid), keys, run.image_shape, x_init=x_init).images

    figures = {"spacing": spacing, "steps": LONG_STEPS, "num_images": len(x0), "rows": []}
    for iterations in ITERATIONS:
        error = np.asarray(there_and_back(run.params, x0, labels, iterations)) - x0
        squared, absolute = float(np.square(error).mean()), float(np.abs(error).mean())
        row = {"iterations": iterations, "nfe": encoding_nfe(grid, iterations) + LONG_STEPS}
        row |= {"mse": squared, "mse_of_unit_range": squared / 4}
        row |= {"mae": absolute, "mae_levels": absolute * 127.5}
        figures["rows"].append(row | {"largest_levels": float(np.abs(error).max() * 127.5)})
        save(figures)
    return figures


def print_inversion(figures: Figures) -> None:
    """Prints the errors, and which bars are met."""
    rows = figures["rows"]
    keys = ("mse", "mse_of_unit_range", "mae", "mae_levels", "largest_levels")
    cells = [
        [row["iterations"], row["nfe"], *(f"{row[key]:.2e}" for key in keys[:3])]
        + [f"{row[key]:.3f}" for key in keys[3:]]
        for row in rows
    ]
    header = [
        "iterations",
        "NFE",
        "MSE, [-1, 1]",
        "MSE, [0, 1]",
        "MAE, [-1, 1]",
        "MAE, levels of 255",
    ]
    report.print_table([*header, "largest, levels"], cells)
    plain, enough = rows[0]["mse_of_unit_range"], [row for row in rows if row["mae_levels"] <= 2]
    met = "met" if plain <= PLAIN_MSE else "not met"
    print(f"\nplain, MSE at most {PLAIN_MSE} (pixels in [0, 1]): {plain:.2e}, {met}")
    first = (
        enough and f"{enough[0]['iterations']} iterations, {enough[0]['nfe']} NFE there and back"
    )
    print(f"MAE at most 2/255: {first or 'not met'}")


def draw_inversion(axes: Any, figures: Figures) -> None:
    """Draws the mean absolute error by iterations."""
    rows = figures["rows"]
    axes.plot([row["iterations"] for row in rows], [row["mae_levels"] for row in rows], "o-")
    axes.axhline(2, ls="--", color="gray", label="2 levels")
    axes.set(yscale="log", xlabel=f"fixed-point iterations a step, {LONG_STEPS} steps")
    axes.set_ylabel("mean absolute error, levels of 255")
    axes.legend(fontsize=8)


# Name -> (measure, print, draw)
MEASURES = {
    "quality": (quality, print_quality, draw_quality),
    "consistency": (consistency, print_consistency, draw_consistency),
    "inversion": (inversion, print_inversion, draw_inversion),
}


def number_ticks(axes: Any, values: list[int]) -> None:
    """Writes these numbers under a logarithmic axis, and no others."""
    axes.set_xticks(values, [str(n) for n in values])
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)


def draw_all(path: Path, figures: Figures) -> None:
    """Writes a picture with one panel a measure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * len(figures), 4.8), layout="constrained")
    panels = figure.subplots(1, len(figures), squeeze=False)[0]
    for axes, (name, of) in zip(panels, figures.items(), strict=True):
        MEASURES[name][2](axes, of)
    figure.savefig(path, dpi=110)


def parse() -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workdir", type=Path, required=True, help="a finished run of configs/digits.py")
    add("--measures", nargs="+", choices=MEASURES, default=list(MEASURES))
    add("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS), help="of the quality")
    add("--num_images", type=int, default=2000, help="samples of each seed")
    add("--batch_size", type=int, default=500, help="of the compiled programs")
    add("--seeds", type=int, nargs="+", default=[0, 1])
    add("--most_nfe", type=int, default=1000, help="leaves longer samplings out")
    add("--num_test", type=int, help="held-out digits to invert; unset: all")
    add("--spacing", help="of all grids; unset: what suits each solver, see SOLVERS")
    add("--out", type=Path, help="file to write the figures to, as JSON")
    add("--picture", type=Path, help="PNG file")
    return parser.parse_args()


def main() -> None:
    """Prints a table for each measure, and writes the figures as JSON and the picture if asked to."""
    # By default GPUs and TPUs round the factors of a product to fewer bits than float32's.
    jax.config.update("jax_default_matmul_precision", "highest")
    arguments = parse()
    run = load_run(arguments.workdir)
    settings = {"step": run.step, "digest": run.digest, "device": jax.devices()[0].device_kind}
    settings |= {name: getattr(arguments, name) for name in ("num_images", "batch_size", "seeds")}
    done: Figures = {}

    def save(name: str, figures: Figures) -> None:
        report.write(arguments.out, settings | done | {name: figures})

    for name in arguments.measures:
        measure, show, _ = MEASURES[name]
        done[name] = measure(run, arguments, partial(save, name))
        show(done[name])
    if arguments.picture:
        draw_all(arguments.picture, done)


if __name__ == "__main__":
    main()
