"""Measures the U-Net's forward pass and train step against diffusers' UNet2DModel on torch.

Both build the same network (the CIFAR-10 one of Ho et al., or --small: 32 to 64 channels on 28x28x1) in
float32. A train step is noise, loss, gradients, clipping, Adam and the moving average, on both sides. As in
the command, ours has a device a core, while training only if each gets 32 images. torch also runs under
bfloat16 autocast. The peer lives in a process of its own, with the interpreter --peer_python that has torch
and diffusers, and the two take turns; each side's CPU time while the other works is reported. Warm-ups do
not count.

On a GPU both sides use it, ours computes in bfloat16 as well (model.dtype), and the passes of a measurement
are queued and waited for once. float32 there means what JAX and XLA make of it by default: products of TF32
numbers, 10 bits of fraction, summed in float32; torch is allowed the same. With --full_float32 both multiply
float32 numbers. --compile gives torch's network to torch.compile, which takes minutes. Leave the peer memory:

  export XLA_PYTHON_CLIENT_MEM_FRACTION=0.4
  python benchmarks/unet_vs_diffusers.py --peer_python=python3 --batch_size=128 --passes=20 --out=unet.json

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
import jax.numpy as jnp
import numpy as np
import report

from diffusion_jax.losses import loss_function
from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.models.networks import Model, UNet, as_functions, count_parameters
from diffusion_jax.parallel import join, sharding
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.training.loop import compile_steps
from diffusion_jax.training.optimizer import ema_decay, make_optimizer
from diffusion_jax.training.state import create_state, state_shardings
from diffusion_jax.training.step import make_train_step

# Seconds between two turns, for the other side's threads to fall asleep. A virtual machine may take back the free
# memory of a side that sleeps (the first pass then took twice as long), so each turn begins with an untimed pass.
SETTLE = 0.2
OURS_BFLOAT16 = "ours bfloat16"


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

    def model(self, dtype: Any = jnp.float32) -> Model:
        """Returns our network, computing in `dtype`."""
        module = UNet(
            self.channels,
            self.channel_mult,
            self.num_res_blocks,
            self.attention_resolutions,
            norm_groups=self.groups,
            dtype=dtype,
        )
        return as_functions(module, self.image)


CIFAR10 = Size((32, 32, 3), 128, (1, 2, 2, 2), (16,), batch_size=8, groups=32)
SMALL = Size((28, 28, 1), 32, (1, 2, 2), (7,), batch_size=64, groups=8)


class Peer:
    """torch and diffusers, in a process that sleeps between requests."""

    def __init__(self, python: str, size: Size, *, tf32: bool, compile: bool) -> None:
        script = Path(__file__).with_name("diffusers_peer.py")
        settings = {"tf32": tf32, "compile": compile}
        self._process = subprocess.Popen(
            [python, str(script), json.dumps(dataclasses.asdict(size)), json.dumps(settings)],
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


def our_forward(size: Size, dtype: Any = jnp.float32) -> Callable[[], Any]:
    """Returns a function that starts one compiled forward pass, as sampling does it."""
    join.initialize()
    devices = jax.device_count()
    mesh = sharding.make_mesh(next(n for n in range(devices, 0, -1) if size.batch_size % n == 0))
    model = size.model(dtype)
    params = jax.jit(model.init, out_shardings=sharding.replicated(mesh))(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(size.batch_size, *size.image)).astype(np.float32)
    t = np.arange(size.batch_size, dtype=np.float32)
    inputs = jax.device_put((x, t), sharding.batch_sharding(mesh))
    forward = jax.jit(sharding.over_batch(model.apply, mesh))
    return lambda: forward(params, *inputs)


def our_step(size: Size, dtype: Any = jnp.float32) -> Callable[[], Any]:
    """Returns a function that starts one compiled training step."""
    join.initialize()
    mesh = sharding.make_mesh(batch_size=size.batch_size)
    model, optimizer = size.model(dtype), make_optimizer()
    objective = loss_function("simple", DiffusionModel(DDPM(make_schedule()), "eps", model.apply))
    averages = {"ema": ema_decay(0.9999)}
    step = make_train_step(objective, optimizer, jax.random.key(1), averages=averages, mesh=mesh)
    create = functools.partial(
        create_state, network=model, optimizer=optimizer, averages=averages, objective=objective
    )
    places = state_shardings(mesh, jax.eval_shape(create, jax.random.key(0)))
    compiled = compile_steps(step, 1, mesh, places)[1]
    shape = (size.batch_size, *size.image)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    batch = {"image": images, "label": np.zeros(len(images), np.int32)}
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    state = jax.jit(create, out_shardings=places)(jax.random.key(0))

    def run() -> Any:
        nonlocal state
        state, metrics = compiled(state, batch)
        return state, metrics

    return run


class Ours:
    """Our two compiled functions, timed, with the CPU time used between two turns."""

    def __init__(self, size: Size) -> None:
        join.initialize()
        makers = {"forward": our_forward, "step": our_step}
        self._make = {
            (what, bfloat16): functools.partial(
                make, size, jnp.bfloat16 if bfloat16 else jnp.float32
            )
            for what, make in makers.items()
            for bfloat16 in (False, True)
        }
        self._work: dict[tuple[str, bool], Callable[[], Any]] = {}
        self._slept: float | None = None
        self.idle_cpu = 0.0

    def run(self, what: str, bfloat16: bool, passes: int) -> float:
        """Returns the seconds of one pass."""
        if self._slept is not None:
            self.idle_cpu += time.process_time() - self._slept
        if (what, bfloat16) not in self._work:
            self._work[what, bfloat16] = self._make[what, bfloat16]()
        work, queued = self._work[what, bfloat16], jax.default_backend() != "cpu"
        time.sleep(SETTLE)
        done = jax.block_until_ready(work())  # See `SETTLE`.
        started = time.perf_counter()
        for _ in range(passes):
            done = work()
            if not queued:
                jax.block_until_ready(done)
        jax.block_until_ready(done)
        seconds = (time.perf_counter() - started) / passes
        self._slept = time.process_time()
        return seconds


def make_sides(
    arguments: argparse.Namespace, ours: Ours, peer: Peer, what: str
) -> dict[str, Callable[[int], float]]:
    """Returns name -> function from a number of passes to the seconds of one."""
    sides = {
        "ours": functools.partial(ours.run, what, False),
        "diffusers": functools.partial(peer.run, what, False),
    }
    if arguments.no_bfloat16:
        return sides
    if jax.default_backend() != "cpu":
        sides[OURS_BFLOAT16] = functools.partial(ours.run, what, True)
    return {**sides, "diffusers bfloat16": functools.partial(peer.run, what, True)}


def measure(arguments: argparse.Namespace, size: Size) -> dict[str, Any]:
    """Returns the seconds a pass of every side took, and what the sides are."""
    full = arguments.full_float32
    if full:
        jax.config.update("jax_default_matmul_precision", "highest")
    ours = Ours(size)
    peer = Peer(arguments.peer_python, size, tf32=not full, compile=arguments.compile)
    about = {
        "parameters": count_parameters(jax.eval_shape(size.model().init, jax.random.key(0))),
        "jax": jax.__version__,
        "matmul_precision": "highest" if full else "default",
    }
    seconds = {}
    for what in ("forward", "step"):
        sides = make_sides(arguments, ours, peer, what)
        for side in sides.values():
            side(1)
            side(1)
        print(what, flush=True)
        timed = {name: functools.partial(side, arguments.passes) for name, side in sides.items()}
        seconds[what] = report.alternate(timed, arguments.repeats)
    peer.close()
    devices = {"devices": jax.device_count(), "device": jax.devices()[0].device_kind}
    about |= {**devices, "idle_cpu_seconds": ours.idle_cpu}
    print(f"ours {about}\npeer {peer.about}")
    return {
        "size": dataclasses.asdict(size),
        "ours": about,
        "peer": {**peer.about, "idle_cpu_seconds": peer.idle_cpu},
        "seconds": seconds,
    }


def summary(figures: dict[str, Any]) -> tuple[list[list[Any]], dict[str, float]]:
    """Returns the rows of the table, and the time of each side against ours of its precision."""
    rows, ratios = [], {}
    for what, sides in figures["seconds"].items():
        for name, values in sides.items():
            pair = OURS_BFLOAT16 if "bfloat16" in name and OURS_BFLOAT16 in sides else "ours"
            median = report.median(values)
            ratios[f"{what}, {name}"] = ratio = median / report.median(sides[pair])
            rows.append([what, name, *(f"{s:.5f}" for s in (median, min(values), max(values)))])
            rows[-1] += [f"{figures['size']['batch_size'] / median:,.1f}", f"{ratio:.2f}x"]
    return rows, ratios


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
    parser.add_argument("--no_bfloat16", action="store_true", help="leave bfloat16 out")
    parser.add_argument("--full_float32", action="store_true", help="on a GPU: no TF32, both sides")
    parser.add_argument("--compile", action="store_true", help="torch.compile for diffusers")
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments = parser.parse_args()
    size = SMALL if arguments.small else CIFAR10
    size = dataclasses.replace(size, batch_size=arguments.batch_size or size.batch_size)
    figures = measure(arguments, size)
    rows, ratios = summary(figures)
    header = ["what", "side", "median s", "fastest", "slowest", "images/s", "time against ours"]
    report.print_table(header, rows)
    idle = {name: figures[name]["idle_cpu_seconds"] for name in ("ours", "peer")}
    print(f"\nCPU seconds used while the other side worked: {idle}")
    report.write(arguments.out, {**figures, "time_against_ours": ratios})


if __name__ == "__main__":
    main()
