"""Test bits/dim after the same training with L_simple, L_hybrid and L_vlb, each with its standard error.

Trains the config once with each loss, the last two with learned variances, and measures the bound of the averaged
parameters; that of L_simple with both fixed variances. A run that is in the folder already is continued.

  python benchmarks/bits_per_dim.py --config=configs/digits.py --folder=runs/bpd --out=bpd.json
  python benchmarks/bits_per_dim.py --config=configs/fashion_mnist.py --folder=runs/bpd_fashion --num_terms=100 \\
      --config.train.num_steps=3000 --out=bpd_fashion.json

Other flags, such as --config.train.num_steps=3000, go to the trainings.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import report
from command import Command

LEARNED = "--config.process.variance=learned"
# What each loss is trained with.
LOSSES = {
    "simple": [],
    "hybrid": ["--config.loss.name=hybrid", LEARNED],
    "vlb": ["--config.loss.name=vlb", LEARNED, "--config.loss.times=importance"],
}
VARIANCES = {
    "simple": ["fixed_large", "fixed_small"],
    "hybrid": ["learned"],
    "vlb": ["learned"],
}


def train(loss: str, arguments: argparse.Namespace, overrides: list[str]) -> float:
    """Trains with a loss; returns the seconds."""
    flags = [f"--config={arguments.config}", f"--workdir={workdir(arguments, loss)}"]
    return Command([*flags, *LOSSES[loss], *overrides], cache(arguments)).finish(0)


def measure(loss: str, variance: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what `--mode=evaluate` files under "bpd"."""
    flags = [
        "--mode=evaluate",
        f"--workdir={workdir(arguments, loss)}",
        f"--config.eval.variance={variance}",
        f"--config.eval.num_images={arguments.num_images}",
        f"--config.eval.num_terms={arguments.num_terms or 'none'}",
    ]
    Command(flags, cache(arguments)).finish(0)
    results = workdir(arguments, loss) / "results" / "evaluate.json"
    return json.loads(results.read_text())["bpd"]


def workdir(arguments: argparse.Namespace, loss: str) -> Path:
    """Returns the folder of the run with that loss."""
    return arguments.folder.absolute() / loss


def cache(arguments: argparse.Namespace) -> Path:
    """Returns the folder of prepared data and compiled programs."""
    return arguments.folder.absolute() / "cache"


def main() -> None:
    """Prints a table, and writes the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--folder", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--losses", default=",".join(LOSSES), help="which, separated by commas")
    parser.add_argument("--num_images", type=int, default=1000, help="test images, at most")
    parser.add_argument("--num_terms", type=int, help="terms of each image; unset: all T")
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments, overrides = parser.parse_known_args()
    rows, figures = [], {}
    for loss in arguments.losses.split(","):
        seconds = train(loss, arguments, overrides)
        for variance in VARIANCES[loss]:
            bpd = figures[f"{loss}, {variance}"] = measure(loss, variance, arguments)
            shown = (bpd[name] for name in ("total", "rate", "distortion"))
            cells = [f"{entry['value']:.4f} ± {entry['stderr']:.4f}" for entry in shown]
            rows.append([loss, variance, *cells, seconds])
    report.print_table(
        ["loss", "variance", "bits/dim", "rate", "distortion", "seconds of training"], rows
    )
    report.write(arguments.out, {"config": arguments.config, "flags": overrides, "bpd": figures})


if __name__ == "__main__":
    main()
