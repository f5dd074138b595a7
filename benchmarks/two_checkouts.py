"""Compares the speed of two checkouts of this project: forward pass and train step of both benchmark U-Nets.

Each checkout's own `benchmarks/unet_vs_diffusers.py` builds what is timed, in a process of its own, and the
two take turns. The ratio is what a change costs.

  git worktree add ../before SOME_COMMIT
  python benchmarks/two_checkouts.py --before=../before --out=checkouts.json
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import report

ROOT = Path(__file__).resolve().parents[1]
SETTLE = 0.2  # Seconds between two turns.
# Run in either checkout: one JSON request a line on standard input, the seconds of a pass as the answer.
WORKER = """
import json, sys, time
import jax
import unet_vs_diffusers as ours
size = getattr(ours, sys.argv[1])
work = {"forward": ours.our_forward(size), "step": ours.our_step(size)}
for function in work.values():
    jax.block_until_ready(function())
    jax.block_until_ready(function())
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    what, passes = json.loads(line)
    jax.block_until_ready(work[what]())  # Brings back the memory that the system took while the other checkout ran.
    started = time.perf_counter()
    for _ in range(passes):
        jax.block_until_ready(work[what]())
    print(json.dumps((time.perf_counter() - started) / passes), flush=True)
"""


class Checkout:
    """A process that runs one checkout's network, and sleeps between requests."""

    def __init__(self, root: Path, size: str) -> None:
        path = os.pathsep.join(str(folder) for folder in (root, root / "benchmarks"))
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, size],
            cwd=root,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a checkout ended with status {self._process.wait()}")
        return json.loads(line)

    def run(self, what: str, passes: int) -> float:
        """Returns the seconds of one pass."""
        assert self._process.stdin is not None
        time.sleep(SETTLE)
        print(json.dumps([what, passes]), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def main() -> None:
    """Prints a table, and writes the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="root of the other checkout")
    parser.add_argument("--sizes", default="CIFAR10,SMALL", help="of unet_vs_diffusers.py")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--passes", type=int, default=2, help="passes a measurement")
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments = parser.parse_args()
    rows, figures = [], {}
    for size in arguments.sizes.split(","):
        checkouts = {
            "before": Checkout(arguments.before.resolve(), size),
            "after": Checkout(ROOT, size),
        }
        for what in ("forward", "step"):
            print(size, what, flush=True)
            sides = {
                name: functools.partial(checkout.run, what, arguments.passes)
                for name, checkout in checkouts.items()
            }
            seconds = report.alternate(sides, arguments.repeats)
            before, after = (report.median(seconds[name]) for name in ("before", "after"))
            rows.append([size, what, before, after, f"{after / before:.3f}"])
            figures[f"{size} {what}"] = {"seconds": seconds, "after_by_before": after / before}
        for checkout in checkouts.values():
            checkout.close()
    report.print_table(["network", "what", "before, median s", "after", "after / before"], rows)
    report.write(arguments.out, figures)


if __name__ == "__main__":
    main()
