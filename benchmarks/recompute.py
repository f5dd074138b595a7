"""Measures what recomputation in the backward pass costs and saves: memory and time of a step for each `model.remat`.

The compiler says the memory (temporaries, of each device), and of an accelerator also what was really taken at most.
Unknown flags, such as --config.model.dtype=bfloat16, override fields of the config.

  python benchmarks/recompute.py --config=configs/cifar10.py --batch_size=128 --out=recompute.json
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import report
from steps import random_batch, step_seconds

from diffusion_jax import config as config_lib
from diffusion_jax.experiment import build
from diffusion_jax.experiment.training import batch_template, make_training, make_training_mesh
from diffusion_jax.parallel import join

REMATS = ("none", "conv,attention", "blocks")


def measure(
    config: Any, image_shape: tuple[int, int, int], passes: int, repeats: int
) -> dict[str, Any]:
    """Returns memory and seconds of a compiled step."""
    exp = build.build(config, image_shape, 0)
    mesh = make_training_mesh(config)
    training, template = make_training(exp, mesh), batch_template(exp, mesh)
    started = time.perf_counter()
    compiled = training.steps[1].lower(training.template, template).compile()
    figures: dict[str, Any] = {"compile_seconds": time.perf_counter() - started}
    figures["temporaries_mb"] = compiled.memory_analysis().temp_size_in_bytes / 2**20
    batch = random_batch(template)
    figures["seconds"] = step_seconds(compiled, training.create(), batch, passes, repeats)
    stats = jax.local_devices()[0].memory_stats() or {}
    figures["peak_mb"] = stats.get("peak_bytes_in_use", 0) / 2**20
    return figures


def main() -> None:
    """Prints a table, and writes the figures as JSON if asked to. Each way runs in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/cifar10.py")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--image", type=int, nargs=3, default=(32, 32, 3), help="H W C")
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", help="measure this one here, and print its figures as JSON")
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments, overrides = parser.parse_known_args()
    if arguments.one:
        join.initialize()
        config = config_lib.load_file(arguments.config)
        fields = [tuple(o.removeprefix("--config.").split("=", 1)) for o in overrides]
        fields += [("train.batch_size", str(arguments.batch_size)), ("model.remat", arguments.one)]
        config_lib.override(config, fields)  # pyright: ignore[reportArgumentType]
        shape = tuple(arguments.image)
        print(json.dumps(measure(config, shape, arguments.passes, arguments.repeats)))
        return
    figures = {}
    for remat in REMATS:
        command = [sys.executable, __file__, *sys.argv[1:], f"--one={remat}"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        figures[remat] = json.loads(said.splitlines()[-1])
        print(f"  {remat}: {figures[remat]}", flush=True)
    header = ["model.remat", "temporaries, MB", "peak, MB", "step, s", "compile, s"]
    names = ["temporaries_mb", "peak_mb", "seconds", "compile_seconds"]
    report.print_table(header, [[remat, *(f[n] for n in names)] for remat, f in figures.items()])
    report.write(arguments.out, {"remat": figures, "overrides": overrides})


if __name__ == "__main__":
    main()
