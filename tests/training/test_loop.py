"""The training loop with toy steps and hooks that only record: what runs when, stops, resumes, losses."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.data import Batch
from diffusion_jax.parallel.sharding import make_mesh, replicated
from diffusion_jax.training.loop import LAG, Hook, Plan, compile_steps, run_loop
from diffusion_jax.training.meter import Meter, NotFinite
from diffusion_jax.training.run_log import RunLog
from diffusion_jax.training.state import TrainState
from diffusion_jax.training.step import StepMetrics
from diffusion_jax.training.watchdog import Watchdog

PER_DISPATCH = 3
NO_EVENT = 1000


def toy_step(state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
    """Parameters that tell which batches came, in which order; a bright image spoils the loss."""
    label = batch["label"].max().astype(jnp.uint32)
    loss = jnp.where(batch["image"].max() > 0, jnp.nan, 1.0)
    metrics = StepMetrics(loss, jnp.ones(4), jnp.ones(4), jnp.ones(()), jnp.ones(()))
    return TrainState(state.step + 1, 3 * state.params + label, {}, (), ()), metrics


@functools.cache
def compiled_steps() -> dict[int, Any]:
    return compile_steps(toy_step, PER_DISPATCH, make_mesh(2), replicated(make_mesh(2)))


@dataclasses.dataclass
class Run:
    """One run of the loop, and what happened in it.

    Attributes:
      workdir: Folder that the log wants.
      num_steps: Step to end at.
      start: Step to go on from.
      per_dispatch: Steps of one dispatch, 1 or `PER_DISPATCH`.
      bad: Step whose loss is not finite; 0 for none.
      signal: Step during which a signal comes; 0 for none.
      signaling: Name and step of the hook during which a signal comes.
      signaled: Whether it has come.
      trace: (name, step) of each hook that ran.
      sizes: Steps of each dispatch.
      behind: As each batch was asked for, the number of those before it whose losses were not read.
      meter: The run's.
      result: State, step, and whether a signal stopped the run.
    """

    workdir: Path
    num_steps: int = 12
    start: int = 0
    per_dispatch: int = 1
    bad: int = 0
    signal: int = 0
    signaling: tuple[str, int] | None = None
    signaled: bool = False
    trace: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    sizes: list[int] = dataclasses.field(default_factory=list)
    behind: list[int] = dataclasses.field(default_factory=list)
    meter: Meter = dataclasses.field(init=False)
    result: tuple[TrainState, int, bool] = dataclasses.field(init=False)

    def hook(self, name: str, every: int, **flags: Any) -> Hook:
        def run(state: TrainState, step: int) -> None:
            assert state.step == step
            assert self.meter.step == step, "not all losses were read"
            self.trace.append((name, step))
            self.signaled |= self.signaling == (name, step)

        return Hook(run, every, **flags)

    def batches(self) -> Iterator[Batch]:
        for step in range(self.start + 1, self.num_steps + 1):
            self.behind.append(step - 1 - self.meter.step)
            self.signaled |= step == self.signal
            image = np.full((2, 1, 1, 1), step == self.bad, np.uint8)
            yield {"image": image, "label": np.full(2, step, np.int32)}

    def steps(self) -> dict[int, Any]:
        def record(size: int, state: TrainState, batch: Any) -> Any:
            self.sizes.append(size)
            return compiled_steps()[size](state, batch)

        return {size: functools.partial(record, size) for size in (1, PER_DISPATCH)}

    def go(self, *hooks: Hook, log_every: int = NO_EVENT) -> "Run":
        mesh = make_mesh(2)
        log = RunLog(self.workdir, self.start, self.num_steps, writes=False)
        self.meter = Meter(
            log, start=self.start, num_steps=self.num_steps, log_every=log_every, batch_size=2,
            started=0.0,
        )  # fmt: skip
        state = TrainState(jnp.int32(self.start), jnp.uint32(after(self.start)), {}, (), ())
        self.result = run_loop(
            jax.device_put(state, replicated(mesh)),
            self.steps(),
            self.batches(),
            Plan(self.start, self.num_steps, self.per_dispatch, log_every),
            mesh=mesh,
            meter=self.meter,
            hooks=hooks,
            ask_stop=lambda: self.signaled,
            watchdog=Watchdog(0.0),
        )
        return self

    def assert_ended(self, step: int, *, stopped: bool) -> None:
        """Checks the result: the state after exactly the batches up to the step, in their order."""
        state, *rest = self.result
        assert rest == [step, stopped]
        assert state.step == step and int(state.params) == after(step)
        assert len(self.behind) == step - self.start, "a batch was read that no step had"
        assert self.meter.step == step


def after(step: int) -> int:
    """Returns the parameters after the batches 1, ..., step."""
    return functools.reduce(lambda params, k: (3 * params + k) % 2**32, range(1, step + 1), 0)


def three(run: Run) -> list[Hook]:
    """Hooks like those of a run: a measurement, pictures, a checkpoint."""
    return [
        run.hook("measure", 4, last=True, resumed=True),
        run.hook("draw", 6, resumed=True),
        run.hook("save", 3, last=True, stopped=True),
    ]


# What these do in twelve steps, without the last.
BEFORE_12 = [("save", 3), ("measure", 4), ("draw", 6), ("save", 6), ("measure", 8), ("save", 9)]

single_or_several = pytest.mark.parametrize("per_dispatch", [1, PER_DISPATCH])


# ---- when hooks run ----------------------------------------------------------------------------------


@single_or_several
@pytest.mark.parametrize(
    ("num_steps", "tail"),
    [
        (
            12,
            [("measure", 12), ("save", 12)],
        ),  # A multiple of all: not drawn, as `last` is not set.
        (13, [("measure", 12), ("draw", 12), ("save", 12), ("measure", 13), ("save", 13)]),
    ],
)
def test_hooks_run_in_order_at_their_multiples_and_at_the_end_if_asked_for(
    tmp_path: Path, per_dispatch: int, num_steps: int, tail: list[tuple[str, int]]
):
    run = Run(tmp_path, num_steps, per_dispatch=per_dispatch)
    run.go(*three(run))
    assert run.trace == BEFORE_12 + tail
    run.assert_ended(num_steps, stopped=False)


def test_a_hook_of_no_multiples_runs_at_the_end_alone_and_only_if_asked_for(tmp_path: Path):
    run = Run(tmp_path, 5)
    run.go(run.hook("last", 0, last=True), run.hook("never", 0), run.hook("each", 1))
    assert run.trace == [*(("each", step) for step in range(1, 5)), ("last", 5)]


# ---- dispatches --------------------------------------------------------------------------------------


def test_the_host_reads_losses_a_few_dispatches_late_and_none_is_left_at_the_end(tmp_path: Path):
    run = Run(tmp_path, 6).go()
    assert run.behind == [min(k, LAG) for k in range(6)]
    run.assert_ended(6, stopped=False)


def test_several_steps_of_one_dispatch_have_the_batches_of_single_steps(tmp_path: Path):
    run = Run(tmp_path, 13, per_dispatch=PER_DISPATCH)
    run.go(run.hook("each", 5), log_every=7)
    # Single steps lead to an event: to 5 and 6, and from 6 to 7, 9, 10, 12 and 13.
    assert run.sizes == [3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    run.assert_ended(13, stopped=False)
    run = Run(tmp_path, 12, per_dispatch=PER_DISPATCH).go()
    assert run.sizes == [3] * 4
    run.assert_ended(12, stopped=False)


@single_or_several
def test_a_hook_runs_at_given_steps_too_and_no_dispatch_crosses_them(
    tmp_path: Path, per_dispatch: int
):
    run = Run(tmp_path, 12, per_dispatch=per_dispatch)
    run.go(run.hook("some", 0, at=(7, 12)), run.hook("each", 6, at=(2,)))
    assert run.trace == [("each", 2), ("each", 6), ("some", 7), ("some", 12)]
    assert per_dispatch == 1 or run.sizes == [1, 1, 1, 3, 1, 1, 1, 3]
    run.assert_ended(12, stopped=False)


# ---- stops -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signal", "per_dispatch", "step"),
    [
        (5, 1, 5),  # No hook is due.
        (6, 1, 6),  # Hooks are due.
        (12, 1, 12),  # The last step.
        (1, PER_DISPATCH, 3),  # A dispatch ends before the run stops.
        (10, PER_DISPATCH, 12),
    ],
)
def test_at_a_signal_the_hooks_for_stops_run_and_no_others(
    tmp_path: Path, signal: int, per_dispatch: int, step: int
):
    run = Run(tmp_path, per_dispatch=per_dispatch, signal=signal)
    run.go(*three(run), run.hook("also", 0, stopped=True))
    before = [event for event in BEFORE_12 if event[1] < step]
    assert run.trace == [*before, ("save", step), ("also", step)]
    run.assert_ended(step, stopped=True)


def test_a_signal_during_a_hook_stops_the_run_after_the_next_step(tmp_path: Path):
    run = Run(tmp_path, signaling=("draw", 6))
    run.go(*three(run))
    assert run.trace == [("save", 3), ("measure", 4), ("draw", 6), ("save", 6), ("save", 7)]
    run.assert_ended(7, stopped=True)


@pytest.mark.parametrize("name", ["measure", "save"])
def test_a_signal_during_the_last_hooks_is_told_and_nothing_runs_twice(tmp_path: Path, name: str):
    run = Run(tmp_path, signaling=(name, 12))
    run.go(*three(run))
    assert run.trace == [*BEFORE_12, ("measure", 12), ("save", 12)]
    run.assert_ended(12, stopped=True)


# ---- resumes -----------------------------------------------------------------------------------------


@single_or_several
@pytest.mark.parametrize(
    ("start", "again"), [(6, [("draw", 6)]), (7, []), (8, [("measure", 8)]), (9, [])]
)
def test_a_resumed_run_repeats_the_due_hooks_that_a_kill_may_have_cut_off(
    tmp_path: Path, per_dispatch: int, start: int, again: list[tuple[str, int]]
):
    run = Run(tmp_path, start=start, per_dispatch=per_dispatch)
    run.go(*three(run))
    after_start = [event for event in BEFORE_12 if event[1] > start]
    assert run.trace == [*again, *after_start, ("measure", 12), ("save", 12)]
    run.assert_ended(12, stopped=False)


@pytest.mark.parametrize("signaling", [None, ("measure", 12)])
def test_a_run_resumed_at_its_end_repeats_the_last_hooks_alone(
    tmp_path: Path, signaling: tuple[str, int] | None
):
    run = Run(tmp_path, start=12, signaling=signaling)
    run.go(*three(run))
    assert run.trace == [("measure", 12)]
    run.assert_ended(12, stopped=signaling is not None)


# ---- losses that are not finite ----------------------------------------------------------------------


@single_or_several
@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("bad", [2, 5, 6, 11, 12])
def test_after_a_loss_that_is_not_finite_no_hook_runs_not_even_those_for_stops(
    tmp_path: Path, bad: int, stops: bool, per_dispatch: int
):
    run = Run(tmp_path, bad=bad, signal=bad * stops, per_dispatch=per_dispatch)
    with pytest.raises(NotFinite, match=f"at step {bad}$"):
        run.go(*three(run))
    assert run.trace == [event for event in BEFORE_12 if event[1] < bad]


def test_a_loss_that_is_not_finite_ends_a_run_without_hooks_too(tmp_path: Path):
    with pytest.raises(NotFinite, match="at step 12$"):
        Run(tmp_path, bad=12).go()
