"""Measures the README's first command, after the installation, as a whole: a cold start to the last picture.

Takes the command from the README, word for word, with an empty cache and a new workdir, so that data
preparation, import, compilation, training and sampling all count.

  python benchmarks/digits_demo.py --out=demo.json --workdir=runs/digits
"""

import argparse
import json
import shlex
import tempfile
from pathlib import Path

import report
from command import ROOT, Command

INSTALL, RUN = "pip install -e . && ", "python -m diffusion_jax.main "


def readme_flags() -> list[str]:
    """Returns the flags of the README's command.

    Raises:
      LookupError: The README has no such command.
    """
    for line in (ROOT / "README.md").read_text().splitlines():
        if line.strip().startswith(INSTALL + RUN):
            return shlex.split(line.strip().removeprefix(INSTALL + RUN))
    raise LookupError(f"no line {INSTALL + RUN!r} in the README")


def main() -> None:
    """Prints a table, and writes the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--workdir", type=Path, help="new folder to keep the last run in")
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments, overrides = parser.parse_known_args()
    flags = [*readme_flags(), *overrides]
    if arguments.workdir and arguments.workdir.exists():
        parser.error(f"--workdir: {arguments.workdir} is there already")
    wall, results = [], []
    for repeat in range(arguments.repeats):
        last = repeat == arguments.repeats - 1
        with tempfile.TemporaryDirectory() as folder:
            kept = arguments.workdir if last else None
            workdir = kept.absolute() if kept else Path(folder) / "run"
            command = Command([*flags, f"--workdir={workdir}"], Path(folder) / "cache")
            wall.append(command.finish(0))
            results.append(json.loads((workdir / "results" / "train.json").read_text()))
    shown = ("train_seconds", "sampling_seconds", "seconds_this_start", "images_per_sec")
    rows = [["whole command, s", report.median(wall), min(wall), max(wall)]]
    for name in shown:
        values = [float(result[name]) for result in results]
        rows.append([name, report.median(values), min(values), max(values)])
    report.print_table(["what", "median", "lowest", "highest"], rows)
    report.write(arguments.out, {"flags": flags, "wall_seconds": wall, "results": results})


if __name__ == "__main__":
    main()
