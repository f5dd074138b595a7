"""Measures every sampler on a mixture of normal distributions in the plane, with the denoiser that is best for it.

Errors are then the sampler's alone. Two things are reported, by the number of network evaluations (NFE):

- 20,000 samples against the mixture itself: the error of the mean, the largest of the covariance, and the
  Kolmogorov-Smirnov (KS) distance of each coordinate from its exact distribution. Exact samples would have a KS
  distance above 0.0096 once in twenty times, and errors of the mean of 0.004. Each sampler has a spacing that suits it.
- The order of convergence at t = 0, at even steps of log SNR (pndm: of time). Of a solver of the ODE: the slope of the
  root mean square error of x, from the same 500 x_T, where the exact x comes from a Runge-Kutta rule in float64. Of one
  of the SDE: the slope of the error of the covariance's trace of 100,000 samples (weak order). The slope is that over
  the last three numbers of steps at which the error is above its noise: four standard errors, or 3e-6 in float32.

  PYTHONPATH=tests python benchmarks/mixture.py --out=mixture.json --picture=docs/results/solvers/mixture.png
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import report
from jaxtyping import Float
from mixture_data import COVARIANCE, MEAN, flow, ks_distance, make_sampler, optimal

from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import Grid
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.samplers import SAMPLERS, first_noise, image_keys, sample_loop

PROCESS = DDPM(make_schedule("linear", 1000))
SAMPLES = 20_000
KS_FLOOR = 1.358 / np.sqrt(SAMPLES)  # 95% of exact samples are below it.
OF_ORDER, OF_WEAK_ORDER = 500, 100_000
DOUBLING = (20, 40, 80, 160, 320, 640)
WEAK_DOUBLING = (10, 20, 40, 80)
ORDER_STEPS = sorted({*DOUBLING, *WEAK_DOUBLING})
ROUNDING = 3e-6


class Run(NamedTuple):
    """How a sampler is run.

    Attributes:
      options: Its options.
      spacing: Spacing of its times.
      order: Its order of convergence in theory; None: moves of one size leave an error, however many steps there are.
      noisy: Whether it solves the SDE.
    """

    options: dict[str, Any] = {}
    spacing: str = "logsnr"
    order: int | None = None
    noisy: bool = False


# Those that fit the chain; those that choose their steps themselves have no error by the number of steps.
GIVEN_STEPS = [
    name for name in SAMPLERS if SAMPLERS[name].num_steps is None and not SAMPLERS[name].processes
]
RUNS = {
    "ancestral": Run({"variance": "fixed_small"}, "quadratic", 1, noisy=True),
    "ddim": Run({}, "quadratic", 1),
    "dpmpp_2m": Run(order=2),
    "dpmpp_2m_sde": Run(order=2, noisy=True),
    "dpmpp_3m": Run(order=3),
    "euler_maruyama": Run(order=1, noisy=True),
    "heun": Run({}, "karras", 2),
    "ode_heun": Run(order=2),
    "predictor_corrector": Run(noisy=True),
    "pndm": Run({}, "leading", 2),
    "reverse_diffusion": Run(order=1, noisy=True),
    "unipc": Run(order=4),
}


def drawn(name: str, grid: Grid, count: int, stop: int) -> tuple[Float[np.ndarray, "n 2"], int]:
    """Returns samples at point `stop` of the grid in float64, and the NFE to there."""
    sampler = make_sampler(name, PROCESS, grid, RUNS.get(name, Run()).options)

    @jax.jit
    def draw(keys: jax.Array) -> jax.Array:
        return sample_loop(optimal, sampler, keys, (2,), stop=stop).images

    x = np.asarray(draw(image_keys(0, jnp.arange(count))), np.float64)
    assert sampler.nfe is not None
    return x, sampler.nfe - (grid.num_steps - stop)  # A step to the data is one evaluation.


def distribution(name: str, num_steps: int) -> dict[str, Any]:
    """Returns the figures of the samples in so many steps."""
    grid = make_grid(PROCESS, num_steps, RUNS.get(name, Run()).spacing)
    x, nfe = drawn(name, grid, SAMPLES, num_steps)
    return {
        "nfe": nfe,
        "mean": float(np.abs(x.mean(0) - MEAN).max()),
        "covariance": float(np.abs(np.cov(x.T) - COVARIANCE).max()),
        "ks": ks_distance(x).tolist(),
    }


def order_grid(name: str, num_steps: int) -> Grid:
    """Returns the grid whose last point but one, the last timestep, is so many steps from the first."""
    if RUNS.get(name, Run()).spacing == "leading":
        return make_grid(
            PROCESS, None, np.linspace(0, PROCESS.num_timesteps - 1, num_steps + 1).tolist()
        )
    return make_grid(PROCESS, num_steps + 1, "logsnr")


def end_errors(name: str, exact: Float[np.ndarray, "n 2"]) -> dict[str, Any]:
    """Returns the root mean square error of x at t = 0 by the number of steps to there."""
    errors = {}
    for n in DOUBLING:
        grid = order_grid(name, n)
        x, nfe = drawn(name, grid, OF_ORDER, n)
        error = float(np.sqrt(np.square(x - exact).mean()))
        errors[str(n)] = {"nfe": nfe, "error": error}
    return errors


def weak_errors(name: str) -> dict[str, Any]:
    """Returns the error of the covariance's trace at t = 0 and its standard error, by the number of steps to there."""
    errors = {}
    for n in WEAK_DOUBLING:
        grid = order_grid(name, n)
        x, nfe = drawn(name, grid, OF_WEAK_ORDER, n)
        square = np.square(x - x.mean(0)).sum(1)
        exact = np.exp(2 * grid.log_signal[n]) * np.trace(COVARIANCE) + 2 * grid.std[n] ** 2
        stderr = float(square.std() / np.sqrt(len(x)))
        errors[str(n)] = {"nfe": nfe, "error": float(abs(square.mean() - exact)), "stderr": stderr}
    return errors


