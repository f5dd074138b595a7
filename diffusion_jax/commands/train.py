"""`--mode=train`: trains until done or stopped, and resumes where it was."""

from __future__ import annotations

import contextlib
import functools
import json
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib, data
from diffusion_jax.addresses import is_local
from diffusion_jax.checkpoints.store import CheckpointStore
from diffusion_jax.commands import train_report
from diffusion_jax.commands.environment import own
from diffusion_jax.commands.row_figures import row_figures
from diffusion_jax.commands.signals import EXIT_STOPPED
from diffusion_jax.commands.training_page import finish_page, page_hook
from diffusion_jax.errors import InputError, RunError
from diffusion_jax.experiment import build, sampling
from diffusion_jax.experiment.build import Experiment
from diffusion_jax.experiment.metrics import held_out_measures
from diffusion_jax.experiment.training import (
    Training,
    batch_template,
    make_loggers,
    make_training,
    make_training_mesh,
    picture_sampler,
    warn_of_the_optimizer,
)
from diffusion_jax.lifecycle import stopping
from diffusion_jax.options.kinds import Steps
from diffusion_jax.parallel import distributed, sharding
from diffusion_jax.parallel.preemption import stop_point
from diffusion_jax.reporting import classes, results
from diffusion_jax.runs import resume
from diffusion_jax.runs.initial import begin
from diffusion_jax.runs.parameters import snapshot_store
from diffusion_jax.runs.run import checkpoint_folder, saved_checkpoint_dir
from diffusion_jax.samplers.batches import Samples
from diffusion_jax.training.hooks import (
    Measure,
    checkpoint_hook,
    draw_pictures,
    expected_hook,
    held_out_hook,
    pictures_hook,
    profile_hooks,
    snapshot_hook,
)
from diffusion_jax.training.loop import Hook, Plan, run_loop
from diffusion_jax.training.meter import Meter, NotFinite
from diffusion_jax.training.run_log import RunLog
from diffusion_jax.training.state import TrainState
from diffusion_jax.training.tracked import AVERAGE
from diffusion_jax.training.watchdog import Watchdog
from diffusion_jax.writing.writable import check_writable

Draw = Callable[[Any], Samples]  # Parameters -> the samples of the run's pictures.


def train(
    config: ConfigDict,
    workdir: Path,
    *,
    started: float,
    allow_config_change: bool = False,
) -> int:
    """Trains to config.train.num_steps and draws the results; returns the exit status.

    Args:
      config: A config that `build.validate` accepts.
      workdir: Folder of the run; a run that is there already is continued.
      started: `time.monotonic()` when the command began.
      allow_config_change: Resume even if the data or fields that alter the result have changed.

    Raises:
      InputError: Data, model, devices or workdir do not fit the config or the run.
      RunError: Loss or gradients not finite; checkpoints damaged; disk full.
    """
    mesh = make_training_mesh(config)
    own(workdir, "train")
    store = _open_store(config, workdir)
    resume.check_trained(store.meta(), workdir)
    work, meta = _begin(config, mesh, store, allow_config_change)
    config, start, num_steps = work.config, int(work.state.step), work.config.train.num_steps
    writes = jax.process_index() == 0
    if writes:
        _write_config(work, workdir)
    stopping.check()
    log = RunLog(workdir, start, num_steps, writes=writes, loggers=make_loggers(config))
    train_report.say_beginning(*work[:2], work.state, work.origin, mesh.size, log, workdir)
    warn_of_the_optimizer(config)
    meter = _meter(work, log, started, meta)
    draw = picture_sampler(work.exp, mesh)
    snapshots = snapshot_store(store)
    hooks = _hooks(work, store, snapshots, meter, log, workdir, draw)
    with _last_good_named(store), _closing(store, snapshots, log):
        state, step, stopped = _run(work, meter, hooks)
        store.wait()
        if stopped:
            log.say(_stopped_at(step, workdir))
            return EXIT_STOPPED
        _finish(work, state, step, draw, log, workdir, started)
    return 0


def _stopped_at(step: int, workdir: Path) -> str:
    """Returns what a training says that a signal has stopped."""
    signal, alone = stopping.requested() or "SIGTERM", shlex.quote(f"--workdir={workdir}")
    return f"{signal}: saved step {step}; run the same command to go on, or with {alone} alone"


