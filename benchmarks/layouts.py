"""Trains the same run on other numbers of devices and processes, and on other meshes: how much do the losses differ?

Each layout is PROCESSES x DEVICES (of each): DATA x FSDP, simulated on the CPU; several processes are real ones (gloo).
Of every step the loss is compared with that on one device. Then a run is stopped and goes on under other layouts
(ELASTIC), and is compared with the run that one device did alone. Unknown flags, such as --config.model.name=mlp, go to
the command.

  python benchmarks/layouts.py --num_steps=100 --out=layouts.json
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import report
from several import Processes, largest_difference, losses


class Layout(NamedTuple):
    """Where a run is computed."""

    processes: int
    devices: int
    data: int
    fsdp: int

    def __str__(self) -> str:
        return f"{self.processes} x {self.devices}: {self.data} x {self.fsdp}"


ALONE = Layout(1, 1, 1, 1)
LAYOUTS = (
    *(Layout(1, 2, 2, 1), Layout(1, 4, 4, 1), Layout(1, 8, 8, 1)),
    *(Layout(1, 2, 1, 2), Layout(1, 4, 1, 4), Layout(1, 8, 1, 8), Layout(1, 8, 2, 4)),
    *(Layout(2, 1, 2, 1), Layout(4, 1, 4, 1), Layout(2, 2, 1, 4), Layout(4, 2, 4, 2)),
)
# A third of the steps each.
ELASTIC = (
    (ALONE, Layout(1, 8, 1, 8), Layout(1, 2, 2, 1)),
    (Layout(2, 1, 1, 2), ALONE, Layout(4, 1, 2, 2)),
)
SMALL = (
    *("model.channels=32", "model.channel_mult=1,2", "model.num_res_blocks=1"),
    *("train.batch_size=64", "train.log_every=1", "train.sample_images=1"),
    *("sampler.num_steps=1", "train.checkpoint_every=1000000", "optimizer.warmup_steps=20"),
)


def main() -> None:
    """Prints a table, and writes the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--num_steps", type=int, default=100)
    parser.add_argument("--elastic_steps", type=int, default=201, help="of the runs that move")
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments, overrides = parser.parse_known_args()
    fields = [f"--config.{field}" for field in SMALL]
    flags = [f"--config={arguments.config}", *fields, *overrides]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def train(workdir: str, layout: Layout, num_steps: int) -> dict[int, float]:
            mesh = (f"--config.mesh.data={layout.data}", f"--config.mesh.fsdp={layout.fsdp}")
            steps = f"--config.train.num_steps={num_steps}"
            Processes(
                [*flags, *mesh, steps, f"--workdir={folder / workdir}"],
                layout.processes,
                layout.devices,
                folder / "cache",
                folder / "stderr",
            ).finish()
            return losses(folder / workdir)

        rows: list[list[Any]] = []
        alone = train("alone", ALONE, arguments.num_steps)
        for i, layout in enumerate(LAYOUTS):
            difference = largest_difference(alone, train(f"layout{i}", layout, arguments.num_steps))
            rows.append([str(layout), arguments.num_steps, difference])
            print(f"  {layout}: {difference:.1e}", flush=True)
        long = train("long", ALONE, arguments.elastic_steps)
        for i, way in enumerate(ELASTIC):
            for part, layout in enumerate(way, 1):
                train(f"way{i}", layout, part * arguments.elastic_steps // len(way))
            difference = largest_difference(long, losses(folder / f"way{i}"))
            rows.append([", then ".join(map(str, way)), arguments.elastic_steps, difference])
            print(f"  {rows[-1][0]}: {difference:.1e}", flush=True)
        again = train("again", ALONE, arguments.num_steps)
        rows.append([f"{ALONE}, once more", arguments.num_steps, largest_difference(alone, again)])
    header = ["processes x devices: data x fsdp", "steps", "largest relative difference of a loss"]
    report.print_table(header, [[where, steps, f"{d:.1e}"] for where, steps, d in rows])
    report.write(arguments.out, {"rows": rows, "overrides": overrides})


if __name__ == "__main__":
    main()