def order(errors: dict[str, Any]) -> float:
    """Returns the slope of log error by log steps where the error is above its noise; NaN of fewer than two points."""
    points = [
        (int(n), row["error"])
        for n, row in errors.items()
        if row["error"] > max(ROUNDING, 4 * row.get("stderr", 0))
    ]
    if len(points) < 2:
        return float("nan")
    steps, values = np.log(points[-3:]).T
    return -float(np.polyfit(steps, values, 1)[0])


def draw_picture(path: Path, figures: dict[str, Any]) -> None:
    """Writes a picture: errors of x of the ODE's solvers, and KS distances of all samplers, against NFE."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, (name, of_name) in enumerate(figures.items()):
        style: dict[str, Any] = {
            "label": name,
            "color": colormaps["tab20"](k),
            "marker": "o",
            "ms": 4,
        }
        style["ls"] = "--" if RUNS.get(name, Run()).noisy else "-"
        if not RUNS.get(name, Run()).noisy:
            rows = list(of_name["errors"].values())
            left.plot([row["nfe"] for row in rows], [row["error"] for row in rows], **style)
        rows = of_name["distribution"].values()
        right.plot([row["nfe"] for row in rows], [max(row["ks"]) for row in rows], **style)
    left.set(ylabel="root mean square error of x at t = 0", title="solvers of the ODE")
    right.set(ylabel="KS distance, larger of the two coordinates")
    right.set_title(f"{SAMPLES:,} samples against the mixture (dashed: fresh noise)")
    right.axhspan(0, KS_FLOOR, color="0.9", label="95% of exact samples")
    ticks = [5, 10, 20, 50, 100, 200, 500, 1000]
    for axes, shown in ((left, ticks[2:]), (right, ticks[:-1])):
        axes.set(xscale="log", yscale="log", xlabel="network evaluations a sample")
        axes.set_xticks(shown, [str(n) for n in shown])
        axes.minorticks_off()
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def measure(name: str, steps: list[int], exact: Float[np.ndarray, "n 2"]) -> dict[str, Any]:
    """Returns all figures of one sampler."""
    run = RUNS.get(name, Run())
    errors = weak_errors(name) if run.noisy else end_errors(name, exact)
    return {
        "spacing": run.spacing,
        "distribution": {str(n): distribution(name, n) for n in steps},
        "errors": errors,
        "order": order(errors),
        "theory": run.order,
    }


def print_tables(figures: dict[str, Any]) -> None:
    """Prints distributions, then orders."""
    rows = [
        [name, of_name["spacing"], n, row["nfe"], *(f"{row[key]:.4f}" for key in ("mean", "covariance")),
         *(f"{distance:.4f}" for distance in row["ks"])]
        for name, of_name in figures.items()
        for n, row in of_name["distribution"].items()
    ]  # fmt: skip
    header = [
        "sampler",
        "spacing",
        "steps",
        "NFE",
        "error of mean",
        "of covariance",
        "KS x",
        "KS y",
    ]
    report.print_table(header, rows)
    print(f"\nKS distance that 95% of {SAMPLES:,} exact samples are below: {KS_FLOOR:.4f}")
    rows = []
    for name, of_name in figures.items():
        errors = {n: f"{row['error']:.1e}" for n, row in of_name["errors"].items()}
        cells = [errors.get(str(n), "") for n in ORDER_STEPS]
        rows.append([name, of_name["theory"] or "none", f"{of_name['order']:.2f}", *cells])
    steps = [f"error, {n} steps" for n in ORDER_STEPS]
    report.print_table(["sampler", "order in theory", "measured", *steps], rows)


def main() -> None:
    """Prints two tables, and writes the figures as JSON and the picture if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 50, 100, 200])
    parser.add_argument("--samplers", nargs="+", default=GIVEN_STEPS, choices=GIVEN_STEPS)
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    parser.add_argument("--picture", type=Path, help="PNG file")
    arguments = parser.parse_args()
    x_T = np.asarray(first_noise(image_keys(0, jnp.arange(OF_ORDER)), (2,)))
    # The same for every grid: all go from the last timestep to the first.
    ends = make_grid(PROCESS, 2, "logsnr")
    exact = flow(ends, x_T, 0, 1)
    figures = {}
    for name in arguments.samplers:
        print(f"  {name}", flush=True)
        figures[name] = measure(name, arguments.steps, exact)
    print_tables(figures)
    if arguments.picture:
        draw_picture(arguments.picture, figures)
    report.write(arguments.out, {"samples": SAMPLES, "ks_floor": KS_FLOOR, "samplers": figures})


if __name__ == "__main__":
    main()