class _Work(NamedTuple):
    """What is trained, and from which state on.

    Attributes:
      exp: Process, network and config.
      split: Images to train on.
      training: State and compiled steps on the mesh.
      measures: What is measured on test images.
      state: Where it begins.
      origin: Where its first parameters came from, if from another run.
    """

    exp: Experiment
    split: data.Split
    training: Training
    measures: list[Measure]
    state: TrainState
    origin: dict[str, Any] | None

    @property
    def config(self) -> ConfigDict:
        return self.exp.config


def _begin(
    config: ConfigDict, mesh: jax.sharding.Mesh, store: CheckpointStore, allow_change: bool
) -> tuple[_Work, dict[str, Any]]:
    """Returns the work, new or resumed, and the JSON of the checkpoint that it goes on from."""
    saved = store.meta()
    if saved is not None:
        config = config_lib.with_num_classes(config, saved["data"]["num_classes"])
        if not allow_change:
            before = config_lib.from_dict(saved["config"])
            resume.check_unchanged(config_lib.changes(before, config))
    split = build.load_split(config, "train")
    resume.check_classes(saved, split, config.data.name, allow_change)
    exp = build.build(config, split.image_shape, split.num_classes, split.class_names)
    training = make_training(exp, mesh)
    measures = held_out_measures(exp, mesh, has_test=bool(split.sizes.get("test")))
    if saved is None:
        state, meta = begin(exp, training)
    else:
        state, meta = resume.restore_state(training, store, split, exp.data_name, allow_change)
    resume.check_snapshots(snapshot_store(store), int(state.step), exp.config_hash)
    _own_checkpoints(store)
    if (done := int(state.step)) > (last := config.train.num_steps):
        raise InputError(f"train.num_steps is {last}; this run has done {done} steps already")
    return _Work(exp, split, training, measures, state, meta.get("init_from")), meta


def _meter(work: _Work, log: RunLog, started: float, meta: dict[str, Any]) -> Meter:
    config, fields = work.config, work.config.train
    return Meter(
        log,
        start=int(work.state.step),
        num_steps=fields.num_steps,
        log_every=fields.log_every,
        batch_size=fields.batch_size,
        started=started,
        sums=meta.get("sums"),
        figures=row_figures(
            work.training,
            batch_template(work.exp, work.training.mesh),
            build.learning_rate_of(config),
            config.model.dtype,
        ),
    )


def _write_config(work: _Work, workdir: Path) -> None:
    of_data = classes.table(work.split.class_names, work.split.class_counts)
    results.write_text(workdir / "config.json", config_lib.to_json(work.config, of_data))


def _hooks(
    work: _Work,
    store: CheckpointStore,
    snapshots: CheckpointStore,
    meter: Meter,
    log: RunLog,
    workdir: Path,
    draw: Draw,
) -> list[Hook]:
    fields, report = work.config.train, work.config.report
    profile = fields.profile and Steps.ends(fields.profile)
    fingerprint = data.fingerprint(work.split)
    position = functools.partial(
        resume.describe,
        *(json.loads(config_lib.to_json(work.config)), work.split, fingerprint, meter),
        seed=work.config.seed,
        batch_size=fields.batch_size,
        origin=work.origin,
    )
    return [
        *(held_out_hook(measure, AVERAGE, log) for measure in work.measures),
        expected_hook(work.exp.expected, log, every=fields.log_every),
        pictures_hook(draw, AVERAGE, workdir, log, every=fields.sample_every),
        snapshot_hook(
            snapshots,
            build.tracked_of(work.config).length_names.values(),
            {"config_hash": work.exp.config_hash},
            every=work.config.optimizer.ema_snapshot_every,
            after=store,
        ),
        checkpoint_hook(store, position, every=fields.checkpoint_every, after=snapshots),
        *profile_hooks(profile, workdir, log, start=meter.step),
        page_hook(workdir, report.runs, report.paper, every=report.every),
    ]


