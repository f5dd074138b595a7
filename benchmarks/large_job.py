"""Draws a small and a large number of images with the command: images/s, seconds to write each format, memory.

On a copy of a trained run. A job is drawn and written as npz; then the command is run once more for each other
format, which draws nothing, and once for no new one, whose seconds are those of the start alone. Peak memory is the
process's. Unknown flags, such as --config.sampler.num_steps=20, go to the command.

  python benchmarks/large_job.py --workdir=runs/digits --out=large_job.json
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import report
from command import Command

SAMPLING = ("sampler.name=dpmpp_2m", "sampler.num_steps=10", "sampler.spacing=logsnr")
OTHERS = ("png", "array_record")


def measure(
    workdir: Path, num_images: int, batch_size: int, overrides: list[str]
) -> dict[str, Any]:
    """Draws a job in a workdir and writes it in each format; returns its figures."""

    def start(formats: str) -> dict[str, Any]:
        fields = (*SAMPLING, f"sample.num_images={num_images}", f"sample.batch_size={batch_size}")
        fields = (*fields, f"sample.formats={formats}")
        flags = [*(f"--config.{field}" for field in fields), *overrides]
        command = Command(["--mode=sample", f"--workdir={workdir}", *flags], workdir / "cache")
        seconds = command.finish(0)
        result = json.loads((workdir / "results" / "sample.json").read_text())
        print(f"{num_images} images, {formats}: {seconds:.1f} s", flush=True)
        return {
            "seconds": seconds,
            "peak_mb": command.peak_memory() / 2**20,
            "drawn": result["drawn_this_start"],
        }

    drawn = start("npz")
    nothing = start("npz")
    starts = {"npz, drawn": drawn, "nothing new": nothing, **{name: start(name) for name in OTHERS}}
    return {
        "starts": starts,
        "images_per_second": num_images / (drawn["seconds"] - nothing["seconds"]),
    }


def main() -> None:
    """Prints a table, and writes the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True, help="a trained run; only read")
    parser.add_argument("--num_images", type=int, nargs="+", default=[5000, 50000])
    parser.add_argument("--batch_size", type=int, default=500)
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(arguments.workdir / "checkpoints", copy / "checkpoints")
        shutil.copy(arguments.workdir / "config.json", copy)
        measure(copy, arguments.batch_size, arguments.batch_size, overrides)  # Compiles.
        jobs = {
            num_images: measure(copy, num_images, arguments.batch_size, overrides)
            for num_images in arguments.num_images
        }
    rows = [
        [num_images, name, start["drawn"], start["seconds"], round(start["peak_mb"])]
        for num_images, job in jobs.items()
        for name, start in job["starts"].items()
    ]
    report.print_table(("images", "written", "drawn", "seconds", "peak memory, MB"), rows)
    for num_images, job in jobs.items():
        print(f"{num_images} images: {job['images_per_second']:.0f} images/s, the start left out")
    report.write(arguments.out, {"jobs": jobs, "overrides": overrides})


if __name__ == "__main__":
    main()
