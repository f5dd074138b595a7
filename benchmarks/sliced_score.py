"""Trains a score by sliced score matching along an SDE whose drift is not affine, and measures its error.

The SDE is dx = -grad U dt + 2^(1/2) dw in the plane, U = (x_1^2 - 1)^2 + (x_2 - x_1)^2 / 2 (two wells), from
N(0, I / 4) at t = 0 to t = 1: its density given x_0 is not known, so no squared error of noise could be trained. An
MLP learns the score of p_t from simulated paths alone (`sliced_objective`). It is compared with the score of a
numerical solution of the Fokker-Planck equation: the error at a time is (E |s - s*|^2 / E |s*|^2)^(1/2), the means
over p_t.

The solution is by finite volumes (Scharfetter & Gummel's fluxes, which keep exp(-U)) and a rule of order 2 in time
that damps what is stiff (Alexander, 1977). Its own errors are measured like the network's: against half as many cells
and steps, and, for Benes's SDE, whose drift is not affine either, against the score that is known.

  PYTHONPATH=tests python benchmarks/sliced_score.py --out=sliced.json
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import nonlinear_sde
import numpy as np
import optax
import report
from jaxtyping import Array, Float
from scipy.sparse import csc_matrix, identity
from scipy.sparse.linalg import splu
from scipy.special import exprel

from diffusion_jax.losses import sliced_objective
from diffusion_jax.models import MLP, as_functions
from diffusion_jax.processes import SDE
from diffusion_jax.processes.dynamics import normal_prior
from diffusion_jax.training import make_train_step
from diffusion_jax.training.state import create_state

SHAPE = (1, 1, 2)
TIME_SAMPLERS = (0.05, 0.2, 0.5, 1.0)
STD = 0.5  # At t = 0.
# Half the sides of the squares that the equations are solved in: six deviations of N(0, I / 4) and of Benes's.
WELLS_WIDTH, BENES_WIDTH = 3.2, 9.0
GAMMA = 1 - 0.5**0.5  # Of Alexander's rule.

BATCH = 512


class Density(NamedTuple):
    """p_t in the cells of a square grid, and its score.

    Attributes:
      x: Middles of the cells; (n * n, 2).
      p: Probability of each; (n * n,).
      score: Gradient of log p_t by central differences; (n * n, 2).
    """

    x: Float[np.ndarray, "m 2"]
    p: Float[np.ndarray, " m"]
    score: Float[np.ndarray, "m 2"]


# ---- the SDE -----------------------------------------------------------------------------------------


def potential(x: Any) -> Any:
    """Returns U, for arrays of NumPy and of JAX; the last axis has two numbers."""
    return (x[..., 0] ** 2 - 1) ** 2 + (x[..., 1] - x[..., 0]) ** 2 / 2


def wells() -> SDE:
    """Returns dx = -grad U dt + 2^(1/2) dw; nothing here asks for its prior."""

    def drift(x: Float[Array, "b 1 1 2"], t: Float[Array, " b"]) -> Float[Array, "b 1 1 2"]:
        return -jax.grad(lambda x: potential(x).sum())(x)

    return SDE(drift, lambda t: jnp.full_like(t, 2**0.5), 0.0, TIME_SAMPLERS[-1], normal_prior())


# ---- the true score ----------------------------------------------------------------------------------


def fokker_planck(
    potential: Callable[[Any], Any],
    noise: float,
    log_start: Callable[[np.ndarray], np.ndarray],
    width: float,
    n: int,
    steps: int,
) -> dict[float, Density]:
    """Solves dp/dt = noise div(p grad V + grad p) for dx = -noise grad V dt + (2 noise)^(1/2) dw.

    Args:
      potential: V.
      noise: Half of the squared diffusion.
      log_start: x -> log p_0, up to a constant.
      width: Half the side of the square.
      n: Cells a side.
      steps: Time steps of a unit of time, a multiple of 40.

    Returns:
      The density at each of `TIME_SAMPLERS`.
    """
    h = 2 * width / n
    middles = (np.arange(n) + 0.5) * h - width
    x = np.stack(np.meshgrid(middles, middles, indexing="ij"), -1)
    generator = noise / h**2 * _generator(potential(x))
    rate = generator / steps
    solver = splu(csc_matrix(identity(n * n) - GAMMA * rate))
    p = np.exp(log_start(x)).ravel()
    p /= p.sum()
    densities = {}
    for step in range(1, round(TIME_SAMPLERS[-1] * steps) + 1):
        first = solver.solve(rate @ p)
        second = solver.solve(rate @ (p + (1 - GAMMA) * first))
        p = p + (1 - GAMMA) * first + GAMMA * second
        for t in TIME_SAMPLERS:
            if step == round(t * steps):
                log_p = np.log(np.maximum(p, 1e-300)).reshape(n, n)
                score = np.stack(np.gradient(log_p, h, edge_order=2), -1)
                densities[t] = Density(x.reshape(-1, 2), p / p.sum(), score.reshape(-1, 2))
    return densities


def _generator(v: Float[np.ndarray, "n n"]) -> Any:
    """Returns the matrix of h^2 div(p grad V + grad p), without flux through the edge.

    Between cells i and i + 1 the flux is B(dV) p_i - B(-dV) p_{i+1}, B(z) = z / (e^z - 1), dV = V_{i+1} - V_i.
    """
    n, total = len(v), csc_matrix((v.size, v.size))
    cells = np.arange(v.size).reshape(n, n)
    for first, last in (
        (cells[:-1], cells[1:]),
        (cells[:, :-1], cells[:, 1:]),
    ):
        i, j = first.ravel(), last.ravel()
        rise = v.ravel()[j] - v.ravel()[i]
        onward, back = 1 / exprel(rise), 1 / exprel(-rise)
        values = np.concatenate([-onward, back, onward, -back])
        places = np.concatenate([i, i, j, j]), np.concatenate([i, j, i, j])
        total = total + csc_matrix((values, places), (v.size, v.size))
    return total


def relative_error(density: Density, score: Float[np.ndarray, "m 2"]) -> float:
    """Returns (E |score - s*|^2 / E |s*|^2)^(1/2) over the density, s* its own."""
    square = ((score - density.score) ** 2).sum(-1)
    return float(np.sqrt((density.p @ square) / (density.p @ (density.score**2).sum(-1))))


def of_halved(fine: Density, coarse: Density) -> float:
    """Returns the relative error of a solution with half as many cells, at whose middles four cells meet."""
    n, m = (round(len(density.p) ** 0.5) for density in (fine, coarse))
    blocks = fine.score.reshape(m, n // m, m, n // m, 2).mean((1, 3)).reshape(-1, 2)
    return relative_error(coarse._replace(score=blocks), coarse.score)


# ---- the learned score -------------------------------------------------------------------------------


def train(num_steps: int, sim_steps: int, seed: int) -> tuple[Callable[[Any, Any], Array], float]:
    """Returns the learned score, (x, t) -> score, and the seconds that its training took."""
    model = as_functions(MLP(channels=64, num_res_blocks=2), SHAPE)

    def network(params: Any, x: Array, t: Array, *given: Any) -> Array:
        return model.apply(
            params, x, 999 * t / TIME_SAMPLERS[-1], *given
        )  # As the embedding expects it.

    objective = sliced_objective(wells(), network, num_steps=sim_steps)
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, num_steps))
    data_key, step_key, key = jax.random.split(jax.random.key(seed), 3)
    step = make_train_step(
        objective, optimizer, step_key, averages={"ema": lambda step: jnp.float32(0.99)}
    )

    @jax.jit
    def run(state: Any) -> Any:
        def one(state: Any, _: None) -> tuple[Any, None]:
            noise = jax.random.normal(jax.random.fold_in(data_key, state.step), (BATCH, *SHAPE))
            return step(state, {"image": STD * noise})[0], None

        return jax.lax.scan(one, state, length=num_steps)[0]

    start = time.perf_counter()
    state = jax.block_until_ready(run(create_state(key, model, optimizer, averages=["ema"])))
    seconds = time.perf_counter() - start
    return jax.jit(partial(network, state.ema["ema"])), seconds


def at_cells(
    score: Callable[[Any, Any], Array], x: Float[np.ndarray, "m 2"], t: float
) -> np.ndarray:
    """Returns the score in the cells."""
    images = jnp.asarray(x, jnp.float32).reshape(-1, *SHAPE)
    return np.asarray(score(images, jnp.full(len(x), t))).reshape(-1, 2)


def main() -> None:
    """Prints a table, and writes the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num_steps", type=int, default=5000, help=f"of {BATCH} paths each")
    parser.add_argument("--sim_steps", type=int, default=100, help="of a path")
    parser.add_argument("--cells", type=int, default=256, help="a side, even")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments = parser.parse_args()
    n, steps = arguments.cells, 400

    def from_normal(x: np.ndarray) -> np.ndarray:
        return -(x**2).sum(-1) / (2 * STD**2)

    true, coarse = (
        fokker_planck(potential, 1.0, from_normal, WELLS_WIDTH, n // k, steps // k) for k in (1, 2)
    )
    # Of dx = a tanh(a'x) dt + dw: V = -2 log cosh(a'x).
    known = fokker_planck(
        lambda x: -2 * np.log(np.cosh(x @ nonlinear_sde.direction(2))),
        *(0.5, lambda x: nonlinear_sde.log_density(x.reshape(-1, 2), 0.0), BENES_WIDTH, n, steps),
    )
    score, seconds = train(arguments.num_steps, arguments.sim_steps, arguments.seed)
    rows = []
    for t in TIME_SAMPLERS:
        exact = np.asarray(nonlinear_sde.score(jnp.asarray(known[t].x), jnp.full(n * n, t)))
        rows.append(
            [
                t,
                relative_error(true[t], at_cells(score, true[t].x, t)),
                relative_error(true[t], wells_drift(true[t].x)),
                f"{of_halved(true[t], coarse[t]):.1e}",
                f"{relative_error(known[t], exact):.1e}",
            ]
        )
    header = [
        "t",
        "network",
        "-grad U instead",
        "halved grid",
        "Benes, against the known score",
    ]
    report.print_table(header, rows)
    print(f"\n{arguments.num_steps} steps of {BATCH} paths: {seconds:.1f} s with compilation")
    settings = {"num_steps": arguments.num_steps, "sim_steps": arguments.sim_steps, "cells": n}
    report.write(arguments.out, {**settings, "seconds": seconds, "header": header, "rows": rows})


def wells_drift(x: Float[np.ndarray, "m 2"]) -> np.ndarray:
    """Returns -grad U, the score that p_t tends to."""
    return -np.asarray(jax.vmap(jax.grad(potential))(jnp.asarray(x, jnp.float32)))


if __name__ == "__main__":
    main()
