"""Compares the speed of imported networks with the code that they come from: forward pass and train step, float32.

The networks are cases of `networks.py`, with the same weights, images and times on both sides. A step is the gradient
of the mean squared output by all parameters, and Adam, without dropout. The library works in a process of its own and
in turns with us; its idle threads sleep. Ours has a device a core in the forward pass, as in sampling, and one in the
step.

  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 PYTHONPATH=benchmarks python benchmarks/parity/network_times.py \\
      --peer_python=/path/to/venv/bin/python --code=CHECKOUTS [CASE ...]
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import report
from networks import CASES, ours

from diffusion_jax.parallel import join, sharding

DEFAULT = (
    "diffusers_cifar10",
    "improved_cifar10",
    "score_sde_ddpmpp",
    "score_sde_ncsnpp",
    "edm_ddpmpp",
    "edm_ncsnpp",
    "guided_64",
)
SETTLE = 0.2  # Seconds between two turns, for the other side's threads to fall asleep.


class Peer:
    """The library, in a process that sleeps between requests."""

    def __init__(self, python: str, code: Path | None, case: dict[str, Any], folder: Path) -> None:
        script = Path(__file__).with_name(f"networks_{case['library']}_peer.py")
        asked = json.dumps({**case, "code": str(code), "serve": True})
        self._process = subprocess.Popen(
            [python, str(script), asked, str(folder)],
            env={"OMP_WAIT_POLICY": "passive", **os.environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(('"', *"0123456789")):  # Libraries print, too.
                return json.loads(line)
        raise SystemExit(f"the peer ended with status {self._process.wait()}")

    def run(self, what: str) -> float:
        """Returns the seconds of one forward pass or step, after one that does not count."""
        assert self._process.stdin is not None
        time.sleep(SETTLE)
        for _ in range(2):
            print(what, file=self._process.stdin, flush=True)
            seconds = self._answer()
        return seconds

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def our_side(work: Callable[[], Any]) -> Callable[[], float]:
    """Returns a function that times one call, after one that does not count."""

    def run() -> float:
        time.sleep(SETTLE)
        jax.block_until_ready(work())
        started = time.perf_counter()
        jax.block_until_ready(work())
        return time.perf_counter() - started

    return run


def our_work(case: dict[str, Any], folder: Path) -> dict[str, Callable[[], Any]]:
    """Returns our forward pass and our step, of the checkpoint that a peer wrote."""
    with np.load(folder / "io.npz") as stored:
        io = dict(stored)
    model, params = ours(case, folder, io["output"].shape[-1])
    inputs = (io["x"], io["t"]) + ((io["labels"],) if "labels" in io else ())
    devices = jax.device_count()
    batch = len(io["x"])
    mesh = sharding.make_mesh(next(n for n in range(devices, 0, -1) if batch % n == 0))
    replicated = jax.device_put(params, sharding.replicated(mesh))
    divided = jax.device_put(inputs, sharding.batch_sharding(mesh))
    forward = jax.jit(sharding.over_batch(model.apply, mesh))
    optimizer = optax.adam(1e-6)

    def loss(params: Any) -> jax.Array:
        return jnp.square(model.apply(params, *inputs)).mean()

    def update(params: Any, moments: Any) -> tuple[Any, Any]:
        updates, moments = optimizer.update(jax.grad(loss)(params), moments)
        return optax.apply_updates(params, updates), moments

    update = jax.jit(update, donate_argnums=(0, 1))
    state = None

    def step() -> Any:
        nonlocal state
        if state is None:
            state = jax.tree.map(jnp.array, params), jax.jit(optimizer.init)(params)
        state = update(*state)
        return state

    return {"forward": lambda: forward(replicated, *divided), "step": step}


def measure(arguments: argparse.Namespace, case: dict[str, Any]) -> dict[str, Any]:
    """Returns the seconds of each measurement of each side."""
    with tempfile.TemporaryDirectory() as scratch:
        peer = Peer(arguments.peer_python, arguments.code, case, Path(scratch))
        seconds = {}
        for what, work in our_work(case, Path(scratch)).items():
            if what == "step" and arguments.forward:
                continue
            sides = {"theirs": lambda what=what: peer.run(what), "ours": our_side(work)}
            for side in sides.values():
                side()
            seconds[what] = report.alternate(sides, arguments.repeats)
        peer.close()
    return seconds


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", help=f"of networks.py; by default {' '.join(DEFAULT)}")
    parser.add_argument("--peer_python", required=True, help="Python with the peers")
    parser.add_argument("--code", type=Path, help="folder with checkouts of the peers' code")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--forward", action="store_true", help="leave the step out")
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments = parser.parse_args()
    join.initialize()
    figures, rows = {}, []
    for name in arguments.cases or DEFAULT:
        print(name, flush=True)
        figures[name] = measure(arguments, CASES[name] | {"batch": arguments.batch_size})
        for what, sides in figures[name].items():
            theirs, own = report.median(sides["theirs"]), report.median(sides["ours"])
            rows.append([name, what, theirs, own, f"{theirs / own:.2f}"])
            print(*rows[-1], flush=True)
        report.write(arguments.out, figures)
    report.print_table(["network", "what", "theirs, s", "ours, s", "ratio"], rows)


if __name__ == "__main__":
    main()
