"""Kills a sampling job with SIGKILL at random moments, restarts it, and compares it with one left alone.

On copies of a trained run: the job left alone; the same job killed while it draws, once more when all batches are
drawn, kept from writing images.npz by a limit on the size of its files, as a full disk would, and killed while it
writes that; and the job at another batch size, killed once. Every finished batch must be kept, the images
be the same bit for bit (at another batch size up to 1 of 255), and nothing half-written be left. Unknown flags, such
as --config.sampler.num_steps=20, go to the command.

  python benchmarks/kill_sampling.py --workdir=runs/digits --out=kill_sampling.json
"""

import argparse
import functools
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import report
from command import Command

SAMPLING = (
    *("sampler.name=dpmpp_2m", "sampler.num_steps=10", "sampler.spacing=logsnr"),
    "sample.formats=npz",
)
HEADER = ("start", "ended by", "finished before", "drawn", "batches drawn again", "half-written")


class Job:
    """A sampling job in its own copy of a run, started again and again.

    Attributes:
      starts: What each start did.
    """

    def __init__(self, run: Path, workdir: Path, cache: Path, flags: list[str]) -> None:
        (workdir / "samples").mkdir(parents=True)
        for name in ("checkpoints", "config.json"):
            copy = shutil.copytree if (run / name).is_dir() else shutil.copy
            copy(run / name, workdir / name)
        self.workdir, self._cache = workdir, cache
        self._flags = ["--mode=sample", f"--workdir={workdir}", *flags]
        self.starts: list[dict[str, Any]] = []

    @property
    def folder(self) -> Path:
        """The job's folder, if it has begun; else one that is not there."""
        return next((self.workdir / "samples").glob("step*"), self.workdir / "none")

    def parts(self) -> dict[str, int]:
        """Returns the names of the finished batches, and when each was written."""
        return {path.name: path.stat().st_mtime_ns for path in self.folder.glob("parts/*.npz")}

    def finished(self) -> int:
        """Returns the number of images in finished batches."""
        return sum(len(np.load(path)["images"]) for path in self.folder.glob("parts/*.npz"))

    def half_written(self) -> list[str]:
        """Returns the names of files that were begun and not finished."""
        return [path.name for path in self.workdir.rglob("*.part")]

    def start(self, name: str, end: Callable[[Command, "Job"], int]) -> None:
        """Starts the command, leaves it to `end`, which returns what is drawn then, and notes what happened."""
        before, kept = self.finished(), self.parts()
        command = Command(self._flags, self._cache, echo=False)
        try:
            now = end(command, self)
        finally:
            command.send(signal.SIGKILL)
        after = self.parts()
        again = sum(after[part] != kept[part] for part in kept.keys() & after.keys())
        row = (name, before, now - before, again, len(self.half_written()))
        names = ("ended_by", "before", "drawn", "again", "half_written")
        self.starts.append(dict(zip(names, row, strict=True)))
        print(f"  start {len(self.starts)}: {self.starts[-1]}", flush=True)


def wait(command: Command, happened: Callable[[], bool]) -> None:
    """Waits for something that the command is to do."""
    while not happened():
        if not command.runs():
            command.finish(-signal.SIGKILL)  # Raises, with the command's last lines.
        time.sleep(0.0005)


def killed_when(happened: Callable[[Job], bool], delay: float, command: Command, job: Job) -> int:
    """Kills the command some seconds after something happened."""
    wait(command, lambda: happened(job))
    time.sleep(delay)
    command.send(signal.SIGKILL)
    command.finish(-signal.SIGKILL)
    return job.finished()


def disk_full(size: int, command: Command, job: Job) -> int:
    """Forbids the command files beyond a size; it must say so in a line and fail."""
    command.limit_files(size)
    command.finish(1)
    said = command.said()
    if not said[-1].startswith("error: ") or any("Traceback" in line for line in said):
        raise RuntimeError("no clear line about the full disk:\n" + "\n".join(said))
    print(f"    {said[-1].replace(str(job.workdir), 'RUN')}")
    return job.finished()


def to_the_end(command: Command, job: Job) -> int:
    """Lets the command finish; checks what it says it has drawn against what was there."""
    before = job.finished()
    command.finish(0)
    result = json.loads((job.workdir / "results" / "sample.json").read_text())
    return before + result["drawn_this_start"]


def images(job: Job) -> np.ndarray:
    """Returns the images of a job that is done."""
    return np.load(job.folder / "images.npz")["images"].astype(int)


