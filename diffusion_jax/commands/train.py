"""`--mode=train`: trains until done or stopped, and resumes where it was."""

import collections
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import build, data
from diffusion_jax import config as config_lib
from diffusion_jax.build import Experiment, make_optimizer_of
from diffusion_jax.checkpoints.store import CheckpointStore
from diffusion_jax.commands.signals import EXIT_STOPPED, StopSignals
from diffusion_jax.errors import InputError, RunError
from diffusion_jax.keys import stream
from diffusion_jax.models import count_parameters
from diffusion_jax.parallel import distributed, sharding
from diffusion_jax.reporting import results
from diffusion_jax.training import milestones
from diffusion_jax.training.meter import Meter, NotFinite
from diffusion_jax.training.milestones import Run
from diffusion_jax.training.run_log import RunLog
from diffusion_jax.training.state import MetricSums, TrainState, abstract_state, create_state
from diffusion_jax.training.step import TrainStep, make_multi_step, make_train_step

# The host reads the metrics of a dispatch only when this many later ones are queued: the device
# never waits for it, yet a loss that is not finite, or a signal, is noticed soon.
LAG = 2
ADVICE = "Use another --workdir, or --allow_config_change to resume with it"
STOP_POLL = 10  # Dispatches between two agreements of several processes on whether to stop.


def train(
    config: ConfigDict,
    workdir: Path,
    signals: StopSignals,
    *,
    started: float,
    allow_config_change: bool = False,
) -> int:
    """Trains to config.train.num_steps and draws the results; returns the exit status.

    Args:
      config: A config that `build.validate` accepts.
      workdir: Folder of the run; a run that is there already is continued.
      signals: Where SIGINT and SIGTERM are noticed.
      started: `time.monotonic()` when the command began.
      allow_config_change: Resume even if the data or fields that alter the result have changed.

    Raises:
      InputError: Data, model, devices or workdir do not fit the config or the run.
      RunError: Loss or gradients not finite; checkpoints damaged; disk full.
    """
    mesh = sharding.make_mesh(config.mesh.data)
    _check_batch_size(config, mesh.size)
    build.check_writable(workdir)
    store = CheckpointStore(
        workdir / "checkpoints",
        keep_last=config.train.keep_last,
        keep_every=config.train.keep_every,
    )
    _check_resume(store.meta(), config, allow_config_change)
    split = build.load_split(config, "train")
    exp = build.build(config, split.image_shape, split.num_classes)
    held_out = milestones.make_held_out(config, exp, mesh)
    state = _restore_or_create(exp, store, mesh, split, allow_config_change)
    if jax.process_index() == 0:
        results.write_text(workdir / "config.json", config_lib.to_json(config))
    start = int(state.step)
    if start > config.train.num_steps:
        raise InputError(
            f"train.num_steps is {config.train.num_steps}; this run has done {start} steps already"
        )
    log = RunLog(workdir, start, config.train.num_steps, writes=jax.process_index() == 0)
    log.say(
        f"{config.data.name}: {split.num_images} images {'x'.join(map(str, split.image_shape))}; "
        f"{count_parameters(state.params):,} parameters; {mesh.size} device(s); "
        + (f"resuming at step {start}" if start else f"workdir {workdir}")
    )
    run = Run(config, workdir, exp, mesh, split, held_out, store, log, started)
    try:
        with contextlib.closing(store), contextlib.closing(log):
            state, stopped = _loop(run, state, signals)
            if not stopped:
                milestones.finish(run, state)
    except NotFinite as error:
        kept = store.steps()
        raise RunError(
            f"{error}; "
            + (f"the last good checkpoint is step {kept[-1]}" if kept else "nothing was saved yet")
            + "; try a smaller optimizer.learning_rate"
        ) from error
    return EXIT_STOPPED if stopped else 0


def _check_batch_size(config: ConfigDict, devices: int) -> None:
    batch, accumulate = config.train.batch_size, config.train.accumulate
    if batch % (devices * accumulate):
        raise InputError(
            f"train.batch_size is {batch}; it must be divisible by {devices * accumulate} "
            f"({devices} devices x train.accumulate {accumulate})"
        )


def _check_resume(meta: dict[str, Any] | None, config: ConfigDict, allow: bool) -> None:
    """Refuses to continue a run under a config that would give another result."""
    if meta is None or allow:
        return
    changed = config_lib.changes(config_lib.from_dict(meta["config"]), config)
    if changed:
        raise InputError(
            "this run was started with another config (field: saved -> now): "
            f"{'; '.join(changed)}. {ADVICE}"
        )


def _restore_or_create(
    exp: Experiment,
    store: CheckpointStore,
    mesh: jax.sharding.Mesh,
    split: data.Split,
    allow_change: bool,
) -> TrainState:
    optimizer, everywhere = make_optimizer_of(exp.config), sharding.replicated(mesh)
    checkpoint = store.restore(abstract_state(exp.model, optimizer, everywhere))
    if checkpoint is None:
        create = jax.jit(
            lambda key: create_state(key, exp.model, optimizer), out_shardings=everywhere
        )
        return create(stream(exp.config.seed, "init"))
    before, name = checkpoint.meta["data"], exp.config.data.name
    if before["num_images"] != split.num_images and not allow_change:
        raise InputError(
            f"this run was trained on {before['num_images']} images; {name} now has {split.num_images}. {ADVICE}"
        )
    if before.get("fingerprint") not in (None, data.fingerprint(split)) and not allow_change:
        raise InputError(f"this run was trained on other images than {name} now has. {ADVICE}")
    return checkpoint.state


