"""Strikes a run of two processes with faults drawn at random, and compares it with one left alone.

A fault is SIGKILL of either process, SIGTERM to either, or SIGKILL of either while a checkpoint is written. After each,
both processes must be gone within a minute; then they are started again, as a launcher does. The run must end with the
same losses, bit for bit, and lose no checkpoint that was there. Unknown flags go to the command.

  python benchmarks/faults.py --faults=12 --out=faults.json
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import report
from several import Processes, losses

KINDS = ("SIGKILL", "SIGTERM", "SIGKILL while saving")
SMALL = (
    *("model.name=mlp", "model.channels=64", "model.attention_resolutions=16"),
    *("model.channel_mult=1,2,2,2", "model.num_res_blocks=2", "model.dropout=0"),
    *("process.num_timesteps=50", "train.batch_size=32"),
    *("train.log_every=20", "train.checkpoint_every=20", "train.sample_images=4"),
    *("sampler.num_steps=5", "mesh.data=-1", "train.keep_last=1000"),
)
PATIENCE = 120


def checkpoints(workdir: Path) -> set[int]:
    """Returns the steps that have a sealed checkpoint."""
    return {int(path.parent.name) for path in workdir.glob("checkpoints/[0-9]*/manifest.json")}


def unfinished(workdir: Path, since: float) -> bool:
    """Whether a checkpoint is being written: a folder begun since, without its manifest."""
    for path in (workdir / "checkpoints").glob("*"):
        try:
            if not (path / "manifest.json").exists() and path.stat().st_mtime >= since:
                return path.name != "damaged"
        except FileNotFoundError:
            continue
    return False


def strike(run: Processes, workdir: Path, rng: random.Random, window: float) -> dict[str, Any]:
    """Does one fault to a run just started; returns what, and how long it took all to be gone."""
    kind, victim, started = rng.choice(KINDS), rng.randrange(2), time.time()
    while run.running() and not run.said("first step done"):
        time.sleep(0.02)
    time.sleep(rng.uniform(0, window))
    if "saving" in kind:
        while run.running() and not unfinished(workdir, started):
            time.sleep(0.0005)
    there = checkpoints(workdir)
    number = signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL
    run.processes[victim].send_signal(number)
    struck = time.monotonic()
    statuses = run.wait(PATIENCE)
    seconds = time.monotonic() - struck
    survivor = run.logs[1 - victim].read_text()
    named = f"process {victim} (" in survivor
    return {
        "kind": kind,
        "victim": victim,
        "statuses": statuses,
        "seconds": seconds,
        "named": named,
        "said": "" if named or kind == "SIGTERM" else survivor[-500:],
        "lost": sorted(there - checkpoints(workdir)),
    }


def main() -> None:
    """Prints a table, writes the figures as JSON if asked to, and fails if a promise was broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--faults", type=int, default=12)
    parser.add_argument("--num_steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments, overrides = parser.parse_known_args()
    fields = [f"--config.{field}" for field in (*SMALL, f"train.num_steps={arguments.num_steps}")]
    flags = [f"--config={arguments.config}", *fields, *overrides]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def start(workdir: Path) -> Processes:
            return Processes(
                [*flags, f"--workdir={workdir}"], 2, 1, folder / "cache", folder / "stderr"
            )

        started = time.monotonic()
        reference = start(folder / "reference")
        reference.finish()
        seconds = time.monotonic() - started
        print(f"left alone: {seconds:.1f} s", flush=True)
        rng, struck, faults = random.Random(arguments.seed), folder / "struck", []
        window = seconds / arguments.faults / 3
        while len(faults) < arguments.faults:
            fault = strike(start(struck), struck, rng, window)
            faults.append(fault)
            print(f"  {len(faults)}: {fault}", flush=True)
        start(struck).finish()
        equal = losses(folder / "reference") == losses(struck)
        damaged = len(list((struck / "checkpoints").glob("damaged/*")))

    killed = [fault for fault in faults if fault["kind"] != "SIGTERM"]
    figures = {
        "faults": len(faults),
        **{kind: sum(fault["kind"] == kind for fault in faults) for kind in KINDS},
        "longest until all were gone (s)": max(fault["seconds"] for fault in faults),
        "named": sum(fault["named"] for fault in killed),
        "lost checkpoints": sum(len(fault["lost"]) for fault in faults),
        "damaged": damaged,
        "losses as left alone": "yes" if equal else "no",
    }
    report.print_table(list(figures), [list(figures.values())])
    report.write(arguments.out, {**figures, "each": faults, "overrides": overrides})
    slow = any(fault["seconds"] > 60 for fault in faults)
    if not equal or slow or figures["lost checkpoints"] or figures["named"] < len(killed):
        sys.exit("a promise was broken")


if __name__ == "__main__":
    main()
