"""Compares the memory that `--mode=plan` says a train step needs on the CPU with what the process then takes.

Each batch size is measured in a process of its own: it compiles the step, makes a state and a batch, notes its resident
memory, does one step and notes its peak. The growth between the two is the plan's temporaries and results; arrays that
are there before, and the compiler's own memory, are in neither. Fails if they differ by more than the bar of 20%.

  taskset -c 1 python benchmarks/plan_memory.py --out=plan_memory.json
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import report

BAR = 0.2


def resident(name: str) -> int:
    """Returns bytes of this process: VmRSS now, or VmHWM, the peak since it was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure(batch_size: int, channels: int) -> dict[str, Any]:
    """Returns the plan of a U-Net's step on 32x32x3 images, and the growth of this process in one step."""
    import jax
    import numpy as np

    jax.config.update("jax_platforms", "cpu")
    from diffusion_jax.config import default_config
    from diffusion_jax.experiment.planning import planned_training
    from diffusion_jax.planning import program

    config = default_config()
    config.data.name = "cifar10"
    config.model.channels, config.model.channel_mult = channels, (1, 2)
    config.model.num_res_blocks, config.model.attention_resolutions = 1, ()
    config.train.batch_size, config.mesh.data = batch_size, 1
    training, shapes = planned_training(config, jax.devices()[:1])
    planned = program.compile_step(training, shapes)
    state = jax.block_until_ready(training.create())
    batch = jax.device_put(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
    step = training.steps[1].lower(state, batch).compile()
    Path("/proc/self/clear_refs").write_text("5")  # Resets the peak.
    before = resident("VmRSS")
    jax.block_until_ready(step(state, batch))
    growth = resident("VmHWM") - before
    needed = planned.temporaries + planned.unaliased
    return {
        "batch_size": batch_size,
        "channels": channels,
        "planned": needed,
        "measured": growth,
        "ratio": growth / needed,
        "total": planned.total,
    }


def main() -> None:
    """Prints a table, writes the figures as JSON if asked to, and fails outside the bar."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--measure", type=int, metavar="BATCH_SIZE", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure, arguments.channels)))
        return
    found = []
    for size in arguments.batch_sizes:
        command = [
            sys.executable,
            __file__,
            f"--measure={size}",
            f"--channels={arguments.channels}",
        ]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found.append(json.loads(output.splitlines()[-1]))
        print(f"  {found[-1]}", flush=True)
    header = ["batch", "planned, GiB", "measured, GiB", "measured / planned"]
    sizes = [(row["planned"] / 2**30, row["measured"] / 2**30, row["ratio"]) for row in found]
    report.print_table(
        header, [[row["batch_size"], *size] for row, size in zip(found, sizes, strict=True)]
    )
    report.write(arguments.out, {"bar": BAR, "rows": found})
    sys.exit(any(abs(row["ratio"] - 1) > BAR for row in found))


if __name__ == "__main__":
    main()
