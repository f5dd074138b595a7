"""The training loop: dispatches steps to the devices, reads their metrics, and runs hooks between steps."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax import data
from diffusion_jax.lifecycle.stopping import Stopped
from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.preemption import AskStop
from diffusion_jax.training.meter import Meter
from diffusion_jax.training.state import TrainState
from diffusion_jax.training.step import StepMetrics, TrainStep, make_multi_step
from diffusion_jax.training.watchdog import Watchdog

# The host reads the metrics of a dispatch only when this many later ones are queued: the device
# never waits for it, yet a loss that is not finite, or a signal, is noticed soon.
LAG = 2


class Hook(NamedTuple):
    """An action of a run between steps.

    It runs only when all losses up to the step are known to be finite. Hooks of one step run in their order.

    Attributes:
      run: (state, step) -> None, the action; on every process.
      every: Steps between two runs; 0: only when the other attributes ask for it.
      last: Whether it runs after the last step; if not, also not where that is a multiple of `every`.
      resumed: Whether it runs again at the step that a run resumes from: a kill may have come in between.
      stopped: Whether it runs when a signal stops the run.
      at: Further steps to run at, whether or not one of them is the last.
    """

    run: Callable[[TrainState, int], None]
    every: int
    last: bool = False
    resumed: bool = False
    stopped: bool = False
    at: tuple[int, ...] = ()

    def due(self, step: int, num_steps: int) -> bool:
        """Whether the step asks for it."""
        if step in self.at:
            return True
        return self.last if step == num_steps else bool(self.every) and step % self.every == 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """The steps of a run, and how many of them go into one dispatch.

    Attributes:
      start: Steps done already.
      num_steps: Step to end at.
      per_dispatch: Steps per dispatch, in one `lax.scan`.
      log_every: Steps between two rows of the log; a dispatch does not cross one.
    """

    start: int
    num_steps: int
    per_dispatch: int
    log_every: int


def dispatch_sizes(
    start: int,
    num_steps: int,
    per_dispatch: int,
    everys: tuple[int, ...],
    at: tuple[int, ...] = (),
) -> Iterator[int]:
    """Yields the number of steps of each dispatch: `per_dispatch`, or 1 where an event is nearer.

    A dispatch never crosses a multiple of `per_dispatch` or of one of `everys`, nor one of the steps `at`, nor the end.
    The positions of the dispatches depend on the step alone, so a resumed run repeats exactly the same programs.
    """
    step = start
    while step < num_steps:
        edges = [step // every * every + every for every in (per_dispatch, *everys) if every]
        edges += [one for one in at if one > step]
        whole = min(num_steps, *edges) - step == per_dispatch
        size = per_dispatch if whole else 1
        yield size
        step += size


def compile_steps(
    train_step: TrainStep, per_dispatch: int, mesh: jax.sharding.Mesh, state_shardings: Any
) -> dict[int, Any]:
    """Returns number of steps -> jitted (state, batch) -> (state, metrics), for 1 and `per_dispatch`.

    Args:
      train_step: The step.
      per_dispatch: Number of steps per dispatch.
      mesh: Devices.
      state_shardings: Shardings of the state: a tree, or one for all arrays.
    """

    def compiled(size: int) -> Any:
        rows = sharding.batch_sharding(mesh, axis=0 if size == 1 else 1)
        return jax.jit(
            make_multi_step(train_step, size),
            donate_argnums=0,
            in_shardings=(state_shardings, rows),
            out_shardings=(state_shardings, sharding.replicated(mesh)),
        )

    return {size: compiled(size) for size in {1, per_dispatch}}


def run_loop(
    state: TrainState,
    steps: Mapping[int, Callable[..., tuple[TrainState, StepMetrics]]],
    batches: Iterator[data.Batch],
    plan: Plan,
    *,
    mesh: jax.sharding.Mesh,
    meter: Meter,
    hooks: Sequence[Hook],
    ask_stop: AskStop,
    watchdog: Watchdog,
) -> tuple[TrainState, int, bool]:
    """Trains to the end, or until a signal.

    Args:
      state: State after `plan.start` steps; it is donated.
      steps: Compiled steps by size, as from `compile_steps`.
      batches: This process's rows of each batch.
      plan: The steps to do.
      mesh: Devices.
      meter: Reads and logs the metrics.
      hooks: Actions between steps.
      ask_stop: Whether to stop after this dispatch; called once per dispatch and at the end, alike on every process.
      watchdog: Notified of each dispatch that is known to have ended.

    Returns:
      The state, its step, and whether a signal stopped the run.

    Raises:
      NotFinite: Loss or gradients were not finite.
    """
    if plan.start > 0:
        with watchdog.paused():
            if _run_hooks(hooks, state, plan.start, plan, lambda hook: hook.resumed):
                return state, plan.start, True
    pending: collections.deque[StepMetrics] = collections.deque()
    done, stop = plan.start, False
    for size in _sizes(plan, hooks):
        with meter.waiting():
            batch = _next_batch(batches, size, mesh)
        state, metrics = steps[size](state, batch)
        done += size
        pending.append(metrics)
        stop = ask_stop()
        event = stop or any(hook.due(done, plan.num_steps) for hook in hooks)
        while len(pending) > (0 if event or done == plan.num_steps or meter.rests(done) else LAG):
            meter.read(pending.popleft())
            watchdog.done(meter.step)
        if event:
            with meter.paused(), watchdog.paused():
                stop = stop or _run_hooks(hooks, state, done, plan, lambda _: True)
                for hook in hooks if stop else ():
                    if hook.stopped:
                        hook.run(state, done)
            if stop:
                break
    # Once more, since a signal may have come during the last step's checkpoint.
    return state, done, stop or ask_stop()


def _sizes(plan: Plan, hooks: Sequence[Hook]) -> Iterator[int]:
    everys = (plan.log_every, *(hook.every for hook in hooks))
    at = tuple(step for hook in hooks for step in hook.at)
    return dispatch_sizes(plan.start, plan.num_steps, plan.per_dispatch, everys, at)


def _run_hooks(
    hooks: Sequence[Hook],
    state: TrainState,
    step: int,
    plan: Plan,
    chosen: Callable[[Hook], bool],
) -> bool:
    """Runs the hooks that are due; returns whether a signal stopped one of them midway."""
    try:
        for hook in hooks:
            if chosen(hook) and hook.due(step, plan.num_steps):
                hook.run(state, step)
    except Stopped:
        return True
    return False


def _next_batch(batches: Iterator[data.Batch], size: int, mesh: jax.sharding.Mesh) -> Any:
    if size == 1:
        return sharding.put(sharding.batch_sharding(mesh), next(batches))
    stacked = jax.tree.map(lambda *parts: np.stack(parts), *[next(batches) for _ in range(size)])
    return sharding.put(sharding.batch_sharding(mesh, axis=1), stacked)
