"""Holds a plan of `--mode=plan` against the device: does the step run where it says so, in what memory, how fast?

Each batch size is planned and tried in a process of its own: the plan's total and verdict, and, whatever it says, some
steps: their time, or none where the memory was not enough, and the allocator's peak. A small share of the memory, by
XLA_PYTHON_CLIENT_MEM_FRACTION, brings the limit near. Fails if a verdict is wrong. For GPUs and TPUs:
`plan_memory.py` does the same on the CPU. Unknown flags override fields of the config.

  XLA_PYTHON_CLIENT_MEM_FRACTION=0.1 python benchmarks/plan_and_run.py --batch_sizes 128 192 256 \\
      --config.model.dtype=bfloat16 --out=plan_and_run.json
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import report
from steps import random_batch, step_seconds

from diffusion_jax import config as config_lib
from diffusion_jax.commands.plan import memory_of
from diffusion_jax.experiment.planning import planned_training
from diffusion_jax.planning import program
from diffusion_jax.planning.chips import chip_of
from diffusion_jax.planning.roofline import roofline


def measure(config: Any, passes: int, repeats: int) -> dict[str, Any]:
    """Returns what the plan says of a step and what the step then does."""
    device = jax.devices()[0]
    training, shapes = planned_training(config, jax.devices())
    planned = program.compile_step(training, shapes)
    limit, chip = memory_of(device, training.mesh.size), chip_of(device.device_kind)
    figures: dict[str, Any] = {
        "batch_size": config.train.batch_size,
        "device": device.device_kind,
        "planned_gb": planned.total / 1e9,
        "limit_gb": limit and limit / 1e9,
        "fits": limit is None or planned.total <= limit,
        "bound": chip and roofline(planned, chip, config.model.dtype).step,
        "compile_seconds": planned.seconds,
    }
    try:
        batch = random_batch(shapes)
        figures["seconds"] = step_seconds(
            training.steps[1], training.create(), batch, passes, repeats
        )
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
    if stats := device.memory_stats():
        figures["peak_gb"] = stats["peak_bytes_in_use"] / 1e9
    return figures


def main() -> None:
    """Prints a table, writes the figures as JSON if asked to, and fails if a verdict is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/cifar10.py")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments, overrides = parser.parse_known_args()
    if arguments.one:
        config = config_lib.load_file(arguments.config)
        fields = [tuple(o.removeprefix("--config.").split("=", 1)) for o in overrides]
        config_lib.override(config, [*fields, ("train.batch_size", str(arguments.one))])  # pyright: ignore[reportArgumentType]
        print(json.dumps(measure(config, arguments.passes, arguments.repeats)))
        return
    found = []
    for size in arguments.batch_sizes:
        command = [sys.executable, __file__, *sys.argv[1:], f"--one={size}"]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found.append(json.loads(said.splitlines()[-1]))
        print(f"  {found[-1]}", flush=True)
    names = ["batch_size", "planned_gb", "limit_gb", "fits", "peak_gb", "seconds", "bound"]
    report.print_table(names, [[row.get(name, "-") for name in names] for row in found])
    report.write(arguments.out, {"overrides": overrides, "rows": found})
    sys.exit(any(row["fits"] != ("seconds" in row) for row in found))


if __name__ == "__main__":
    main()
