"""Sends signals to the command at random moments of all modes, runs it again, and compares it with one left alone.

A command that met SIGTERM or SIGINT must end with status 75 and one line, or with 0 and all of its results; the same
command, run again, must end with the results of one that was left alone. Only in the first moments, while the
interpreter starts, may the signal itself end the process. Unknown flags, such as --config.model.channels=32, go to
the training.

  python benchmarks/signals.py --signals=100 --out=signals.json
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import report
from kill_and_resume import ROOT, SMALL, differing

SHORT = (*SMALL, "train.num_steps=200", "train.eval_every=50", "mesh.data=1")
NUMBERS = (signal.SIGTERM, signal.SIGINT)
MODES = {
    "train": (),
    "sample": ("sample.num_images=64", "sample.batch_size=4", "sample.progressive=true"),
    "evaluate bpd": ("eval.metrics=bpd", "eval.num_images=64", "eval.batch_size=4"),
    "evaluate ode_bpd": ("eval.metrics=ode_bpd", "eval.num_images=16", "eval.batch_size=2"),
    "inpaint": ("edit.keep=coarse", "sample.num_images=32", "sample.batch_size=4"),
    "interpolate": ("sample.num_images=8", "sample.batch_size=8"),
    "plan": (),
}
# Figures that are of the machine, or of the start.
PASSING = ("seconds", "provenance", "earlier", "drawn_this_start", "images_per_sec", "job", "files")


class Ended(NamedTuple):
    """How a command ended: its status, what it said, after how many seconds, and whether a signal still met it."""

    status: int
    said: str
    seconds: float
    met: bool


class Trial:
    """The command of a mode in a workdir."""

    def __init__(self, mode: str, workdir: Path, cache: Path, more: list[str]) -> None:
        name = mode.split()[0]
        fields = (
            [*(f"--config.{field}" for field in SHORT), *more] if name in ("train", "plan") else []
        )
        config = ["--config=configs/digits.py"] if fields else []
        fields += [f"--config.{field}" for field in MODES[mode]]
        self._flags = [*config, f"--mode={name}", f"--workdir={workdir}", *fields]
        self._environment = {**os.environ, "DIFFUSION_JAX_CACHE": str(cache)}
        self.mode, self.workdir = mode, workdir

    def run(self, number: int | None = None, moment: float = 0.0) -> Ended:
        """Runs the command; sends it a signal after some seconds."""
        started = time.monotonic()
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "diffusion_jax.main", *self._flags],
                cwd=ROOT,
                env=self._environment,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
            met = False
            if number is not None:
                time.sleep(moment)
                met = process.poll() is None
                process.send_signal(number)
            status = process.wait()
            said.seek(0)
            return Ended(status, said.read(), time.monotonic() - started, met)

    def results(self) -> dict[str, Any]:
        """Returns the figures and arrays of a finished job."""
        name = self.mode.split()[0]
        found = json.loads((self.workdir / "results" / f"{name}.json").read_text())
        found = {"figures": _lasting(found)}
        if name != "train":
            for path in sorted(self.workdir.glob("[!c]*/**/*.npz")):
                with np.load(path) as arrays:
                    found |= {f"{path.name} {key}": arrays[key].tobytes() for key in arrays}
        return found

    def left(self) -> Iterator[str]:
        """Yields the names of locks and unfinished files."""
        for pattern in ("*.part", "lock.json*", "*.lock*"):
            yield from (path.name for path in self.workdir.rglob(pattern))


def _lasting(figures: Any) -> Any:
    if not isinstance(figures, dict):
        return [_lasting(value) for value in figures] if isinstance(figures, list) else figures
    return {
        name: _lasting(value)
        for name, value in figures.items()
        if not any(word in name for word in PASSING)
    }


def disturb(trial: Trial, number: int, moment: float, alone: Trial) -> tuple[str, list[str]]:
    """Sends a signal and runs the command again; returns what happened, and which promises were broken."""
    ended, broken = trial.run(number, moment), []
    lines = ended.said.splitlines()
    if ended.status == 75:
        what = "stopped"
        if "run the same command to go on" not in (lines or [""])[-1]:
            broken.append("no line about the stop")
    elif ended.status == 0:
        what = "complete" if ended.met else "over before the signal"
        if trial.results() != alone.results():
            broken.append("status 0 without the results")
    elif ended.status == -number and not lines:
        what = "before it began"
    else:
        what = f"status {ended.status}"
        broken.append(f"{what}: {ended.said[-300:]}")
    broken += [word for word in ("Traceback", "Exception ignored") if word in ended.said]
    if what != "before it began":
        broken += [f"left {name}" for name in trial.left()]
    again = trial.run()
    if again.status != 0:
        return what, [*broken, f"then status {again.status}: {again.said[-300:]}"]
    if trial.results() != alone.results():
        broken.append("other results")
    if trial.mode == "train":
        broken += list(differing(alone.workdir, trial.workdir))
    return what, broken


def main() -> None:
    """Prints a table, writes the figures as JSON if asked to, and fails if a promise was broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--signals", type=int, default=100)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="in turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments, more = parser.parse_known_args()
    rng, each = random.Random(arguments.seed), []
    counts: dict[str, collections.Counter[str]] = {mode: collections.Counter() for mode in MODES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def trial(mode: str, workdir: str) -> Trial:
            found = Trial(mode, folder / workdir, folder / "cache", more)
            if mode not in ("train", "plan"):
                shutil.copytree(folder / "train", found.workdir)
            return found

        alone, seconds = {}, {}
        for mode in dict.fromkeys(["train", *arguments.modes]):  # The others are of its run.
            # The first fills the cache of compiled programs.
            for workdir in (f"first {mode}", mode):
                alone[mode] = trial(mode, workdir)
                ended = alone[mode].run()
                assert ended.status == 0, ended.said
                seconds[mode] = ended.seconds
            print(f"{mode} left alone: {seconds[mode]:.1f} s", flush=True)
        for i in range(arguments.signals):
            mode, number = arguments.modes[i % len(arguments.modes)], rng.choice(NUMBERS)
            moment = rng.uniform(0, seconds[mode])
            what, broken = disturb(trial(mode, f"struck {i}"), number, moment, alone[mode])
            counts[mode][what] += 1
            row = {"mode": mode, "signal": signal.Signals(number).name, "moment": round(moment, 2)}
            each.append({**row, "what": what, "broken": broken})
            print(f"  {i + 1}: {each[-1]}", flush=True)
            shutil.rmtree(folder / f"struck {i}", ignore_errors=True)
    kinds = sorted({what for counter in counts.values() for what in counter})
    report.print_table(
        ["mode", *kinds], [[mode, *(counts[mode][k] for k in kinds)] for mode in counts]
    )
    wrong = [row for row in each if row["broken"]]
    report.write(arguments.out, {"counts": counts, "broken": len(wrong), "each": each})
    if wrong:
        sys.exit(f"{len(wrong)} of {len(each)} signals broke a promise")


if __name__ == "__main__":
    main()