def dispatch_sizes(
    start: int, num_steps: int, per_dispatch: int, everys: tuple[int, ...]
) -> Iterator[int]:
    """Yields the number of steps of each dispatch: `per_dispatch`, or 1 on the way to an event.

    A dispatch never crosses a multiple of `per_dispatch` or of one of `everys`, nor the end. Where the
    dispatches lie depends on the step alone, so a resumed run repeats the very same programs.
    """
    step = start
    while step < num_steps:
        edges = [step // every * every + every for every in (per_dispatch, *everys) if every]
        whole = min(num_steps, *edges) - step == per_dispatch
        size = per_dispatch if whole else 1
        yield size
        step += size


def _compiled_steps(run: Run) -> tuple[int, dict[int, Any]]:
    """Returns the steps of a full dispatch, and size -> jitted (state, batch) -> (state, metrics)."""
    config = run.config
    per_dispatch = config.train.steps_per_dispatch
    if per_dispatch is None:
        per_dispatch = 1 if jax.default_backend() == "cpu" else 10
    train_step = make_train_step(
        run.exp.loss_fn(),
        make_optimizer_of(config),
        stream(config.seed, "train"),
        num_timesteps=config.process.num_timesteps,
        ema_decay=config.optimizer.ema_decay,
        flip=config.data.random_flip,
        conditional=run.exp.conditional,
        accumulate=config.train.accumulate,
        log_every=config.train.log_every,
    )

    def compiled(step: TrainStep) -> Any:
        def with_metrics(state: TrainState, batch: Any) -> tuple[TrainState, MetricSums]:
            state = step(state, batch)
            return state, state.metrics  # A copy that outlives the donated state.

        return jax.jit(with_metrics, donate_argnums=0, out_shardings=sharding.replicated(run.mesh))

    return per_dispatch, {
        size: compiled(make_multi_step(train_step, size)) for size in {1, per_dispatch}
    }


def _loop(run: Run, state: TrainState, signals: StopSignals) -> tuple[TrainState, bool]:
    """Trains to the end; returns the state, and whether a signal stopped it (then it is saved)."""
    config, start = run.config.train, int(state.step)
    if start > 0:
        milestones.measure(run, state, start)
    if start >= config.num_steps:
        return state, False
    per_dispatch, steps = _compiled_steps(run)
    events = (config.checkpoint_every, config.sample_every, config.eval_every)
    rows = sharding.local_rows(sharding.batch_sharding(run.mesh), config.batch_size)
    batches = data.batches(
        run.split,
        seed=run.config.seed,
        batch_size=config.batch_size,
        start=start,
        stop=config.num_steps,
        rows=rows,
    )
    pending: collections.deque[tuple[int, MetricSums]] = collections.deque()
    meter = Meter(
        run.log,
        start=start,
        num_steps=config.num_steps,
        log_every=config.log_every,
        batch_size=config.batch_size,
        started=run.started,
    )
    done = start
    with signals.deferred():
        sizes = dispatch_sizes(start, config.num_steps, per_dispatch, (config.log_every, *events))
        for count, size in enumerate(sizes):
            with meter.waiting():
                batch = _next_batch(batches, size, run.mesh)
            state, metrics = steps[size](state, batch)
            done += size
            pending.append((done, metrics))
            poll = jax.process_count() == 1 or count % STOP_POLL == 0
            stop = poll and distributed.any_process(signals.requested is not None)
            event = stop or done == config.num_steps or any(e and done % e == 0 for e in events)
            while len(pending) > (0 if event else LAG):
                meter.read(*pending.popleft())
            if event:
                with meter.paused():
                    _pass_milestone(run, state, done, stop)
            if stop:
                break
        # Again, since a signal may have come during the last step's checkpoint.
        stopped = distributed.any_process(signals.requested is not None)
    if stopped:
        run.store.wait()
        run.log.say(
            f"{signals.requested or 'stopped'}: saved step {done}; run the same command to go on"
        )
    return state, stopped


def _next_batch(batches: Iterator[data.Batch], size: int, mesh: jax.sharding.Mesh) -> Any:
    if size == 1:
        return sharding.put(sharding.batch_sharding(mesh), next(batches))
    stacked = jax.tree.map(lambda *parts: np.stack(parts), *[next(batches) for _ in range(size)])
    return sharding.put(sharding.batch_sharding(mesh, axis=1), stacked)


def _pass_milestone(run: Run, state: TrainState, done: int, stop: bool) -> None:
    config = run.config.train
    if stop:
        milestones.save(run, state, done)
        run.store.wait()
        return
    milestones.measure(run, state, done)
    if done == config.num_steps or done % config.checkpoint_every == 0:
        milestones.save(run, state, done)
