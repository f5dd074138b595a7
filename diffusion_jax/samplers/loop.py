"""The loop that all samplers share, along a grid from noise to images.

Every random number of image i comes from the key of image i, so that an image depends neither on its batch nor
on the number of devices. Its first noise x_T has a stream of its own, and the noise of a step is keyed by the
time that the step begins at: neither depends on the number of steps or the sampler, and images drawn with 10
and with 1000 steps can be compared. Keys sharded over a mesh are enough to shard the whole loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int64, Key

from diffusion_jax.errors import InputError, expect
from diffusion_jax.keys import (
    SampleStream,
    at_time,
    fold_in,
    image_normal,
    indexed,
    stream,
    threefry,
)
from diffusion_jax.models.denoiser import Denoise, Prediction
from diffusion_jax.processes.ode import SolverStats
from diffusion_jax.processes.process import Grid, Point, take
from diffusion_jax.reporting.progress import report

# Index of a point, traced or not.
Index = int | Int[Array, ""]


class State(NamedTuple):
    """The state that a sampler carries from step to step.

    Attributes:
      x: Images at the current point of the grid.
      x0_hat: Clean images as last predicted.
      memory: Memory of the update rule, a pytree; () if it has none.
    """

    x: Float[Array, " b *dims"]
    x0_hat: Float[Array, " b *dims"]
    memory: Any = ()


# (denoise, state, i, keys) -> state
Update = Callable[[Denoise, State, Array, Array], State]


def no_memory(x: Float[Array, " b *dims"]) -> State:
    """Returns the first state of an update rule without memory."""
    return State(x, x)


def one_per_step(start: Index, stop: Index) -> Index:
    """Returns the network evaluations of an update rule that needs one per step."""
    return stop - start


def refined_cost(grid: Grid, refinements: int) -> Callable[[Index, Index], Index]:
    """Returns the cost of an update rule whose `refine` evaluates the network this many times."""

    def cost(start: Index, stop: Index) -> Index:
        to_data = (stop == grid.num_steps) & (start < stop)
        return (1 + refinements) * (stop - start) - refinements * to_data

    return cost


def planned_stats(sampler: Sampler, state: State, start: Index, stop: Index) -> SolverStats:
    """Returns the statistics of a run of known cost, the same for all images."""
    reached = take(sampler.grid.time, jnp.asarray(stop))
    return equal_stats(state.x, sampler.cost(start, stop), reached)


def equal_stats(
    x: Float[Array, " b *dims"], evaluations: Index, reached: float | Float[Array, ""]
) -> SolverStats:
    """Returns the statistics of images that are all finished, at the same time and cost."""
    first = x.reshape(x.shape[0], -1)[
        :, 0
    ]  # Inside `jax.shard_map` it varies across devices, as in a solver's.
    return SolverStats(
        evaluations=jnp.full_like(first, evaluations, jnp.int32),
        finished=jnp.full_like(first, True, bool),
        reached=jnp.full_like(first, reached, jnp.float32),
    )


class Sampler(NamedTuple):
    """An update rule on a grid.

    Attributes:
      grid: The points from noise to data; step i goes from point i to point i + 1.
      step: (denoise, state, i, keys) -> state after step i, a scalar; there is one key per image, fresh at each step.
        In the step to the data only its x0_hat matters: the images end there.
      init: x -> the state before the first step.
      refine: (denoise, state, i, keys) -> state, for rules that evaluate the network again after `step`, at point
        i + 1; not called in the step to the data. None: there is nothing to refine.
      cost: (start, stop) -> network evaluations per image of a run from one point to another; None if only the
        run can tell.
      stats: (sampler, last state, start, stop) -> cost of each image of a run, and the time reached.
      temperature: Standard deviation of x_T over that of the grid's prior, 0 or more. May be traced.
    """

    grid: Grid
    step: Update
    init: Callable[[Array], State] = no_memory
    refine: Update | None = None
    cost: Callable[[Any, Any], Any] = one_per_step
    stats: Callable[[Sampler, State, Index, Index], SolverStats] = planned_stats
    temperature: float | Float[Array, ""] = 1.0

    @property
    def has_memory(self) -> bool:
        """Whether a run depends on more than its images: then it cannot be continued from these alone."""
        return self.init is not no_memory

    @property
    def prior_std(self) -> float | Float[Array, ""]:
        """Standard deviation of x_T."""
        return self.temperature * self.grid.prior_std

    def advance(
        self, denoise: Denoise, state: State, i: Int[Array, ""], keys: Key[Array, " b"]
    ) -> State:
        """Takes all images from point i to point i + 1; at the data they are x0_hat.

        Args:
          denoise: (x_t, point) -> Prediction.
          state: State at point i.
          i: Index of the step, in {0, ..., num_steps - 1}.
          keys: One key per image, fresh at each step.
        """
        denoise, refine = at_one_point(denoise), self.refine
        state, to_data = self.step(denoise, state, i, keys), i == self.grid.num_steps - 1
        if refine is None:
            return state._replace(x=jnp.where(to_data, state.x0_hat, state.x))
        return jax.lax.cond(
            to_data,
            lambda: state._replace(x=state.x0_hat),
            lambda: refine(denoise, state, i, keys),
        )

    @property
    def nfe(self) -> int | None:
        """Network evaluations per image of the whole run; None if only the run can tell."""
        return self.cost(0, self.grid.num_steps)


def at_one_point(denoise: Denoise) -> Denoise:
    """Returns the denoiser that takes a single point, shared by all images."""

    def denoise_all(x: Float[Array, " b *dims"], point: Point) -> Prediction:
        return denoise(x, Point(*(jnp.broadcast_to(values, x.shape[:1]) for values in point)))

    return denoise_all


class SampleResult(NamedTuple):
    """Samples and, if requested, their frames.

    Attributes:
      images: The samples; pixels are in [-1, 1] as far as the denoiser clips. If the run stops before the data,
        x_t there.
      frames_x_t: x_t at num_frames steps, the first x_T and the last the images; None if
        num_frames is 0.
      frames_x0: The clean image predicted from each of those; the last is the images.
      stats: Cost of each image, and the time reached.
      finite: Whether all of an image's numbers are finite; None if unchecked.
    """

    images: Float[Array, " b *dims"]
    frames_x_t: Float[Array, " f b *dims"] | None
    frames_x0: Float[Array, " f b *dims"] | None
    stats: SolverStats
    finite: Bool[Array, " b"] | None = None


def image_keys(seed: int | Array, indices: Int[Array | np.ndarray, " b"]) -> Key[Array, " b"]:
    """Returns the keys of the images with these indices: fold_in(stream(seed, "sample"), i).

    Example:
      >>> keys, alone = dj.image_keys(0, np.arange(3)), dj.image_keys(0, np.array([2]))
      >>> bool(keys[2] == alone[0])  # Whatever the batch.
      True
    """
    return indexed(stream(seed, "sample"), indices)


def first_noise(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, " b ..."]:
    """Returns the standard normal noise of x_T of each image, the same for all samplers.

    Args:
      keys: One key per image, as from `image_keys`.
      shape: Shape of one image, (H, W, C).
    """
    return image_normal(fold_in(keys, SampleStream.FIRST_NOISE), shape)


def step_keys(keys: Key[Array, " b"], time: Float[Array, ""]) -> Key[Array, " b"]:
    """Returns each image's key for the step that begins at a time, as given to the network."""
    keys = fold_in(keys, SampleStream.STEPS)
    return at_time(keys, jnp.full(keys.shape, time, jnp.float32))


