"""Runs configs/cifar10.py on a full-size archive: prepares it, trains, is stopped, and resumes.

Three starts of the command on one workdir: --steps steps from nothing; on toward five steps more,
stopped by SIGTERM after the first of them (exit status 75); and to the end. Checks the exit statuses, where
each start began, that all 50,000 images are there, and that metrics.jsonl has one finite row a step.
Unknown flags, such as --config.train.batch_size=8, go to the command.

  python benchmarks/cifar10_run.py --tarball=cifar-10-python.tar.gz --config.train.batch_size=8 --out=run.json
"""

import argparse
import hashlib
import json
import math
import signal
import tempfile
from pathlib import Path
from typing import Any

import report
from command import Command

MORE = 5
STOPPED = 75
# Every step is logged; the samples at the end are few and coarse: here they only have to be drawn.
SMALL = (
    "--config.train.log_every=1",
    "--config.train.sample_images=4",
    "--config.sampler.num_steps=10",
)


def check(holds: bool, claim: str) -> None:
    """Prints the claim, or ends with it."""
    if not holds:
        raise SystemExit(f"FAILED: {claim}")
    print(f"ok: {claim}", flush=True)


def run(flags: list[str], root: Path, steps: int) -> dict[str, float]:
    """Makes the three starts; returns their seconds."""
    first, total = f"--config.train.num_steps={steps}", f"--config.train.num_steps={steps + MORE}"
    seconds: dict[str, float] = {}

    command = Command([*flags, first], root / "cache")
    line = command.wait_for("cifar10: ")
    check("50000 images 32x32x3" in line.text, "50,000 images of 32x32x3 are prepared")
    seconds["prepared"] = line.seconds
    seconds["first step"] = command.wait_for("first step done").seconds
    seconds[f"{steps} steps, samples drawn"] = command.finish(0)

    command = Command([*flags, total], root / "cache")
    line = command.wait_for("cifar10: ")
    check(f"resuming at step {steps}" in line.text, f"a second start resumes at step {steps}")
    command.wait_for(f"step {steps + 1}/")
    command.send(signal.SIGTERM)
    line = command.wait_for("saved step")
    seconds["resumed, stopped by SIGTERM"] = command.finish(STOPPED)
    stopped = int(line.text.split("saved step ")[1].split(";")[0])
    check(steps < stopped < steps + MORE, f"SIGTERM saves step {stopped}, exit status {STOPPED}")

    command = Command([*flags, total], root / "cache")
    line = command.wait_for("cifar10: ")
    check(f"resuming at step {stopped}" in line.text, f"a third start resumes at step {stopped}")
    seconds["resumed, to the end"] = command.finish(0)
    return seconds


def check_results(workdir: Path, steps: int) -> dict[str, Any]:
    """Checks what the run has left behind; returns its result."""
    result = json.loads((workdir / "results" / "train.json").read_text())
    check(result["step"] == steps, f"results/train.json is of step {steps}")
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    check([row["step"] for row in rows] == list(range(1, steps + 1)), "one metrics row a step")
    check(all(math.isfinite(row["loss"]) for row in rows), "every loss is finite")
    speeds = [row["images_per_sec"] for row in rows if row["images_per_sec"]]
    return {
        "parameters": result["parameters"],
        "first loss": rows[0]["loss"],
        "last loss": rows[-1]["loss"],
        "images/s, median": report.median(speeds),
    }


def main() -> None:
    """Prints a table, and writes the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tarball", type=Path, required=True, help="cifar-10-python.tar.gz")
    parser.add_argument("--config", default="configs/cifar10.py")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments, overrides = parser.parse_known_args()
    with arguments.tarball.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        flags = [
            f"--config={arguments.config}",
            f"--workdir={root / 'run'}",
            f"--config.data.source_dir={arguments.tarball.absolute()}",
            f"--config.data.sha256={sha256}",
            *SMALL,
            *overrides,
        ]
        seconds = run(flags, root, arguments.steps)
        results = check_results(root / "run", arguments.steps + MORE)
    report.print_table(["what", "seconds"], list(seconds.items()))
    print(f"\n{results}")
    report.write(arguments.out, {"flags": overrides, "seconds": seconds, "results": results})


if __name__ == "__main__":
    main()
