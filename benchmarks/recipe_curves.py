"""Measures the curves that a recipe's runs are expected to follow, and writes configs/curves/RECIPE.json.

Trains the recipe once per seed, whole, unless --folder has the runs already, and smooths the logarithm of each metric
of all runs together, by local lines in log steps (Gaussian weights). The band is three standard deviations of the rows
about that curve: of single rows, not of the mean. It is at least 3%; at least 10% where there is one run, which does
not say how far seeds differ. With three runs or more, the table says how many rows of each run lie outside of the band
of the others.

  python benchmarks/recipe_curves.py digits --seeds=0,1,2 --folder=runs/curves
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import report
from command import ROOT, Command

from diffusion_jax import config as config_lib
from diffusion_jax.reading.metrics_rows import read_rows
from diffusion_jax.reporting.expected import Band

METRICS = ("loss", "eval_loss")
SMOOTHING, SPREAD = (
    0.1,
    0.3,
)  # Standard deviations of the weights in log step: of the curve, of the band's width.
DEVIATIONS, LEAST, LEAST_OF_ONE = 3.0, 0.03, 0.1
POINTS = 40


def curve_of(rows: list[dict[str, Any]], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns log step and log value of each row that has the metric."""
    points = [(row["step"], row[metric]) for row in rows if row.get(metric)]
    x, y = np.log(np.array(points, np.float64)).reshape(-1, 2).T
    return x, y


def local_lines(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Returns the value at each point of the line fitted with weights around it."""
    values = []
    for center in at:
        weight = np.exp(-0.5 * ((x - center) / SMOOTHING) ** 2)
        mean_x, mean_y = np.average(x, weights=weight), np.average(y, weights=weight)
        variance = np.average((x - mean_x) ** 2, weights=weight)
        covariance = np.average((x - mean_x) * (y - mean_y), weights=weight)
        slope = covariance / variance if variance > 1e-9 else 0.0
        values.append(mean_y + slope * (center - mean_x))
    return np.array(values)


def band(runs: list[list[dict[str, Any]]], metric: str) -> Band | None:
    """Returns the band of a metric; None if the rows have it at fewer than two steps."""
    x, y = np.concatenate([curve_of(rows, metric) for rows in runs], axis=1)
    steps = np.unique(np.exp(x).round())
    if len(steps) < 2:
        return None
    if len(steps) > POINTS:  # The nearest to points evenly spaced in log step.
        targets = np.geomspace(steps[0], steps[-1], POINTS)
        steps = np.unique(steps[np.abs(steps[:, None] - targets).argmin(axis=0)])
    residuals = y - local_lines(x, y, x)
    center, width = local_lines(x, y, np.log(steps)), []
    for point in np.log(steps):
        weight = np.exp(-0.5 * ((x - point) / SPREAD) ** 2)
        width.append(DEVIATIONS * np.sqrt(np.average(residuals**2, weights=weight)))
    half = np.maximum(width, LEAST if len(runs) > 1 else LEAST_OF_ONE)
    return Band(steps, np.exp(center - half), np.exp(center), np.exp(center + half))


def outside(band: Band, rows: list[dict[str, Any]]) -> tuple[int, int, int]:
    """Returns how many rows lie outside, the longest stretch of such, and the number of rows."""
    x, y = np.exp(curve_of(rows, "loss"))
    low, _, high = band.at(x)
    out = (y < low) | (y > high)
    longest = max(len(part) for part in "".join("x" if o else " " for o in out).split(" "))
    return int(out.sum()), longest, len(out)


def rounded(column: np.ndarray) -> list[float]:
    """Returns numbers of four digits; steps stay whole."""
    return [int(v) if v == round(v) else float(f"{v:.4g}") for v in column]


def main() -> None:
    """Trains what is missing, writes the file and prints how well it holds the runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="name of a config, such as digits, or its file in configs/")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of the runs")
    parser.add_argument("--folder", type=Path, default=Path("runs/curves"))
    parser.add_argument("--out", type=Path, help="instead of configs/curves/RECIPE.json")
    arguments = parser.parse_args()
    name = Path(arguments.recipe).stem
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    runs = []
    for seed in seeds:
        workdir = (arguments.folder / f"{name}-{seed}").absolute()
        if not (workdir / "results" / "train.json").exists():
            flags = [f"--config={name}", f"--config.seed={seed}", f"--workdir={workdir}"]
            Command(flags, arguments.folder.absolute() / "cache").finish(0)
        runs.append(read_rows(workdir / "metrics.jsonl"))
    config = config_lib.load_file(name)
    bands = {metric: found for metric in METRICS if (found := band(runs, metric)) is not None}
    content = {
        "recipe": name,
        "config_hash": config_lib.recipe_hash(config),
        "seeds": seeds,
        "log_every": config.train.log_every,
        "made_with": f"jax {jax.__version__}, CPU",
        "bands": {
            metric: {column: rounded(values) for column, values in found._asdict().items()}
            for metric, found in bands.items()
        },
    }
    path = arguments.out or ROOT / "configs" / "curves" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content) + "\n")
    table = []
    for i, seed in enumerate(seeds):
        others = band(runs[:i] + runs[i + 1 :], "loss") if len(runs) > 2 else None
        table.append(
            [seed, *outside(bands["loss"], runs[i]), *outside(others or bands["loss"], runs[i])]
        )
    report.print_table(
        ["seed", "outside", "in a row", "rows", "of others", "in a row", "rows"], table
    )
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
