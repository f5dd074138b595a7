"""Measures the U-Net's forward pass and train step against diffusers' UNet2DModel on torch.

Both build the same network (the CIFAR-10 one of Ho et al., or --small: 32 to 64 channels on 28x28x1) in
float32. A train step is noise, loss, gradients, clipping, Adam and the moving average, on both sides. As in
the command, ours has a device a core, while training only if each gets 32 images. torch also runs under
bfloat16 autocast. The peer lives in a process of its own, with the interpreter --peer_python that has torch
and diffusers, and the two take turns; each side's CPU time while the other works is reported. Warm-ups do
not count.

Idle OpenMP threads of torch spin by default, which makes torch many times slower as soon as anything else
runs; here they sleep (OMP_WAIT_POLICY=passive), unless the environment sets OMP_WAIT_POLICY. On a quiet
machine try both, and quote the one that is better for torch. Give both sides the huge pages that our command
takes by itself:

  export GLIBC_TUNABLES=glibc.malloc.hugetlb=1
  python benchmarks/unet_vs_diffusers.py --peer_python=/path/to/venv/bin/python --out=unet.json
"""

import argparse
import dataclasses
import functools
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import report

from diffusion_jax.losses import loss_function
from diffusion_jax.models import Model, UNet, as_functions, count_parameters
from diffusion_jax.parallel import distributed, sharding
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.training.loop import compile_steps
from diffusion_jax.training.optimizer import ema_decay, make_optimizer
from diffusion_jax.training.state import create_state, state_shardings
from diffusion_jax.training.step import make_train_step

