"""Kills a training with SIGKILL at random moments, restarts it, and compares it with one left alone.

A third of the kills falls while the command starts, a third while it trains, and a third while it writes a
checkpoint. The run must end with the same losses and, bit for bit, the same parameters, averages,
optimizer state and metrics as the run that was left alone. Unknown flags, such as
--config.model.name=unet, go to the command.

  python benchmarks/kill_and_resume.py --kills=20 --out=kill_and_resume.json
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import report
from etils import epath

ROOT = Path(__file__).resolve().parents[1]
MOMENTS = ("starting", "training", "saving")
SMALL = (
    *("model.name=mlp", "model.channels=64", "model.attention_resolutions=16"),
    *("model.channel_mult=1,2,2,2", "model.num_res_blocks=2", "model.dropout=0"),
    *("process.num_timesteps=50", "train.batch_size=32"),
    *("train.log_every=20", "train.checkpoint_every=20", "train.sample_images=4"),
)


class Training:
    """The command in a process, its standard error in a file."""

    def __init__(self, flags: list[str], cache: Path, log: Path) -> None:
        self._log, self._started = log, time.time()
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "diffusion_jax.main", *flags],
                cwd=ROOT,
                env={**os.environ, "DIFFUSION_JAX_CACHE": str(cache)},
                stderr=file,
            )

    def wait_for_first_step(self) -> None:
        """Waits until training is under way, or over."""
        while self._process.poll() is None and "first step done" not in self._log.read_text():
            time.sleep(0.01)

    def is_saving(self, checkpoints: Path) -> bool:
        """Whether this process, not one before it, has begun a checkpoint and not finished it."""
        with contextlib.suppress(FileNotFoundError):
            unfinished = checkpoints.glob("[0-9]*.orbax-checkpoint-tmp*")
            return any(path.stat().st_mtime >= self._started for path in unfinished)
        return False

    def wait_for_save(self, checkpoints: Path) -> None:
        """Waits until a checkpoint is being written, or training is over."""
        while self._process.poll() is None and not self.is_saving(checkpoints):
            time.sleep(0.0005)

    def kill(self) -> bool:
        """Kills the process; returns whether it was still running."""
        self._process.kill()
        return self.status() == -signal.SIGKILL

    def status(self) -> int:
        """Waits for the end; returns the exit status."""
        return self._process.wait()


def kill_at_random(
    moment: str,
    training: Training,
    checkpoints: Path,
    rng: random.Random,
    startup: float,
    window: float,
) -> dict[str, Any]:
    """Kills a training at a random moment of a kind, and says what it left.

    Args:
      moment: One of MOMENTS.
      training: A training just started.
      checkpoints: Folder of its checkpoints.
      rng: Decides the moment.
      startup: Seconds from start to first step.
      window: Seconds of training within which to kill.
    """
    if moment == "starting":
        time.sleep(rng.uniform(0, startup))
    else:
        training.wait_for_first_step()
        time.sleep(rng.uniform(0, window))
    if moment == "saving":
        training.wait_for_save(checkpoints)
        time.sleep(rng.uniform(0, 0.02))
    killed = training.kill()
    return {"moment": moment, "killed": killed, "half_written": training.is_saving(checkpoints)}


def arrays(workdir: Path) -> dict[str, np.ndarray]:
    """Returns every array of the newest checkpoint by its name."""
    steps = [
        int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()
    ]
    folder = epath.Path(workdir) / "checkpoints" / str(max(steps))
    handler = ocp.PyTreeCheckpointHandler()

    def read(part: str) -> Any:
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(folder / part).tree
        )
        return handler.restore(folder / part, args=ocp.args.PyTreeRestore(restore_args=as_numpy))

    parts = {part: read(part) for part in ("params", "ema/default", "training")}
    leaves = jax.tree_util.tree_leaves_with_path(parts)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def losses(workdir: Path) -> list[tuple[int, float | None]]:
    """Returns step and loss of every row of metrics.jsonl."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row.get("loss")) for row in map(json.loads, lines)]


def differing(one: Path, other: Path) -> Iterator[str]:
    """Yields what differs between two runs."""
    left, right = arrays(one), arrays(other)
    for name in sorted(left.keys() | right.keys()):
        if name not in left or name not in right or left[name].tobytes() != right[name].tobytes():
            yield name
    if losses(one) != losses(other):
        yield "losses"


def measure(arguments: argparse.Namespace, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Runs the reference, then kills and restarts another run till it is done; returns the figures."""
    fields = [f"--config.{field}" for field in (*SMALL, f"train.num_steps={arguments.num_steps}")]
    flags = [f"--config={arguments.config}", *fields, *overrides]
    cache, log = folder / "cache", folder / "stderr"

    def start(name: str) -> Training:
        return Training([*flags, f"--workdir={folder / name}"], cache, log)

    for name in ("warm-up", "reference"):  # The first fills the cache of compiled programs.
        started, training = time.monotonic(), start(name)
        training.wait_for_first_step()
        startup = time.monotonic() - started
        status = training.status()
        assert status == 0, log.read_text()
        seconds = time.monotonic() - started
    print(f"left alone: {seconds:.1f} s, {startup:.1f} s of them to the first step", flush=True)

    rng, kills, checkpoints = random.Random(arguments.seed), [], folder / "killed" / "checkpoints"
    window = (seconds - startup) / arguments.kills
    for i in range(arguments.kills):
        moment = MOMENTS[i % len(MOMENTS)]
        kill = kill_at_random(moment, start("killed"), checkpoints, rng, startup, window)
        steps = sorted(int(p.name) for p in checkpoints.glob("*") if p.name.isdecimal())
        kills.append({**kill, "newest": steps[-1] if steps else 0})
        print(f"  {len(kills)}: {kills[-1]}", flush=True)
    status = start("killed").status()
    assert status == 0, log.read_text()
    different = list(differing(folder / "reference", folder / "killed"))
    damaged = len(list((checkpoints / "damaged").glob("*")))
    count = {name: sum(k["moment"] == name and k["killed"] for k in kills) for name in MOMENTS}
    return {
        "kills": sum(count.values()),
        **count,
        "half_written": sum(kill["half_written"] for kill in kills),
        "damaged": damaged,
        "arrays": len(arrays(folder / "reference")),
        "different": different,
        "each": kills,
    }


def main() -> None:
    """Prints a table, writes the figures as JSON if asked to, and fails if the runs differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--num_steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments, overrides, Path(folder))
    header = [
        "kills",
        *MOMENTS,
        "left half a checkpoint",
        "damaged checkpoints",
        "arrays",
        "different",
    ]
    names = ["kills", *MOMENTS, "half_written", "damaged", "arrays"]
    report.print_table(header, [[*(figures[name] for name in names), len(figures["different"])]])
    report.write(arguments.out, {**figures, "overrides": overrides})
    if figures["different"]:
        sys.exit(f"the runs differ in {', '.join(figures['different'])}")


if __name__ == "__main__":
    main()
