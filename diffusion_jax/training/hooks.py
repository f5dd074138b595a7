"""Hooks that a run calls between steps: metrics of held-out images, pictures, checkpoints, a trace."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from diffusion_jax.checkpoints.store import CheckpointStore
from diffusion_jax.lifecycle import ownership
from diffusion_jax.parallel import distributed
from diffusion_jax.reporting import pictures
from diffusion_jax.reporting.expected import Expected, Watch
from diffusion_jax.samplers.batches import Samples
from diffusion_jax.training.loop import Hook
from diffusion_jax.training.run_log import RunLog
from diffusion_jax.training.state import TrainState, average_part, to_parts


class Measure(NamedTuple):
    """Metrics of a model on held-out images.

    Attributes:
      name: One of the metrics; a logged step that has it is not measured again.
      figures: (params, the objective's aux) -> metrics by name, None where one is not finite; on every process.
      every: Steps between two measurements.
    """

    name: str
    figures: Callable[[Any, Any], dict[str, float | None]]
    every: int


def held_out_hook(measure: Measure, average: str, log: RunLog) -> Hook:
    """Logs metrics of an average of the parameters, also after the last step.

    Args:
      measure: The metrics, and how often they are measured.
      average: Name of the average.
      log: Destination of the row; a step that has one is not measured again.
    """

    def run(state: TrainState, step: int) -> None:
        def missing() -> bool:
            return not any(row["step"] == step and measure.name in row for row in log.rows)

        if distributed.broadcast_from_first(f"whether to measure {measure.name}", missing):
            log.metrics({"step": step, **measure.figures(state.ema[average], state.aux)})

    return Hook(run, measure.every, last=True, resumed=True)


def picture_path(workdir: Path, name: str, step: int) -> Path:
    """Returns the path of a picture of a training run."""
    return workdir / "samples" / f"{name}-{step:08}.png"


def draw_pictures(
    draw: Callable[[Any], Samples], params: Any, workdir: Path, log: RunLog, step: int
) -> Samples | None:
    """Draws a grid of samples, and the reverse process of the first of them; every process calls this.

    Returns:
      The samples on process 0, if all are finite; None otherwise.
    """
    result = draw(params)
    if jax.process_index() != 0:
        return None
    if not result.finite.all():
        cut_short = not result.stats.finished.all()
        advice = "reached sampler.max_steps; allow more, or larger sampler.rtol and sampler.atol"
        warnings.warn(
            f"no samples at step {step}: {(~result.finite).sum()} of {len(result.finite)} "
            f"{advice if cut_short else 'are not finite'}",
            stacklevel=1,
        )
        return None
    drawn = {"grid": result.grid(), "strip": result.strip()}
    for name, picture in drawn.items():
        assert picture is not None
        pictures.save_png(picture_path(workdir, name, step), picture)
        log.image(name, picture, step)
    return result


def pictures_hook(
    draw: Callable[[Any], Samples], average: str, workdir: Path, log: RunLog, *, every: int
) -> Hook:
    """Draws pictures every n steps but the last, whose pictures belong to the report.

    Args:
      draw: params -> samples with frames.
      average: Name of the average to draw from.
      workdir: Folder of the run.
      log: Log that shows the pictures too.
      every: Steps between two drawings; 0 for none.
    """

    def run(state: TrainState, step: int) -> None:
        def missing() -> bool:
            return not picture_path(workdir, "grid", step).exists()

        if distributed.broadcast_from_first("whether to draw", missing):
            draw_pictures(draw, state.ema[average], workdir, log, step)
            if not missing():
                log.say(f"step {step}: samples {picture_path(workdir, 'grid', step)}")

    return Hook(run, every, resumed=True)


def expected_hook(expected: Expected | None, log: RunLog, *, every: int) -> Hook:
    """Says once where the loss leaves the band of the run's recipe.

    Args:
      expected: The recipe's curves; None: there are none, and the hook is never due.
      log: The run's log.
      every: Steps between two rows of the log.
    """
    if expected is None:
        return Hook(lambda state, step: None, 0)
    watch = Watch(expected)
    watch.read(log.rows)  # What an earlier start said is not said again.

    def run(state: TrainState, step: int) -> None:
        if line := watch.read(log.rows):
            log.say(line)

    return Hook(run, every, last=True)


def checkpoint_hook(
    store: CheckpointStore,
    meta: Callable[[int], dict[str, Any]],
    *,
    every: int,
    after: CheckpointStore | None = None,
) -> Hook:
    """Starts a checkpoint, also after the last step and when a signal stops the run.

    Args:
      store: Destination of the checkpoint.
      meta: step -> the JSON saved with it.
      every: Steps between two checkpoints.
      after: Store whose save must end first: the snapshots up to a checkpoint are there whenever it is.
    """

    def run(state: TrainState, step: int) -> None:
        ownership.check()  # Otherwise the save would recreate a deleted folder.
        if after is not None:
            after.wait()
        store.save(step, to_parts(state), meta(step))

    return Hook(run, every, last=True, stopped=True)


def snapshot_hook(
    store: CheckpointStore,
    names: Iterable[str],
    meta: dict[str, Any],
    *,
    every: int,
    after: CheckpointStore,
) -> Hook:
    """Saves averages of the parameters every n steps but the last, whose averages are in its checkpoint.

    Args:
      store: Destination of the snapshots.
      names: Names of the averages.
      meta: The JSON saved with them.
      every: Steps between two snapshots; 0 for none.
      after: Store of the checkpoints, whose save must end first: the processes meet at one save at a time.
    """
    names = tuple(names)

    def run(state: TrainState, step: int) -> None:
        ownership.check()
        after.wait()
        store.save(step, {average_part(name): state.ema[name] for name in names}, meta)

    return Hook(run, every, resumed=True)


def profile_hooks(
    steps: tuple[int, int] | None, workdir: Path, log: RunLog, *, start: int
) -> list[Hook]:
    """Writes a trace of some steps, of every process, to WORKDIR/profile; a signal ends it early.

    Args:
      steps: The first and the last of them, from 2 on; None: there are none.
      workdir: Folder of the run.
      log: The run's log, which says how to open it.
      start: Step that the run begins or goes on from: of steps before it there is no trace.
    """
    if steps is None:
        return []
    first, last = max(steps[0], start + 1), steps[1]
    if first > last:
        log.say(f"train.profile: steps {steps[0]} to {last} are done already; no trace is written")
        return []
    folder, begun = workdir / "profile", False

    def begin(state: TrainState, step: int) -> None:
        nonlocal begun
        begun = True
        jax.profiler.start_trace(folder)

    def end(state: TrainState, step: int) -> None:
        nonlocal begun
        if begun:
            begun = False
            jax.profiler.stop_trace()
            log.say(f"trace of steps {first} to {step}: tensorboard --logdir={folder}")

    return [
        Hook(begin, 0, resumed=True, at=(first - 1,)),
        Hook(end, 0, stopped=True, at=(last,)),
    ]