def continuation_keys(keys: Key[Array, " b"], k: int | Int[Array, ""]) -> Key[Array, " b"]:
    """Returns the keys of each image's k-th continuation: other noise in every step."""
    return fold_in(fold_in(keys, SampleStream.CONTINUATIONS), k)


def frame_steps(num_steps: int, num_frames: int) -> Int64[np.ndarray, " f"]:
    """Returns the numbers of steps done at each of `num_frames` frames: evenly spaced from 0 to `num_steps`."""
    return np.rint(np.linspace(0, num_steps, num_frames)).astype(np.int64)


def sample_loop(
    denoise: Denoise,
    sampler: Sampler,
    keys: Key[Array, " b"],
    shape: tuple[int, ...],
    *,
    x_init: Float[Array, " b *dims"] | None = None,
    start: int | Int[Array, ""] = 0,
    stop: int | Int[Array, ""] | None = None,
    num_frames: int = 0,
    progress: Callable[[int], object] | None = None,
    progress_every: int | None = None,
) -> SampleResult:
    """Draws one image per key; call inside `jit`.

    A run to point i, continued from its images with the same keys, equals the whole run. If `start` and
    `stop` are arguments of the program, one program does all three, and they agree bit for bit. (Except for
    a rule with memory, which every run starts without.)

    Args:
      denoise: (x_t, point) -> Prediction.
      sampler: Update rule, such as `ancestral(make_grid(process))`.
      keys: One key per image, as from `image_keys`.
      shape: Shape of one image, (H, W, C).
      x_init: Images at point `start` of the grid; by default noise of `sampler.prior_std`.
      start: Index of the first step, in {0, ..., num_steps}: the tail of a full run, with fresh memory. A
        traced start or stop is not checked.
      stop: Index of the point to stop at, in {start, ..., num_steps}; None: num_steps, the data.
      num_frames: Number of frames to keep per image, evenly spaced in steps, the first and the
        last included (1: only the last). Memory is used for these frames alone. Such a run goes to the data, from
        a start that is not traced.
      progress: Host function, called with the number of steps done (inside `jax.shard_map`, by each
        device). A program that calls the host is not kept in JAX's persistent compilation cache.
      progress_every: Steps between two calls; by default a hundredth of the grid's. The last step is
        always reported.

    Raises:
      InputError: start, stop or num_frames out of range, frames of a run that keeps none, or start > 0 without
        x_init.

    Example:
      >>> def denoise(x_t, point):  # Of data whose pixels are all 0.5.
      ...     x0 = jnp.full_like(x_t, 0.5)
      ...     return dj.models.complete(point, x0, dj.processes.eps_from_x0(point, x_t, x0))
      >>> sampler = dj.ddim(dj.make_grid(dj.VP(), 10))
      >>> result = dj.sample_loop(denoise, sampler, dj.image_keys(0, np.arange(2)), (4, 4, 1))
      >>> result.images.shape, float(result.images.mean()), result.stats.evaluations.tolist()
      ((2, 4, 4, 1), 0.5, [10, 10])
    """
    keys = _checked(denoise, sampler, keys)
    grid_steps = sampler.grid.num_steps
    stop = grid_steps if stop is None else stop
    _check(grid_steps, start, stop, num_frames, x_init)
    if x_init is None:
        x_init = sampler.prior_std * first_noise(keys, shape)
    slots = _slots(int(stop - start), num_frames) if num_frames else None
    times = jnp.asarray(sampler.grid.time, jnp.float32)

    def body(i: Array, carry: tuple[State, Array | None]) -> tuple[State, Array | None]:
        state, frames = carry
        x_t = state.x
        state = sampler.advance(denoise, state, i, step_keys(keys, times[i]))
        if frames is not None and slots is not None:
            frames = frames.at[slots[i - start]].set(jnp.stack([x_t, state.x0_hat]))
        if progress is not None:
            every = progress_every or max(1, grid_steps // 100)
            report(progress, i - start + 1, every, stop - start)
        return state, frames

    frames = jnp.stack([jnp.stack([x_init, x_init])] * num_frames) if num_frames else None
    state, frames = jax.lax.fori_loop(start, stop, body, (sampler.init(x_init), frames))
    stats = sampler.stats(sampler, state, start, stop)
    if frames is None:
        return SampleResult(state.x, None, None, stats)
    frames = frames.at[-1].set(jnp.stack([state.x, state.x]))
    return SampleResult(state.x, frames[:, 0], frames[:, 1], stats)


def _slots(num_steps: int, num_frames: int) -> Int[Array, " n"]:
    """Returns the frame that each step writes to; later steps overwrite it until the frame's step is done."""
    moments = frame_steps(num_steps, num_frames)
    return jnp.asarray(np.searchsorted(moments, np.arange(num_steps + 1)))


def _checked(denoise: Denoise, sampler: Sampler, keys: Key[Array, " b"]) -> Key[Array, " b"]:
    """Returns the keys as Threefry's; raises an InputError for arguments of another kind."""
    expect("denoise", denoise, Callable, "a denoiser, such as DiffusionModel.denoiser returns")
    expect("sampler", sampler, Sampler, "a Sampler, such as ancestral(make_grid(process))")
    expect("the sampler's grid", sampler.grid, Grid, "a Grid, such as make_grid(process, 50)")
    keys = threefry(keys)
    if keys.ndim != 1:
        raise InputError(
            f"keys have shape {keys.shape}; there must be one per image, as from image_keys(seed, indices)"
        )
    return keys


def _check(
    grid_steps: int,
    start: int | Array,
    stop: int | Array,
    num_frames: int,
    x_init: Array | None,
) -> None:
    traced = isinstance(start, jax.Array) or isinstance(stop, jax.Array)
    if not traced and not 0 <= start <= grid_steps:
        raise InputError(f"start is {start}; it must be from 0 to {grid_steps}, the steps")
    if not traced and not start <= stop <= grid_steps:
        raise InputError(f"stop is {stop}; it must be from {start}, the start, to {grid_steps}")
    if x_init is None and (isinstance(start, jax.Array) or start > 0):
        raise InputError(f"start is {start}, but x_init, the images at that point, is missing")
    if num_frames == 0:
        return
    if traced or stop < grid_steps:
        raise InputError(
            f"num_frames is {num_frames}; only a run to the data, from a start that is not traced, has frames"
        )
    most = grid_steps - start + 1
    if not 0 <= num_frames <= most:
        raise InputError(
            f"num_frames is {num_frames}; it must be from 0 to {most}, the number of steps plus one"
        )