def interrupt(job: Job, kills: int, batches: int, seconds: float, rng: random.Random) -> None:
    """Kills a job while it draws: each start after a random number of batches and a random part of another.

    Args:
      job: The job.
      kills: How many times.
      batches: Batches of the whole job.
      seconds: About what a batch takes.
      rng: Decides the moments.
    """
    for _ in range(kills):
        known = len(job.parts())
        target = known + rng.randint(1, max(1, batches // (kills + 1)))
        reached = functools.partial(lambda job, target: len(job.parts()) >= target, target=target)
        end = functools.partial(killed_when, reached, rng.uniform(0, seconds))
        job.start("a kill while it drew", end)


def broken_promises(job: Job, reference: np.ndarray, tolerance: int) -> list[str]:
    """Returns what a finished job does not keep of what is promised."""
    names = {path.name for path in job.folder.iterdir()}
    checks = {
        "images differ": np.abs(images(job) - reference).max() > tolerance,
        "finished batches were drawn again": any(start["again"] for start in job.starts),
        "images were drawn twice": sum(s["drawn"] for s in job.starts) != len(reference),
        f"left {job.half_written()}": bool(job.half_written()),
        f"holds {sorted(names)}": names != {"images.npz", "grid.png", "job.json"},
    }
    return [what for what, broken in checks.items() if broken]


def measure(arguments: argparse.Namespace, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Runs the three jobs; returns the figures."""
    num_images, rng = arguments.num_images, random.Random(arguments.seed)

    def job(name: str, batch_size: int) -> Job:
        print(f"{name}:", flush=True)
        fields = (*SAMPLING, f"sample.num_images={num_images}", f"sample.batch_size={batch_size}")
        flags = [*(f"--config.{field}" for field in fields), *overrides]
        return Job(arguments.workdir, folder / name, folder / "cache", flags)

    def batches(batch_size: int) -> int:
        return -(-num_images // batch_size)

    alone = job("alone", arguments.batch_size)
    alone.start("itself", to_the_end)
    reference = images(alone)
    result = json.loads((alone.workdir / "results" / "sample.json").read_text())
    seconds = result["seconds_this_start"] / batches(arguments.batch_size)

    killed = job("killed", arguments.batch_size)
    interrupt(killed, arguments.kills, batches(arguments.batch_size), seconds, rng)
    complete = functools.partial(killed_when, lambda job: job.finished() == num_images, 0.0)
    killed.start("a kill when all was drawn", complete)
    half = (alone.folder / "images.npz").stat().st_size // 2
    killed.start("a full disk", functools.partial(disk_full, half))
    writing = functools.partial(
        killed_when, lambda job: (job.folder / "images.npz.part").exists(), 0.0
    )
    killed.start("a kill while it wrote the file", writing)
    killed.start("itself", to_the_end)

    other = job("other", arguments.other_batch_size)
    interrupt(other, 1, batches(arguments.other_batch_size), seconds, rng)
    other.start("itself", to_the_end)
    difference = np.abs(images(other) - reference)
    broken = [f"killed: {what}" for what in broken_promises(killed, reference, 0)]
    broken += [f"other: {what}" for what in broken_promises(other, reference, 1)]
    return {
        "starts": {job.workdir.name: job.starts for job in (alone, killed, other)},
        "different_at_other_batch_size": {
            "largest": int(difference.max()),
            "share_of_pixels": float((difference > 0).mean()),
        },
        "broken": broken,
    }


def main() -> None:
    """Prints a table, writes the figures as JSON if asked to, and fails if a promise is broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True, help="a trained run; only read")
    parser.add_argument("--num_images", type=int, default=5000)
    parser.add_argument("--batch_size", type=int, default=250)
    parser.add_argument("--other_batch_size", type=int, default=400)
    parser.add_argument("--kills", type=int, default=3, help="while batches are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments, overrides, Path(folder))
    rows = [
        [f"{name} {i}", *start.values()]
        for name, starts in figures["starts"].items()
        for i, start in enumerate(starts, 1)
    ]
    report.print_table(HEADER, rows)
    different = figures["different_at_other_batch_size"]
    print(
        f"\nat batch size {arguments.other_batch_size}: {different['share_of_pixels']:.2e} of the pixels differ, "
        f"by at most {different['largest']} of 255"
    )
    report.write(arguments.out, {**figures, "overrides": overrides})
    if figures["broken"]:
        sys.exit("; ".join(figures["broken"]))


if __name__ == "__main__":
    main()