def _finish(
    work: _Work,
    state: TrainState,
    step: int,
    draw: Draw,
    log: RunLog,
    workdir: Path,
    started: float,
) -> None:
    """Draws the last pictures, and writes the report."""
    sampler = sampling.sampler_of(sampling.for_pictures(work.exp))
    log.say(
        f"trained {step} steps; drawing {work.config.train.sample_images} samples "
        f"({sampling.for_pictures(work.exp).sampler_name}, {sampler.grid.num_steps} steps)"
    )
    drawing = time.monotonic()
    samples = draw_pictures(draw, state.ema[AVERAGE], workdir, log, step)
    stopping.check()
    if jax.process_index() == 0:
        seconds = time.monotonic() - drawing
        train_report.write_report(
            *(work.exp, work.split, workdir, log, state.params, step, seconds, started),
            origin=work.origin,
        )
        report = work.config.report
        finish_page(work.exp, workdir, report.runs, report.paper, samples, step, log.say)


@contextlib.contextmanager
def _closing(*closed: CheckpointStore | RunLog) -> Iterator[None]:
    """Closes all of them at the end, the last one first."""
    with contextlib.ExitStack() as stack:
        for one in closed:
            stack.enter_context(contextlib.closing(one))
        yield


@contextlib.contextmanager
def _last_good_named(store: CheckpointStore) -> Iterator[None]:
    """Names the newest checkpoint where loss or gradients are not finite."""
    try:
        yield
    except NotFinite as error:
        kept = store.steps()
        raise RunError(
            f"{error}; "
            + (f"the last good checkpoint is step {kept[-1]}" if kept else "nothing was saved yet")
            + "; try a smaller optimizer.learning_rate"
        ) from error


def _open_store(config: ConfigDict, workdir: Path) -> CheckpointStore:
    """Opens the run's checkpoints, which are perhaps elsewhere than in its workdir."""
    fields = config.train
    store = CheckpointStore(
        checkpoint_folder(workdir, fields.checkpoint_dir),
        keep_last=fields.keep_last,
        keep_every=fields.keep_every,
    )
    is_there = Path(store.directory).exists
    if fields.checkpoint_dir is not None or distributed.broadcast_from_first(
        "whose they are", is_there
    ):
        _own_checkpoints(store)

    def check_moved() -> None:
        before = CheckpointStore(checkpoint_folder(workdir, saved_checkpoint_dir(workdir)))
        if before.directory != store.directory and before.steps() and not store.steps():
            raise InputError(
                f"this run's checkpoints are in {before.directory}, and none in {store.directory}: move them, "
                "or set train.checkpoint_dir to where they are, or use another --workdir"
            )

    distributed.broadcast_from_first("where the checkpoints are", check_moved)
    return store


def _own_checkpoints(store: CheckpointStore) -> None:
    """Makes the folder of the checkpoints this command's own: another workdir may name it, the default one too.

    A run that is refused before its first step leaves no such folder behind, so a new one is made as late as that.
    """
    distributed.broadcast_from_first(
        "probe the folder of checkpoints",
        lambda: check_writable(store.directory, "cannot write checkpoints to"),
    )
    if is_local(store.directory):
        own(Path(store.directory), "train")


def _run(work: _Work, meter: Meter, hooks: list[Hook]) -> tuple[TrainState, int, bool]:
    """Runs the loop; returns the state, its step and whether a signal stopped it."""
    fields, training, start = work.config.train, work.training, int(work.state.step)
    batches = data.batches(
        work.split,
        seed=work.config.seed,
        batch_size=fields.batch_size,
        start=start,
        stop=fields.num_steps,
        rows=sharding.local_rows(sharding.batch_sharding(training.mesh), fields.batch_size),
    )
    with contextlib.ExitStack() as stack:
        if jax.process_count() > 1:  # All stop at the same step, and none by itself.
            stack.enter_context(stopping.held())
        ask_stop = lambda: False  # noqa: E731
        if start < fields.num_steps:  # A finished run has nothing to save.
            requested = lambda: stopping.requested() is not None  # noqa: E731
            ask_stop = stack.enter_context(stop_point(requested))
        watchdog = stack.enter_context(contextlib.closing(Watchdog(fields.step_timeout)))
        return run_loop(
            work.state,
            training.steps,
            batches,
            Plan(start, fields.num_steps, training.per_dispatch, fields.log_every),
            mesh=training.mesh,
            meter=meter,
            hooks=hooks,
            ask_stop=ask_stop,
            watchdog=watchdog,
        )
