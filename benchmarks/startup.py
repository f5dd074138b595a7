"""Measures the time from the command to the first train step done.

Starts the command in a fresh process with an empty cache folder (the first start prepares the data and
compiles), then again and again with the same cache and a new workdir; each process is killed once it
has said that its first step is done. Both clocks are given: the command's own and that outside.
Unknown flags, such as --config.model.channels=16, go to the command.

  python benchmarks/startup.py --out=startup.json
"""

import argparse
import re
import signal
import tempfile
from pathlib import Path

import report
from command import Command

LINE = "first step done"


def start(config: str, overrides: list[str], root: Path, name: str) -> dict[str, float]:
    """Returns the seconds to the first step, seen from outside and as the command says."""
    workdir = root / "runs" / name
    flags = [f"--config={config}", f"--workdir={workdir}", *overrides]
    command = Command(flags, root / "cache", echo=False)
    line = command.wait_for(LINE)
    command.send(signal.SIGKILL)
    command.finish(-signal.SIGKILL)
    said = re.search(LINE + r" ([\d.]+) s", line.text)
    assert said is not None, line.text
    seconds = {"outside": line.seconds, "said": float(said[1])}
    print(f"  {name}: {seconds}", flush=True)
    return seconds


def main() -> None:
    """Prints a table, and writes the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--repeats", type=int, default=5, help="starts after the first one")
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        first, *later = [
            start(arguments.config, overrides, Path(folder), f"start{i + 1}")
            for i in range(arguments.repeats + 1)
        ]
    rows = []
    for clock in ("outside", "said"):
        values = [seconds[clock] for seconds in later]
        rows.append([clock, first[clock], report.median(values), min(values), max(values)])
    header = ["clock", "first start, s", "later starts, median s", "fastest", "slowest"]
    report.print_table(header, rows)
    settings = {"config": arguments.config, "overrides": overrides}
    report.write(arguments.out, {**settings, "first": first, "later": later})


if __name__ == "__main__":
    main()
