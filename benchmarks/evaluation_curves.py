"""Metrics of images over a training, against network evaluations for five solvers, and over guidance; with pictures.

  python benchmarks/evaluation_curves.py --config=configs/digits.py --folder=runs/curves_digits \\
      --out=docs/results/evaluation/digits
  python benchmarks/evaluation_curves.py --config=configs/fashion_mnist.py --folder=runs/curves_fashion \\
      --out=docs/results/evaluation/fashion_mnist --num_steps=2000 --num_images=1000

trains (--num_steps; the config's own if unset), measures while it trains and sweeps, and prints the tables. A second
start goes on where it was. Features are those of the classifier trained on the data's own labels: none is a FID.
"""

import argparse
import json
import shutil
from pathlib import Path

from command import Command

SOLVERS = "sampler.name=ancestral,ddim,dpmpp_2m,dpmpp_3m,unipc; sampler.num_steps=5,10,20,50"
GUIDANCE = "sampler.guidance_scale=1,1.5,2,3,4; sampler.num_steps=20"
FAST = ("--config.sampler.name=dpmpp_2m", "--config.sampler.spacing=trailing")


def _run(flags: list[str], cache: Path) -> None:
    Command(flags, cache).finish(status=0)


def main() -> None:
    """Runs everything and copies the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore
    parser.add_argument("--config", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num_steps", type=int)
    parser.add_argument("--num_images", type=int, default=2000)
    parser.add_argument("--measurements", type=int, default=10)
    parser.add_argument(
        "--more", nargs="*", default=[], help="fields of the training, such as data.source_dir=…"
    )
    arguments = parser.parse_args()
    folder, cache = arguments.folder.absolute(), arguments.folder.absolute() / "cache"
    workdir = f"--workdir={folder / 'run'}"
    measured = [
        "--config.eval.features=classifier",
        f"--config.eval.num_images={arguments.num_images}",
    ]
    measured += ["--config.sample.batch_size=500", "--config.eval.batch_size=500"]
    more = [f"--config.{field}" for field in arguments.more]
    if arguments.num_steps:
        more.append(f"--config.train.num_steps={arguments.num_steps}")
    steps = arguments.num_steps or _num_steps(arguments.config)
    every = max(1, steps // arguments.measurements)
    training = [f"--config={arguments.config}", workdir, f"--config.train.metrics_every={every}"]
    training += ["--config.train.label_dropout=0.1", "--config.sampler.num_steps=20"]
    _run([*training, "--config.eval.metrics=fd,kid,pr", *FAST, *measured, *more], cache)
    arguments.out.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "run" / "loss.png", arguments.out / "training.png")
    evaluate = ["--mode=evaluate", workdir, *measured]
    swept = {
        "solvers": [f"--config.eval.sweep={SOLVERS}", "--config.eval.metrics=fd,kid"],
        "guidance": [f"--config.eval.sweep={GUIDANCE}", "--config.eval.metrics=fd,pr", *FAST],
    }
    for name, flags in swept.items():
        _run([*evaluate, *flags], cache)
        record = json.loads((folder / "run" / "results" / "sweep.json").read_text())
        picture = next(file for file in record["files"] if file.endswith(".png"))
        shutil.copy(folder / "run" / "results" / picture, arguments.out / f"{name}.png")


def _num_steps(config: str) -> int:
    from diffusion_jax import config as config_lib

    return config_lib.load_file(config).train.num_steps


if __name__ == "__main__":
    main()
