"""`--mode=train`: trains until done or stopped, and resumes where it was."""

import contextlib
import dataclasses
import functools
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib, data
from diffusion_jax.addresses import is_local
from diffusion_jax.checkpoints.store import CheckpointStore
from diffusion_jax.commands import train_report
from diffusion_jax.commands.environment import own
from diffusion_jax.commands.held_out import held_out_measures
from diffusion_jax.commands.signals import EXIT_STOPPED
from diffusion_jax.errors import InputError, RunError
from diffusion_jax.experiment import build, sampling
from diffusion_jax.experiment.build import AVERAGE, Experiment
from diffusion_jax.experiment.training import Training, make_training, make_training_mesh
from diffusion_jax.lifecycle import stopping
from diffusion_jax.models.networks import count_parameters
from diffusion_jax.parallel import distributed, sharding
from diffusion_jax.parallel.preemption import stop_point
from diffusion_jax.reporting import classes, results
from diffusion_jax.runs.run import (
    SAME_CLASSES,
    checkpoint_folder,
    classes_moved,
    saved_checkpoint_dir,
)
from diffusion_jax.samplers.batches import COLUMNS, Samples, make_batch_sampler
from diffusion_jax.training.hooks import (
    checkpoint_hook,
    draw_pictures,
    held_out_hook,
    pictures_hook,
)
from diffusion_jax.training.loop import Hook, Plan, run_loop
from diffusion_jax.training.meter import Meter, NotFinite
from diffusion_jax.training.run_log import RunLog
from diffusion_jax.training.state import TrainState, from_parts, to_parts
from diffusion_jax.training.watchdog import Watchdog
from diffusion_jax.writing.writable import check_writable

ADVICE = "Use another --workdir, or --allow_config_change to resume with it"


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
    fields = config.train
    mesh = make_training_mesh(config)
    own(workdir, "train")
    store = _open_store(config, workdir)
    saved = store.meta()
    if saved is not None:
        config = config_lib.with_num_classes(config, saved["data"]["num_classes"])
    _check_resume(saved, config, allow_config_change)
    split = build.load_split(config, "train")
    _check_classes(saved, split, config, allow_config_change)
    exp = build.build(config, split.image_shape, split.num_classes, split.class_names)
    config = exp.config
    training = make_training(exp, mesh)
    measures = held_out_measures(exp, mesh)
    if saved is None:
        state, meta = training.create(), {}
    else:
        state, meta = _restore(training, store, split, config.data.name, allow_config_change)
    _own_checkpoints(store)
    if jax.process_index() == 0:
        of_data = classes.table(split.class_names, split.class_counts)
        results.write_text(workdir / "config.json", config_lib.to_json(config, of_data))
    start = int(state.step)
    if start > fields.num_steps:
        raise InputError(
            f"train.num_steps is {fields.num_steps}; this run has done {start} steps already"
        )
    stopping.check()
    log = RunLog(workdir, start, fields.num_steps, writes=jax.process_index() == 0)
    log.say(
        f"{config.data.name}: {train_report.images_in_words(split, config.model.num_classes)}\n"
        f"{count_parameters(state.params):,} parameters; {mesh.size} device(s); "
        + (f"resuming at step {start}" if start else f"workdir {workdir}")
    )
    if fields.num_steps < config.optimizer.warmup_steps:
        warnings.warn(
            f"train.num_steps is {fields.num_steps}, but the learning rate rises until step "
            f"{config.optimizer.warmup_steps}; set --config.optimizer.warmup_steps",
            stacklevel=1,
        )
    meter = Meter(
        log,
        start=start,
        num_steps=fields.num_steps,
        log_every=fields.log_every,
        batch_size=fields.batch_size,
        started=started,
        sums=meta.get("sums"),
    )
    draw = _picture_sampler(exp, mesh)
    position = functools.partial(_meta, config, split, data.fingerprint(split), meter)
    hooks = [
        *(held_out_hook(measure, AVERAGE, log) for measure in measures),
        pictures_hook(draw, AVERAGE, workdir, log, every=fields.sample_every),
        checkpoint_hook(store, position, every=fields.checkpoint_every),
    ]
    try:
        with contextlib.closing(store), contextlib.closing(log):
            state, step, stopped = _run(config, training, split, state, start, meter, hooks)
            store.wait()
            if stopped:
                log.say(
                    f"{stopping.requested() or 'SIGTERM'}: saved step {step}; run the same command to go on"
                )
                return EXIT_STOPPED
            log.say(f"trained {step} steps; drawing {fields.sample_images} samples")
            drawing = time.monotonic()
            draw_pictures(draw, state.ema[AVERAGE], workdir, log, step)
            stopping.check()
            if jax.process_index() == 0:
                seconds = time.monotonic() - drawing
                train_report.write_report(
                    config, split, workdir, log, state.params, step, seconds, started
                )
    except NotFinite as error:
        kept = store.steps()
        raise RunError(
            f"{error}; "
            + (f"the last good checkpoint is step {kept[-1]}" if kept else "nothing was saved yet")
            + "; try a smaller optimizer.learning_rate"
        ) from error
    return 0


