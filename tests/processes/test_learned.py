"""Processes that hold arrays: arguments of compiled programs, and differentiated by what they hold."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.losses import TIME_SAMPLERS
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.ncsn import NCSN
from diffusion_jax.processes.process import Process, Rates, namespace
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.processes.sde import VE, VP, ContinuousProcess, SubVP
from diffusion_jax.samplers import euler_maruyama, heun, pndm

PROCESSES = {
    "ddpm": DDPM(make_schedule("linear", 50)),
    "vp": VP(),
    "subvp": SubVP(),
    "ve": VE(),
    "ncsn": NCSN(num_timesteps=20),
}


def inner_times(process: Process) -> jax.Array:
    first, last = process.ends
    return jnp.asarray(first + (last - first) * np.array([0.3, 0.6, 0.9]), jnp.float32)


def seen(process: Process, time: jax.Array):
    logsnr = jnp.array([-1.0, 0.0, 2.0])
    return process.at(time), process.rates(time), process.times_of(logsnr)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_is_an_argument_of_a_compiled_program(name: str) -> None:
    process = PROCESSES[name]
    time = inner_times(process)
    closed = jax.jit(lambda: seen(process, time))()
    for ours, expected in zip(
        jax.tree.leaves(jax.jit(seen)(process, time)), jax.tree.leaves(closed), strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=1e-6)


def test_the_derivative_by_beta_max_is_that_of_the_closed_form() -> None:
    """log signal = -(beta_min u + (beta_max - beta_min) u^2 / 2) / 2, std^2 = 1 - signal^2."""
    process = VP(beta_max=jnp.float32(12.0))
    point = process.at(jnp.array([999 * 0.4]))

    def gradient(name: str) -> VP:
        return jax.jit(jax.grad(lambda p: getattr(p.at(point.time), name)[0]))(process)

    (signal,), (std,) = point.signal, point.std
    d_signal, d_std = gradient("signal"), gradient("std")
    by_hand = -signal * 0.4**2 / 4
    np.testing.assert_allclose(d_signal.beta_max, by_hand, rtol=1e-5)
    np.testing.assert_allclose(d_std.beta_max, -signal / std * by_hand, rtol=1e-5)


def test_a_chain_is_differentiated_by_its_log_alpha_bar() -> None:
    process, time = PROCESSES["ddpm"], jnp.array([7.0])
    learned = jax.tree.map(jnp.asarray, process)
    gradient = jax.grad(lambda process: jnp.log(process.at(time).signal[0]))(learned)
    expected = np.zeros(50)
    expected[7] = 0.5
    np.testing.assert_allclose(gradient.schedule.log_alpha_bar, expected, atol=1e-6)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Learned(ContinuousProcess):
    """logsnr = a + b u with arrays a and b, signal^2 + std^2 = 1 (Kingma et al., 2021, with a line)."""

    num_timesteps: int = dataclasses.field(default=1000, metadata={"static": True})
    a: jax.Array
    b: jax.Array

    prior_std = 1.0  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    ends = 0.0, 1.0  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def log_signal(self, u):
        return -namespace(u).logaddexp(0 * u, -(self.a + self.b * u)) / 2

    def std(self, u):
        xp = namespace(u)
        return xp.exp(-xp.logaddexp(0 * u, self.a + self.b * u) / 2)

    def rates_in_u(self, u):
        variance = self.std(u) ** 2
        return Rates(self.b * variance / 2, -self.b * variance)

    def u_of(self, logsnr):
        return (logsnr - self.a) / self.b


def test_a_schedule_is_learned_by_gradient_descent() -> None:
    """To the log SNR of another line, of which only points are seen."""
    u = jnp.linspace(0.05, 0.95, 10)
    wanted = 8.0 - 14.0 * u

    def loss(process: Learned) -> jax.Array:
        return jnp.mean(jnp.square(process.at(u).logsnr - wanted))

    @jax.jit
    def step(process: Learned) -> Learned:
        return jax.tree.map(lambda x, g: x - 0.4 * g, process, jax.grad(loss)(process))

    process = Learned(a=jnp.float32(5.0), b=jnp.float32(-9.0))
    for _ in range(300):
        process = step(process)
    np.testing.assert_allclose([process.a, process.b], [8.0, -14.0], rtol=1e-4)


def test_a_grid_of_a_process_with_arrays_is_made_in_float64_outside_of_compiled_programs() -> None:
    process = Learned(a=jnp.float32(8.0), b=jnp.float32(-14.0))
    grid = make_grid(process, 10)
    u = np.append(np.linspace(1, 1e-5, 10), 0.0)
    np.testing.assert_allclose(grid.logsnr[:-1], 8 - 14 * u[:-1], rtol=1e-12)
    with pytest.raises(InputError, match="the process is traced, and a grid is made on the host"):
        jax.jit(lambda process: make_grid(process, 10).std.sum())(process)


@pytest.mark.parametrize(
    "use",
    [
        lambda p, grid: heun(grid, p),
        lambda p, grid: euler_maruyama(grid, p),
        lambda p, grid: pndm(grid, p),
        lambda p, grid: TIME_SAMPLERS["likelihood"](p),
    ],
    ids=["heun", "euler_maruyama", "pndm", "likelihood times"],
)
def test_tables_of_a_traced_process_are_refused(use: Callable[..., Any]) -> None:
    process = VP(beta_max=jnp.float32(12.0))
    grid = make_grid(process, 4, "leading")
    use(process, grid)  # Arrays that are not traced will do.

    def traced(process: Process) -> jax.Array:
        use(process, grid)
        return jnp.zeros(())

    with pytest.raises(InputError, match="the process is traced"):
        jax.jit(traced)(process)


def test_the_data_in_a_batch_leaves_the_gradient_of_a_learned_chain_finite() -> None:
    process, t = PROCESSES["ddpm"], jnp.array([-1.0, 3.0, 10.5])

    def loss(process: Process) -> jax.Array:
        return jnp.where(t >= 0, process.at(t).std, 0.0).sum()

    def of(log_alpha_bar: jax.Array) -> jax.Array:
        schedule = dataclasses.replace(process.schedule, log_alpha_bar=log_alpha_bar)
        return loss(DDPM(schedule))

    gradient = jax.grad(of)(jnp.asarray(process.schedule.log_alpha_bar, jnp.float32))
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
