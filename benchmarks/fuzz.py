"""Mutates what the library reads, asks its readers, and counts what they answer.

Sound files of each kind are damaged (flipped bits, cuts, splices, zeros, other JSON, other arrays with right checksums,
a folder, a pipe or a loop of links in their place, hostile pickles and pictures) and read as commands do. The answer
is right (equal to that of the sound file), refused in one line, noticed (what is damaged is named, or made anew), or it
"cannot be known": the file says something else in a sound form, and has no checksum, or one that was made anew. Each
loader's docstring says where that is: pixels of JPEG, WebP, TIFF, BMP and GIF; values in a user's JSON, Python, pickles
and IDX files, in config.json, metrics.jsonl, results/*.json and lock.json. All else is a fault: WRONG (another value
without a word), TRACEBACK (another error, or one of several lines), HANG, CRASH (of the interpreter), and EXECUTED (a
program was started).

A case is a function of the seed, the loader's name and its number: --only=NAME --first=NUMBER --cases=1 runs it again.
The cases run in a process of their own, which is started anew when it hangs or dies.

  python benchmarks/fuzz.py --cases=20000 --out=fuzz.json
"""

import argparse
import collections
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import report
from fuzzing import loaders
from fuzzing.loader import CRASH, FAULTS, HANG, OUTCOMES, Verdict

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 15.0  # Seconds for one case,
AT_FIRST = 120.0  # and for the imports and the sound files.
SHOWN = 5  # Faults of a loader that are printed.


class Worker:
    """A process that runs cases one by one.

    Args:
      folder: For its files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self._known: set[str] = set()

    def run(self, name: str, seed: int, number: int) -> Verdict:
        """Runs a case."""
        if self._process is None:
            self._start()
        assert self._process and self._process.stdin and self._process.stdout
        patience = PATIENCE if name in self._known else AT_FIRST
        self._process.stdin.write(json.dumps([name, seed, number]) + "\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], patience)[0]:
            self.close()
            return Verdict(HANG, f"no answer in {patience} s")
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self.close()
            return Verdict(CRASH, f"status {status}")
        self._known.add(name)
        return Verdict(*json.loads(line))

    def _start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.communicate()
        self._process = None
        self._known.clear()


def work(folder: Path) -> None:
    """Answers the requests of a parent, a line each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What C++ prints is no answer.
    kinds, made = loaders(), {}
    for line in sys.stdin:
        name, seed, number = json.loads(line)
        try:
            if name not in made:
                made[name] = kinds[name](Path(tempfile.mkdtemp(dir=folder)))
            verdict = made[name].case(seed, number)
        except BaseException:  # An answer of a form that nobody judges.
            verdict = Verdict(CRASH, traceback.format_exc())
        answers.write(json.dumps(verdict) + "\n")
        answers.flush()


def fuzz(flags: argparse.Namespace) -> dict[str, Any]:
    """Runs all cases; returns the counts of each loader, and the faults."""
    names = [name for name in loaders() if flags.only in (None, name)]
    if not names:
        raise SystemExit(f"--only must be one of {', '.join(loaders())}")
    share = -(-flags.cases // len(names))
    counts: dict[str, dict[str, int]] = {}
    faults: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(Path(folder))
        for name in names:
            started = time.monotonic()
            count: collections.Counter[str] = collections.Counter()
            for number in range(flags.first, flags.first + share):
                verdict = worker.run(name, flags.seed, number)
                count[verdict.outcome] += 1
                if verdict.outcome in FAULTS:
                    faults.append({"loader": name, "number": number, **verdict._asdict()})
                    if sum(fault["loader"] == name for fault in faults) <= SHOWN:
                        detail = verdict.detail if flags.verbose else verdict.detail[-600:]
                        print(f"{name} {number}: {verdict.outcome}: {detail}", flush=True)
                elif flags.verbose:
                    print(f"{name} {number}: {verdict.outcome}: {verdict.detail}", flush=True)
            counts[name] = {outcome: count[outcome] for outcome in OUTCOMES}
            seconds[name] = round(time.monotonic() - started, 1)
            print(f"{name}: {share} cases in {seconds[name]} s: {dict(count)}", flush=True)
        worker.close()
    return {"seed": flags.seed, "counts": counts, "seconds": seconds, "faults": faults}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", type=int, default=20_000, help="shared evenly by all loaders")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="NAME", help="one loader")
    parser.add_argument("--first", type=int, default=0, help="number of each loader's first case")
    parser.add_argument("--verbose", action="store_true", help="print every case")
    parser.add_argument("--out", type=Path, help="JSON file for the counts and all faults")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        work(flags.worker)
        return
    found = fuzz(flags)
    total = collections.Counter[str]()
    for count in found["counts"].values():
        total.update(count)
    rows = [[name, *count.values()] for name, count in [*found["counts"].items(), ("all", total)]]
    report.print_table(["loader", *OUTCOMES], rows)
    print(f"{sum(total.values())} cases in {sum(found['seconds'].values()):.0f} s")
    report.write(flags.out, found)
    sys.exit(1 if found["faults"] else 0)


if __name__ == "__main__":
    main()
