# %% [markdown]
# # The score SDEs in the plane
#
# Two moons, or a checkerboard: a perceptron learns the score of points in the plane in under a minute, draws new points
# with a predictor-corrector sampler and with the probability-flow ODE, and says how probable any point is. The true
# density is known here, so the last can be checked.
#
#     python notebooks/plane.py --data=moons --process=vp
#
# The file is also a notebook, in the percent format of Jupytext and VS Code.

# %%
import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.special import log_ndtr, ndtr

import diffusion_jax as dj
from diffusion_jax.keys import indexed, stream
from diffusion_jax.likelihood.divergence import exact_divergence
from diffusion_jax.losses import TIME_SAMPLERS, WEIGHTINGS
from diffusion_jax.samplers import predictor_corrector
from diffusion_jax.training.step import make_multi_step
from diffusion_jax.processes.grid import make_grid

Points = Float[np.ndarray, "n 2"]


# %% [markdown]
# ## Data whose density is known, also with noise of standard deviation s added


# %%
class Data(NamedTuple):
    """Points in the plane.

    Attributes:
      draw: (rng, n) -> points.
      log_density: (points, s) -> log of the density of points with normal noise s added.
    """

    draw: Callable[[np.random.Generator, int], Points]
    log_density: Callable[[Points, float], Float[np.ndarray, " n"]]


MOON_NOISE, MOON_SCALE = 0.06, 0.6