# Seconds between two turns, for the other side's threads to fall asleep. A virtual machine may take back the free
# memory of a side that sleeps (the first pass then took twice as long), so each turn begins with an untimed pass.
SETTLE = 0.2


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of network and batch; `groups` of every norm."""

    image: tuple[int, int, int]
    channels: int
    channel_mult: tuple[int, ...]
    attention_resolutions: tuple[int, ...]
    batch_size: int
    groups: int
    num_res_blocks: int = 2

    def model(self) -> Model:
        """Returns our network."""
        module = UNet(
            self.channels,
            self.channel_mult,
            self.num_res_blocks,
            self.attention_resolutions,
            norm_groups=self.groups,
        )
        return as_functions(module, self.image)


CIFAR10 = Size((32, 32, 3), 128, (1, 2, 2, 2), (16,), batch_size=8, groups=32)
SMALL = Size((28, 28, 1), 32, (1, 2, 2), (7,), batch_size=64, groups=8)


class Peer:
    """torch and diffusers, in a process that sleeps between requests."""

    def __init__(self, python: str, size: Size) -> None:
        script = Path(__file__).with_name("diffusers_peer.py")
        self._process = subprocess.Popen(
            [python, str(script), json.dumps(dataclasses.asdict(size))],
            env={"OMP_WAIT_POLICY": "passive", **os.environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.idle_cpu = 0.0
        self.about = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the peer ended with status {self._process.wait()}")
        return json.loads(line)

    def run(self, what: str, autocast: bool, passes: int) -> float:
        """Returns the seconds of one pass."""
        assert self._process.stdin is not None
        time.sleep(SETTLE)
        for count in (1, passes):  # See `SETTLE`.
            request = {"what": what, "autocast": autocast, "passes": count}
            print(json.dumps(request), file=self._process.stdin, flush=True)
            answer = self._answer()
            self.idle_cpu += answer["idle_cpu_seconds"]
        return answer["seconds"]

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def our_forward(size: Size) -> Callable[[], Any]:
    """Returns a function that does one compiled forward pass, as sampling does it, and waits for it."""
    distributed.initialize()
    devices = jax.device_count()
    mesh = sharding.make_mesh(next(n for n in range(devices, 0, -1) if size.batch_size % n == 0))
    model = size.model()
    params = jax.jit(model.init, out_shardings=sharding.replicated(mesh))(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(size.batch_size, *size.image)).astype(np.float32)
    t = np.arange(size.batch_size, dtype=np.float32)
    inputs = jax.device_put((x, t), sharding.batch_sharding(mesh))
    forward = jax.jit(sharding.over_batch(model.apply, mesh))
    return lambda: jax.block_until_ready(forward(params, *inputs))


def our_step(size: Size) -> Callable[[], Any]:
    """Returns a function that does one compiled training step and waits for it."""
    distributed.initialize()
    mesh = sharding.make_mesh(-1, size.batch_size)
    model, optimizer = size.model(), make_optimizer()
    objective = loss_function("simple", DDPM(make_schedule()), "eps", model.apply)
    averages = {"ema": ema_decay(0.9999)}
    step = make_train_step(objective, optimizer, jax.random.key(1), averages=averages, mesh=mesh)
    create = functools.partial(
        create_state, model=model, optimizer=optimizer, averages=averages, objective=objective
    )
    places = state_shardings(mesh, jax.eval_shape(create, jax.random.key(0)))
    compiled = compile_steps(step, 1, mesh, places)[1]
    shape = (size.batch_size, *size.image)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    batch = {"image": images, "label": np.zeros(len(images), np.int32)}
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    state = jax.jit(create, out_shardings=places)(jax.random.key(0))

    def run() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(compiled(state, batch))

    return run


class Ours:
    """Our two compiled functions, timed, with the CPU time used between two turns."""

    def __init__(self, size: Size) -> None:
        self._work = {"forward": our_forward(size), "step": our_step(size)}
        self._slept: float | None = None
        self.idle_cpu = 0.0

    def run(self, what: str, passes: int) -> float:
        """Returns the seconds of one pass."""
        if self._slept is not None:
            self.idle_cpu += time.process_time() - self._slept
        time.sleep(SETTLE)
        self._work[what]()  # See `SETTLE`.
        started = time.perf_counter()
        for _ in range(passes):
            self._work[what]()
        seconds = (time.perf_counter() - started) / passes
        self._slept = time.process_time()
        return seconds


def measure(arguments: argparse.Namespace, size: Size) -> dict[str, Any]:
    """Returns the seconds a pass of every side took, and what the sides are."""
    ours, peer = Ours(size), Peer(arguments.peer_python, size)
    about = {"parameters": count_parameters(jax.eval_shape(size.model().init, jax.random.key(0)))}
    print(f"ours {about['parameters']:,} parameters, jax {jax.__version__}; peer {peer.about}")
    seconds = {}
    for what in ("forward", "step"):
        sides = {
            "ours": functools.partial(ours.run, what),
            "diffusers": functools.partial(peer.run, what, False),
        }
        if not arguments.no_bfloat16:
            sides["diffusers bfloat16"] = functools.partial(peer.run, what, True)
        for side in sides.values():
            side(1)
            side(1)
        print(what, flush=True)
        timed = {name: functools.partial(side, arguments.passes) for name, side in sides.items()}
        seconds[what] = report.alternate(timed, arguments.repeats)
    peer.close()
    return {
        "size": dataclasses.asdict(size),
        "ours": {
            **about,
            "jax": jax.__version__,
            "devices": jax.device_count(),
            "idle_cpu_seconds": ours.idle_cpu,
        },
        "peer": {**peer.about, "idle_cpu_seconds": peer.idle_cpu},
        "seconds": seconds,
    }


def main() -> None:
    """Prints a table, and writes the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer_python", required=True, help="Python with torch and diffusers")
    parser.add_argument("--small", action="store_true", help="32 to 64 channels on 28x28x1 images")
    parser.add_argument("--batch_size", type=int, help="default: 8; with --small 64")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--passes", type=int, default=2, help="passes a measurement")
    parser.add_argument("--no_bfloat16", action="store_true", help="leave autocast out")
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments = parser.parse_args()
    size = SMALL if arguments.small else CIFAR10
    size = dataclasses.replace(size, batch_size=arguments.batch_size or size.batch_size)
    figures = measure(arguments, size)
    rows, ratios = [], {}
    for what, sides in figures["seconds"].items():
        ours = report.median(sides["ours"])
        for name, values in sides.items():
            ratios[f"{what}, {name}"] = report.median(values) / ours
            rows.append([what, name, report.median(values), min(values), max(values)])
            rows[-1].append(f"{ratios[f'{what}, {name}']:.2f}x")
    header = ["what", "side", "median s", "fastest", "slowest", "time against ours"]
    report.print_table(header, rows)
    idle = {name: figures[name]["idle_cpu_seconds"] for name in ("ours", "peer")}
    print(f"\nCPU seconds used while the other side worked: {idle}")
    report.write(arguments.out, {**figures, "time_against_ours": ratios})


if __name__ == "__main__":
    main()
