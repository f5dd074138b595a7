"""Compares our variance schedules with those of diffusers' DDPMScheduler, whose alpha_bar is a product in float32.

Reported is the largest difference of sqrt(alpha_bar), which scales the image; the exit status is 1 if it is above 1e-5.
diffusers' `sigmoid` is another schedule than ours (its betas are logistic; ours are of Jabri et al., 2022),
and its `laplace` is missing here.

diffusers lives in an environment of its own, with the interpreter --peer_python. --write_fixture writes every 37th
value and the last of its alpha_bar to the file that the tests compare with.

  PYTHONPATH=benchmarks python benchmarks/parity/schedules.py --peer_python=/path/to/venv/bin/python
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import report

from diffusion_jax.processes.ddpm import discrete_chain

FIXTURE = Path(__file__).parents[2] / "tests/processes/fixtures/diffusers_schedules.npz"
TOLERANCE = 1e-5
EVERY = 37
NAMES = {"linear": "linear", "quad": "scaled_linear", "cosine": "squaredcos_cap_v2"}
BETAS = {"linear": (1e-4, 0.02), "quad": (0.00085, 0.012)}


def cases() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Returns what our chain and diffusers' scheduler are made with, by name."""
    found = {}
    for name, theirs in NAMES.items():
        betas = dict(zip(("beta_start", "beta_end"), BETAS.get(name, ()), strict=False))
        for zero_snr in (False, True):
            found[name + (", zero_snr" if zero_snr else "")] = (
                {"schedule": name, "zero_snr": zero_snr, **betas},
                {"beta_schedule": theirs, "rescale_betas_zero_snr": zero_snr, **betas},
            )
    return found


def theirs(python: str) -> dict[str, np.ndarray]:
    """Returns alpha_bar of diffusers' schedulers by name, and the version, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        script, output = str(Path(__file__).with_name("schedules_peer.py")), Path(folder, "out.npz")
        given = json.dumps({name: options for name, (_, options) in cases().items()})
        subprocess.run([python, script, given, str(output)], check=True)
        return dict(np.load(output))


def write_fixture(found: dict[str, np.ndarray]) -> None:
    """Writes what the tests compare with: alpha_bar at some steps, and as JSON how each chain is made."""
    steps = np.append(np.arange(0, 999, EVERY), 999)
    chains = {name: options for name, (options, _) in cases().items()}
    about = json.dumps({"versions": str(found["versions"]), "chains": chains})
    FIXTURE.parent.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {name: found[name][steps] for name in chains}
    np.savez_compressed(FIXTURE, about=np.array(about), steps=steps, **arrays)


def main() -> int:
    """Prints a table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer_python", required=True, help="Python with torch and diffusers")
    parser.add_argument("--write_fixture", action="store_true", help=f"write {FIXTURE.name}")
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments = parser.parse_args()
    found = theirs(arguments.peer_python)
    if arguments.write_fixture:
        write_fixture(found)
    different = {}
    for name, (options, _) in cases().items():
        signal = np.exp(discrete_chain(**options).schedule.log_alpha_bar / 2)
        different[name] = float(np.abs(signal - np.sqrt(found[name])).max())
    report.print_table(
        ["schedule", "difference of sqrt(alpha_bar)"],
        [[name, f"{value:.1e}"] for name, value in different.items()],
    )
    report.write(arguments.out, {"versions": str(found["versions"]), "differences": different})
    return int(max(different.values()) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
