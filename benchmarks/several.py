"""The command in several processes on this machine, each with its CPU devices; what the layout benchmarks share."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Processes:
    """One run of `python -m diffusion_jax.main` in several processes; their standard errors in files.

    Args:
      flags: The command's.
      number: Number of processes.
      devices: CPU devices of each.
      cache: Folder of prepared data and compiled programs.
      log: Its name with .0, .1, … is where their standard errors go.
    """

    def __init__(
        self, flags: Sequence[str], number: int, devices: int, cache: Path, log: Path
    ) -> None:
        environment = {**os.environ, "DIFFUSION_JAX_CACHE": str(cache), "JAX_PLATFORMS": "cpu"}
        environment["JAX_NUM_CPU_DEVICES"] = str(devices)
        place: list[list[str]] = [[]]
        if number > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            joined = [f"--coordinator={address}", f"--num_processes={number}"]
            place = [[*joined, f"--process_id={i}"] for i in range(number)]
        self.logs = [Path(f"{log}.{i}") for i in range(number)]
        self.processes = []
        for flags_of_one, path in zip(place, self.logs, strict=True):
            with path.open("w") as file:
                command = [sys.executable, "-m", "diffusion_jax.main", *flags, *flags_of_one]
                self.processes.append(
                    subprocess.Popen(
                        command, cwd=ROOT, env=environment, stderr=file, stdout=subprocess.DEVNULL
                    )
                )

    def said(self, text: str) -> bool:
        """Whether one of them has printed this."""
        return any(text in log.read_text() for log in self.logs)

    def running(self) -> bool:
        """Whether one of them still runs."""
        return any(process.poll() is None for process in self.processes)

    def wait(self, timeout: float | None = None) -> list[int]:
        """Waits for all; returns their exit statuses. Those that hang are killed, and an error is raised."""
        try:
            return [process.wait(timeout) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def finish(self) -> None:
        """Waits for all, none of which may fail."""
        statuses = self.wait()
        if any(statuses):
            said = "\n".join(log.read_text()[-2000:] for log in self.logs)
            raise RuntimeError(f"statuses {statuses}:\n{said}")


def losses(workdir: Path) -> dict[int, float]:
    """Returns the loss of each row of metrics.jsonl, by step."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row["loss"] for row in map(json.loads, lines) if "loss" in row}


def largest_difference(one: dict[int, float], other: dict[int, float]) -> float:
    """Returns the largest relative difference of two loss curves, which must have the same steps."""
    if one.keys() != other.keys():
        raise ValueError(f"other steps: {sorted(one.keys() ^ other.keys())[:5]}")
    return max(abs(other[step] / one[step] - 1) for step in one)