def _open_store(config: ConfigDict, workdir: Path) -> CheckpointStore:
    """Opens the run's checkpoints, which are perhaps elsewhere than in its workdir."""
    fields = config.train
    store = CheckpointStore(
        checkpoint_folder(workdir, fields.checkpoint_dir),
        keep_last=fields.keep_last,
        keep_every=fields.keep_every,
    )
    is_there = Path(store.directory).exists
    if fields.checkpoint_dir is not None or distributed.first_decides("whose they are", is_there):
        _own_checkpoints(store)

    def check_moved() -> None:
        before = CheckpointStore(checkpoint_folder(workdir, saved_checkpoint_dir(workdir)))
        if before.directory != store.directory and before.steps() and not store.steps():
            raise InputError(
                f"this run's checkpoints are in {before.directory}, and none in {store.directory}: move them, "
                "or set train.checkpoint_dir to where they are, or use another --workdir"
            )

    distributed.first_decides("where the checkpoints are", check_moved)
    return store


def _own_checkpoints(store: CheckpointStore) -> None:
    """Makes the folder of the checkpoints this command's own: another workdir may name it, the default one too.

    A run that is refused before its first step leaves no such folder behind, so a new one is made as late as that.
    """
    distributed.first_decides(
        "probe the folder of checkpoints",
        lambda: check_writable(store.directory, "cannot write checkpoints to"),
    )
    if is_local(store.directory):
        own(Path(store.directory), "train")


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


def _check_classes(
    meta: dict[str, Any] | None, split: data.Split, config: ConfigDict, allow: bool
) -> None:
    """Refuses to continue a run whose labels have come to mean other classes; warns if that is allowed."""
    names = meta["data"].get("class_names", ()) if meta else split.class_names
    if changed := classes_moved(names, split, config.data.name):
        if not allow:
            raise InputError(f"this run {changed}; {SAME_CLASSES}. {ADVICE}")
        warnings.warn(f"this run {changed}; training goes on with these", stacklevel=1)


def _restore(
    training: Training,
    store: CheckpointStore,
    split: data.Split,
    name: str,
    allow_change: bool,
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state to go on from, and the JSON that was saved with it."""
    checkpoint = store.restore(to_parts(training.template))
    assert checkpoint is not None
    before = checkpoint.meta["data"]
    if before["num_images"] != split.num_images and not allow_change:
        raise InputError(
            f"this run was trained on {before['num_images']} images; {name} now has {split.num_images}. {ADVICE}"
        )
    if before["fingerprint"] != data.fingerprint(split) and not allow_change:
        raise InputError(f"this run was trained on other images than {name} now has. {ADVICE}")
    return from_parts(checkpoint.parts), checkpoint.meta


def _meta(
    config: ConfigDict, split: data.Split, fingerprint: str, meter: Meter, step: int
) -> dict[str, Any]:
    """Returns what a checkpoint holds besides the state."""
    position = {
        "seed": config.seed,
        "batch": step,
        "epoch": step * config.train.batch_size / split.num_images,
        "num_images": split.num_images,
        "fingerprint": fingerprint,
        "image_shape": split.image_shape,
        "num_classes": split.num_classes,
        "class_names": split.class_names,
        "class_counts": split.class_counts,
    }
    return {
        "config": json.loads(config_lib.to_json(config)),
        "data": position,
        "sums": dataclasses.asdict(meter.sums),
    }


def _picture_sampler(exp: Experiment, mesh: jax.sharding.Mesh) -> Callable[[Any], Samples]:
    """Returns params -> the samples that the run's pictures show: always the same images."""
    sample, num_images = exp.config.sample, exp.config.train.sample_images
    sampler = sampling.make_sampler(exp)
    draw = make_batch_sampler(
        sampling.make_draw(exp, num_frames=min(COLUMNS, sampler.grid.num_steps + 1)),
        mesh,
        num_images,
        num_classes=exp.config.model.num_classes,
        class_names=exp.class_names,
        with_frames=True,
    )
    settings = sampling.traced_options(exp.config)
    return lambda params: draw(params, settings, np.arange(num_images), sample.labels)


def _run(
    config: ConfigDict,
    training: Training,
    split: data.Split,
    state: TrainState,
    start: int,
    meter: Meter,
    hooks: list[Hook],
) -> tuple[TrainState, int, bool]:
    """Runs the loop; returns the state, its step and whether a signal stopped it."""
    fields, mesh = config.train, training.mesh
    batches = data.batches(
        split,
        seed=config.seed,
        batch_size=fields.batch_size,
        start=start,
        stop=fields.num_steps,
        rows=sharding.local_rows(sharding.batch_sharding(mesh), fields.batch_size),
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
            state,
            training.steps,
            batches,
            Plan(start, fields.num_steps, training.per_dispatch, fields.log_every),
            mesh=mesh,
            meter=meter,
            hooks=hooks,
            ask_stop=ask_stop,
            watchdog=watchdog,
        )