def moon(theta: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Points of the two half circles, (..., 2)."""
    x = np.where(lower, 1 - np.cos(theta), np.cos(theta))
    y = np.where(lower, 0.5 - np.sin(theta), np.sin(theta))
    return MOON_SCALE * np.stack([x - 0.5, y - 0.25], -1)


def draw_moons(rng: np.random.Generator, n: int) -> Points:
    """Points evenly along the half circles, and normal noise."""
    curve = moon(rng.uniform(0, np.pi, n), rng.random(n) < 0.5)
    return curve + MOON_NOISE * rng.normal(size=(n, 2))


def log_density_of_moons(x: Points, s: float) -> Float[np.ndarray, " n"]:
    """The mean of N(x; point of a half circle, variance) over both, by the midpoint rule."""
    theta = (np.arange(1000) + 0.5) * np.pi / 1000
    curve = np.concatenate([moon(theta, np.array(lower)) for lower in (False, True)])
    variance = MOON_NOISE**2 + s**2
    exponent = -((x[:, None] - curve[None]) ** 2).sum(-1) / (2 * variance)
    top = exponent.max(1, keepdims=True)
    mean = np.exp(exponent - top).mean(1)
    return np.log(mean) + top[:, 0] - np.log(2 * np.pi * variance)


SQUARES = [(i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0]


def draw_checkerboard(rng: np.random.Generator, n: int) -> Points:
    """Points evenly in the eight dark squares of [-1, 1]^2."""
    corners = np.array(SQUARES)[rng.integers(0, 8, n)]
    return (corners + rng.random((n, 2))) / 2 - 1


def log_density_of_checkerboard(x: Points, s: float) -> Float[np.ndarray, " n"]:
    """Half of the share of a normal distribution around x that lies in dark squares."""

    def share(of_axis: np.ndarray, k: int) -> np.ndarray:  # Of the k-th interval of an axis.
        low, high = (k / 2 - 1 - of_axis) / s, (k / 2 - 0.5 - of_axis) / s
        return ndtr(high) - ndtr(low)

    total = sum(share(x[:, 0], i) * share(x[:, 1], j) for i, j in SQUARES)
    # Far away, where the difference is 0, the normal's tail.
    tail = log_ndtr(-np.maximum(np.abs(x) - 1, 0).max(1) / s)
    return np.where(total > 0, np.log(np.maximum(total, 1e-300) / 2), tail)


DATA = {
    "moons": Data(draw_moons, log_density_of_moons),
    "checkerboard": Data(draw_checkerboard, log_density_of_checkerboard),
}
PROCESSES: dict[str, dj.processes.Process] = {
    "vp": dj.VP(),
    "subvp": dj.processes.SubVP(),
    "ve": dj.VE(sigma_min=0.01, sigma_max=3.0),
}

# %% [markdown]
# ## Training: the same step as for images, on points of shape (1, 1, 2)

# %%
TOLERANCE = 1e-4  # Of a step of the ODE.
CHUNK = 100  # Steps in one program.


def train(
    model: dj.DiffusionModel,
    network: dj.models.Model,
    data: Data,
    *,
    num_steps: int,
    batch_size: int,
    seed: int,
) -> Any:
    """Returns the averaged parameters of a network that predicts v, trained for likelihood."""
    # The weights that bound the likelihood, and times drawn as often as they are large (Song et al., 2021b).
    weights = {
        "weighting": WEIGHTINGS["likelihood"](process=model.process),
        "times": TIME_SAMPLERS["likelihood"](model.process),
    }
    objective = dj.loss_function("simple", model, **weights)
    optimizer = dj.training.make_optimizer(2e-3, 200, decay="cosine", num_steps=num_steps)
    step = dj.training.make_train_step(
        objective, optimizer, stream(seed, "train"), averages={"ema": dj.training.ema_decay(0.999)}
    )
    steps = jax.jit(make_multi_step(step, CHUNK), donate_argnums=0)
    state = dj.training.create_state(stream(seed, "init"), network, optimizer, averages=["ema"])
    rng, metrics = np.random.default_rng(seed), None
    for _ in range(max(1, num_steps // CHUNK)):
        points = data.draw(rng, CHUNK * batch_size).astype(np.float32)
        state, metrics = steps(state, {"image": points.reshape(CHUNK, batch_size, 1, 1, 2)})
    assert metrics is not None
    print(f"loss of the last {CHUNK} steps: {float(jnp.mean(metrics.loss)):.4f}")
    return state.ema["ema"]


# %% [markdown]
# ## Drawing points, and how probable a point is
#
# Both by the probability-flow ODE, solved adaptively; the trace of its Jacobian is exact here, since there are two
# dimensions.


# %%
def draw(model: dj.DiffusionModel, params: Any, num_points: int, seed: int) -> Points:
    """Returns points of the predictor-corrector sampler."""

    @jax.jit
    def points(params: Any, keys: jax.Array) -> jax.Array:
        denoise = model.denoiser(params)
        sampler = predictor_corrector(make_grid(model.process, 200), model.process)
        return dj.sample_loop(denoise, sampler, keys, (1, 1, 2)).images

    keys = indexed(stream(seed, "sample"), jnp.arange(num_points))
    return np.asarray(points(params, keys)).reshape(-1, 2)


def log_likelihood(
    model: dj.DiffusionModel, params: Any, points: Points
) -> tuple[Float[np.ndarray, " n"], float]:
    """Returns log p of each point by the ODE, NaN where that was not solved, and its mean number of evaluations."""

    @jax.jit
    def of(params: Any, x: jax.Array) -> dj.likelihood.Likelihood:
        denoise, grid = model.denoiser(params), make_grid(model.process, 2)
        return dj.exact_likelihood(
            denoise, grid, model.process, x, exact_divergence, rtol=TOLERANCE, atol=TOLERANCE
        )

    result = of(params, jnp.asarray(points.reshape(-1, 1, 1, 2), jnp.float32))
    return np.asarray(result.log_likelihood, np.float64), float(result.evaluations.mean())


# %% [markdown]
# ## Everything together, with a picture


# %%
SIDE = 60  # Points of the picture along each axis.


def picture(path: Path, data: Data, drawn: Points, density: Callable[[Points], Any], s: float):
    """Writes drawn points beside the density of the model and the true one."""
    from matplotlib.figure import Figure

    axis = np.linspace(-1.3, 1.3, SIDE)
    plane = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    truth, learned = (
        np.exp(f).reshape(SIDE, SIDE) for f in (data.log_density(plane, s), density(plane))
    )
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    of_points, *of_densities = figure.subplots(1, 3)
    of_points.scatter(*drawn[:4000].T, s=1, c="0.2")
    of_points.set(title="points drawn", xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal")
    for axes, values, title in zip(
        of_densities, (learned, truth), ("density of the model", "true density"), strict=True
    ):
        axes.pcolormesh(axis, axis, values, vmin=0, vmax=truth.max(), cmap="viridis")
        axes.set(title=title, aspect="equal")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main(arguments: argparse.Namespace) -> dict[str, float]:
    """Trains, draws and scores; returns the figures."""
    data, process = DATA[arguments.data], PROCESSES[arguments.process]
    network = dj.as_functions(dj.models.MLP(channels=128, num_res_blocks=3), (1, 1, 2))
    model = dj.DiffusionModel(process, "v", network.apply)
    started = time.monotonic()
    sizes = {"num_steps": arguments.steps, "batch_size": arguments.batch_size}
    params = train(model, network, data, **sizes, seed=arguments.seed)
    seconds = time.monotonic() - started
    drawn = draw(model, params, arguments.drawn, arguments.seed)
    s = float(make_grid(process, 2).std[1])  # The noise of the points that the flow begins with.
    rng = np.random.default_rng(arguments.seed + 1)
    held_out = data.draw(rng, arguments.held_out) + s * rng.normal(size=(arguments.held_out, 2))
    log_p, evaluations = log_likelihood(model, params, held_out)
    gap = data.log_density(held_out, s) - log_p
    figures = {
        "training_seconds": seconds,
        "model": log_p.mean(),
        "true": data.log_density(held_out, s).mean(),
        "divergence": gap.mean(),
        "stderr": gap.std(ddof=1) / np.sqrt(len(gap)),
        "drawn_true": data.log_density(drawn.astype(np.float64), s).mean(),
        "evaluations": evaluations,
    }
    print(f"{arguments.data}, {arguments.process}: {seconds:.0f} s of training")
    print(f"log-likelihood of {len(gap):,} held-out points: {figures['model']:.3f} nats; ", end="")
    print(f"of the true density {figures['true']:.3f}; {evaluations:.0f} evaluations a point")
    print(f"KL divergence {figures['divergence']:.4f} ± {figures['stderr']:.4f} nats")
    if not arguments.no_picture:
        density = lambda plane: log_likelihood(model, params, plane)[0]  # noqa: E731
        picture(arguments.picture, data, drawn, density, s)
    return figures


def parse(flags: list[str] | None = None) -> argparse.Namespace:
    """Returns the arguments."""
    parser = argparse.ArgumentParser(description="The score SDEs in the plane.")
    parser.add_argument("--data", choices=DATA, default="moons")
    parser.add_argument("--process", choices=PROCESSES, default="vp")
    parser.add_argument("--steps", type=int, default=6000, help="of training, in hundreds")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--held_out", type=int, default=2000, help="points to score")
    parser.add_argument("--drawn", type=int, default=10_000, help="points to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no_picture", action="store_true")
    parser.add_argument("--picture", type=Path, default=Path("plane.png"), help="PNG to write")
    return parser.parse_args(flags)


if __name__ == "__main__":
    main(parse())
