"""Compares the images of our samplers with those of diffusers' schedulers, from the same x_T, noise and eps.

Data are a mixture of normal distributions in the plane whose best eps is known in closed form; each side computes it by
a formula of its own (`mixture_data.py` of the tests, `parity/schedulers.py`). Linear schedule, T = 1000, both sides in
float32, at the times that the scheduler can visit. Reported is the largest difference of the final images; the exit
status is 1 if it is above 1e-4 where both sides follow the same conventions. A second table has the errors of dpmpp_3m
and of diffusers' rule against the exact solution of the ODE.

diffusers lives in an environment of its own, with the interpreter --peer_python. --write_fixture writes its images of
10 steps to the file that the tests compare with.

  PYTHONPATH=benchmarks:tests python benchmarks/parity/samplers.py --peer_python=/path/to/venv/bin/python
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mixture_data
import numpy as np
import report
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.keys import image_normal
from diffusion_jax.models.denoiser import Denoise
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import Grid, take
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.samplers import (
    SAMPLERS,
    Sampler,
    State,
    dpmpp_3m,
    first_noise,
    image_keys,
    sample_loop,
)
from diffusion_jax.samplers.loop import step_keys

FIXTURE = Path(__file__).parents[2] / "tests/samplers/fixtures/diffusers.npz"
TOLERANCE = 1e-4
STEPS = (10, 20, 50)
OF_FIXTURE = 10
PROCESS = DDPM(make_schedule("linear", 1000))
SHAPE = (3, 3, 2)
SEED, IMAGES = 0, 4
DPM, UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"


def uniform(n: int) -> list[int]:
    """Returns `n` times from 999 to 0, both included."""
    return np.linspace(999, 0, n).round().astype(int).tolist()


def leading(n: int) -> list[int]:
    """Returns 1000 - 1000 / n, ..., 0: the times of a scheduler that goes 1000 / n back in each step."""
    return [1000 // n * i for i in range(n)][::-1]


def before_uniform(n: int) -> list[int]:
    """Returns the first `n` of n + 1 times from 999 to 0."""
    return np.linspace(0, 999, n + 1).round().astype(int)[:0:-1].tolist()


class Case(NamedTuple):
    """One of our samplers and the scheduler that it is compared with.

    Attributes:
      sampler: A key of `SAMPLERS`.
      options: Its options.
      scheduler: Name of diffusers' class.
      config: What its constructor is given besides the schedule.
      step: What its `step` is given.
      times: Number of steps -> times from noise to data.
      convention: In what the two differ; "" if in nothing.
      matched: grid -> Sampler with the scheduler's convention, in place of ours.
    """

    sampler: str
    options: dict[str, Any]
    scheduler: str
    config: dict[str, Any]
    step: dict[str, Any] = {}
    times: Callable[[int], list[int]] = uniform
    convention: str = ""
    matched: Callable[[Grid], Sampler] | None = None

    @property
    def name(self) -> str:
        """Name of the sampler with its options."""
        options = "".join(f" {key}={value}" for key, value in self.options.items())
        return self.sampler + options + (f" ({self.convention})" if self.convention else "")

    def make(self, num_steps: int) -> Sampler:
        """Returns our side."""
        grid = make_grid(PROCESS, None, self.times(num_steps))
        if self.matched:
            return self.matched(grid)
        return mixture_data.make_sampler(self.sampler, PROCESS, grid, self.options)


def third_of_diffusers(grid: Grid) -> Sampler:
    """Returns the multistep rule of order 3 as diffusers has it, in DPM-Solver's notation.

    Of x_0 along a step, x_0 + D1 (u / h) + D2 (u / h)^2, it integrates D2 / 2; and with 15 steps or more, it keeps
    order 3 in the step before the last.
    """
    n, log_std = grid.num_steps, np.log(grid.std[:-1])
    h = np.append(np.diff(grid.log_signal[:-1] - log_std), 1.0)
    r0, r1 = (np.append(np.ones(back), h)[:n] / h for back in (1, 2))
    order = np.minimum(np.arange(n) + 1, 3)
    order[-1] = 1
    order[-2] = 3 if n >= 15 else 2
    flat = -np.expm1(-h)
    linear = 1 - flat / h
    curved = np.where(order == 3, 0.5 - linear / h, 0.0)  # int exp(u - h) (u / h)^2 du / 2
    linear = np.where(order == 3, linear, np.where(order == 2, flat / 2, 0.0))
    first = linear * (1 + np.where(order == 3, r0 / (r0 + r1), 0.0)) + curved / (r0 + r1)
    second = np.where(order == 3, linear * r0 / (r0 + r1) + curved / (r0 + r1), 0.0)
    flat[-1] = 1.0  # The step to the data.
    signal = np.exp(grid.log_signal[1:])
    coefficients = [
        grid.std[1:] / grid.std[:-1],
        signal * (flat + first / r0),
        -signal * (first / r0 + second / r1),
        signal * second / r1,
    ]

    def init(x: Float[Array, " b *dims"]) -> State:
        return State(x, x, memory=(jnp.zeros_like(x),) * 2)

    def step(denoise: Denoise, state: State, i: Int[Array, ""], keys: Key[Array, " b"]) -> State:
        del keys
        predictions = (denoise(state.x, grid.at(i)).x0, *state.memory)
        terms = zip(coefficients, (state.x, *predictions), strict=True)
        x = sum(take(coefficient, i) * term for coefficient, term in terms)
        return State(jnp.asarray(x), predictions[0], predictions[:2])

    return Sampler(grid, step, init)


NO_CLIP = {"clip_sample": False}
THIRD = {"solver_order": 3}
CASES = (
    *(
        Case("ancestral", {"variance": v}, "DDPMScheduler", {"variance_type": v, **NO_CLIP})
        for v in ("fixed_small", "fixed_large")
    ),
    *(
        Case("ddim", {"eta": eta}, "DDIMScheduler", NO_CLIP, {"eta": eta}, leading)
        for eta in (0.0, 0.5, 1.0)
    ),
    Case("dpmpp_2m", {}, DPM, {"solver_order": 2}),
    Case("dpmpp_2m_sde", {}, DPM, {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}),
    Case(
        "dpmpp_3m",
        {},
        DPM,
        THIRD,
        convention="half of the curvature, as diffusers",
        matched=third_of_diffusers,
    ),
    Case("dpmpp_3m", {}, DPM, THIRD, convention="the whole curvature"),
    *(
        Case("unipc", {"order": p}, UNIPC, {"solver_order": p}, times=before_uniform)
        for p in (2, 3)
    ),
    Case("heun", {}, "HeunDiscreteScheduler", {}),
    Case("pndm", {}, "PNDMScheduler", {"set_alpha_to_one": True}, times=leading),
)
CASES = [case for case in CASES if case.sampler in SAMPLERS]


def keys() -> Key[Array, " b"]:
    """Returns the images' keys, of which x_T and each step's noise are made."""
    return image_keys(SEED, jnp.arange(IMAGES))


def ours(case: Case, num_steps: int) -> np.ndarray:
    """Returns our images."""
    sampler = case.make(num_steps)
    run = jax.jit(lambda keys: sample_loop(mixture_data.optimal, sampler, keys, SHAPE).images)
    return np.asarray(run(keys()))


def theirs(python: str, runs: dict[str, tuple[Case, int]]) -> dict[str, np.ndarray]:
    """Returns the images of diffusers' schedulers by the run's name, and the versions, from a process of its own."""
    times = sorted({time for case, n in runs.values() for time in case.times(n)})
    noise = {
        f"noise_{t}": np.asarray(image_normal(step_keys(keys(), jnp.float32(t)), SHAPE))
        for t in times
    }
    arrays: dict[str, Any] = {
        "x_T": np.asarray(first_noise(keys(), SHAPE)),
        "weights": mixture_data.WEIGHTS,
        "means": mixture_data.MEANS,
        "stds": mixture_data.STDS,
        **noise,
    }
    asked = [
        {
            "name": name,
            "scheduler": case.scheduler,
            "config": case.config,
            "step": case.step,
            "times": case.times(n),
        }
        for name, (case, n) in runs.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        given, output = Path(folder, "given.npz"), Path(folder, "output.npz")
        np.savez(given, **arrays)
        script = str(Path(__file__).with_name("schedulers.py"))
        subprocess.run([python, script, str(given), json.dumps(asked), str(output)], check=True)
        return dict(np.load(output))


def write_fixture(images: dict[str, np.ndarray]) -> None:
    """Writes what the tests compare with: images, and as JSON which run made each of them, and the versions."""
    chosen = [case for case in CASES if not case.convention]
    runs = {case.name: [case.sampler, case.options, case.times(OF_FIXTURE)] for case in chosen}
    about = {"versions": str(images["versions"]), "seed": SEED, "runs": runs}
    arrays: dict[str, Any] = {case.name: images[f"{case.name}, {OF_FIXTURE}"] for case in chosen}
    FIXTURE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FIXTURE, about=np.array(json.dumps(about)), **arrays)


def curvature_errors(spacing: str, num_steps: int) -> list[float]:
    """Returns the errors of our rule of order 3 and of diffusers'.

    Root mean square of x at the last point before the data, against the exact solution of the ODE.
    """
    grid, many = make_grid(PROCESS, num_steps, spacing), image_keys(SEED, jnp.arange(64))
    stop = num_steps - 1
    exact = mixture_data.flow(grid, np.asarray(first_noise(many, SHAPE)), 0, stop, num_steps=500)

    def error(sampler: Sampler) -> float:
        x = sample_loop(mixture_data.optimal, sampler, many, SHAPE, stop=stop).images
        return float(np.sqrt(np.square(x - exact).mean()))

    return [error(rule(grid)) for rule in (dpmpp_3m, third_of_diffusers)]


def main() -> int:
    """Prints a table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer_python", required=True, help="Python with torch and diffusers")
    parser.add_argument("--write_fixture", action="store_true", help=f"write {FIXTURE.name}")
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments = parser.parse_args()
    runs = {f"{case.name}, {n}": (case, n) for case in CASES for n in STEPS}
    images = theirs(arguments.peer_python, runs)
    if arguments.write_fixture:
        write_fixture(images)
    different = {name: float(np.abs(ours(*run) - images[name]).max()) for name, run in runs.items()}
    rows = [
        [case.name, case.scheduler, *(f"{different[f'{case.name}, {n}']:.1e}" for n in STEPS)]
        for case in CASES
    ]
    report.print_table(["ours", "diffusers'", *(f"{n} steps" for n in STEPS)], rows)
    curvature = {
        f"{spacing}, {n}": curvature_errors(spacing, n)
        for spacing in ("logsnr", "uniform")
        for n in (*STEPS, 100)
    }
    report.print_table(
        ["dpmpp_3m: error of x at t = 0, by spacing and steps", "ours", "diffusers' rule"],
        [[name, *(f"{error:.1e}" for error in errors)] for name, errors in curvature.items()],
    )
    figures = {"differences": different, "curvature": curvature}
    report.write(arguments.out, {"versions": str(images["versions"]), **figures})
    same = [
        different[name] for name, (case, _) in runs.items() if case.matched or not case.convention
    ]
    return int(max(same) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
