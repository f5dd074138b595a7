"""What the benchmark scripts share: the machine, medians, a markdown table, a JSON file."""

import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Returns what the figures depend on, the machine's load at this moment included."""
    return {
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "load": os.getloadavg(),
    }


def alternate(sides: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Measures each side `repeats` times, one after the other, the order reversed every other time.

    Args:
      sides: Name -> function that does the work once and returns its seconds.
      repeats: Number of measurements of each side.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name in list(sides)[:: 1 if repeat % 2 == 0 else -1]:
            seconds[name].append(sides[name]())
            print(f"  {repeat + 1}/{repeats} {name}: {seconds[name][-1]:.3f} s", flush=True)
    return seconds


def median(values: Sequence[float]) -> float:
    """Returns the median."""
    return statistics.median(values)


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a markdown table; floats with three decimals."""
    print("\n| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        cells = [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row]
        print("| " + " | ".join(cells) + " |")


def write(out: Path | None, figures: dict[str, Any]) -> None:
    """Writes the figures and the machine as JSON, if there is a file to write to."""
    if out is not None:
        out.write_text(json.dumps({"machine": machine(), **figures}, indent=2) + "\n")
