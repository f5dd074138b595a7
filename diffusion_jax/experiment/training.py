"""Training of a config on a mesh: the state, its shardings, and the compiled steps."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import build, sampling
from diffusion_jax.experiment.build import Experiment
from diffusion_jax.keys import stream
from diffusion_jax.parallel import sharding
from diffusion_jax.samplers.batches import COLUMNS, Samples, make_batch_sampler
from diffusion_jax.training.loggers import LOGGERS, Logger
from diffusion_jax.training.loop import compile_steps
from diffusion_jax.training.state import (
    TrainState,
    abstract_like,
    create_state,
    state_from,
    state_shardings,
)
from diffusion_jax.training.step import DeviceBatch, make_train_step


@dataclasses.dataclass(frozen=True)
class Training:
    """The training of an experiment on a mesh; nothing is computed or compiled before it is called.

    Attributes:
      mesh: Devices.
      template: Shapes, types and shardings of the state's arrays.
      create: () -> the state at step 0, with random parameters.
      begin: Parameters, with the template's shardings -> the state at step 0 that has them.
      per_dispatch: Steps of one dispatch.
      steps: Number of steps of a dispatch (1, `per_dispatch`) -> jitted (state, batch) -> (state, metrics).
    """

    mesh: jax.sharding.Mesh
    template: TrainState
    create: Callable[[], TrainState]
    begin: Callable[[Any], TrainState]
    per_dispatch: int
    steps: Mapping[int, Any]


def make_training_mesh(
    config: ConfigDict, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
    """Returns the mesh that the config's batches are divided over.

    Args:
      config: A valid config.
      devices: What there is; None: this run's devices.

    Raises:
      InputError: The devices are not those of the mesh, or the batch cannot be divided over them.
    """
    batch, accumulate = config.train.batch_size, config.train.accumulate
    micro_batch, rest = divmod(batch, accumulate)
    mesh = sharding.make_mesh(
        config.mesh.data,
        config.mesh.fsdp,
        batch_size=1 if rest else micro_batch,
        devices=devices,
    )
    check_divisible(config, mesh.size)
    return mesh


def check_divisible(config: ConfigDict, num_devices: int) -> None:
    """Raises an InputError if the config's batch cannot be divided over so many devices."""
    batch, accumulate = config.train.batch_size, config.train.accumulate
    if batch % (num_devices * accumulate):
        raise InputError(
            f"train.batch_size is {batch}; it must be divisible by {num_devices * accumulate} "
            f"({num_devices} device(s) x train.accumulate {accumulate})"
        )


def make_training(exp: Experiment, mesh: jax.sharding.Mesh) -> Training:
    """Returns what trains the experiment on this mesh, as its config says."""
    config = exp.config
    objective, optimizer = exp.objective(), build.make_optimizer_of(config)
    averages = build.tracked_of(config).make()
    parts = {"optimizer": optimizer, "averages": averages, "objective": objective}
    # Compiled, so that it is traced once for its shapes and its arrays.
    create = jax.jit(partial(create_state, network=exp.network, **parts))
    key = stream(config.seed, "init")
    shardings = state_shardings(mesh, jax.eval_shape(create, key))
    step = make_train_step(
        objective,
        optimizer,
        stream(config.seed, "train"),
        averages=averages,
        flip=config.data.random_flip,
        conditional=exp.conditional,
        label_dropout=config.train.label_dropout,
        no_label=config.model.num_classes,
        accumulate=config.train.accumulate,
        mesh=mesh,
    )
    per_dispatch = config.train.steps_per_dispatch
    if per_dispatch is None:
        per_dispatch = 1 if mesh.devices.flat[0].platform == "cpu" else 10
    return Training(
        mesh,
        abstract_like(create, shardings),
        lambda: jax.jit(create, out_shardings=shardings)(key),
        jax.jit(partial(state_from, **parts), out_shardings=shardings),
        per_dispatch,
        compile_steps(step, per_dispatch, mesh, shardings),
    )


def batch_template(exp: Experiment, mesh: jax.sharding.Mesh) -> DeviceBatch:
    """Returns shapes, types and shardings of one batch of pixels."""
    rows, size = sharding.batch_sharding(mesh), exp.config.train.batch_size
    return {
        "image": jax.ShapeDtypeStruct((size, *exp.image_shape), jnp.uint8, sharding=rows),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32, sharding=rows),
    }


def make_loggers(config: ConfigDict) -> list[Callable[..., Logger]]:
    """Returns what makes the loggers that the config names, from workdir=… and start=….

    Raises:
      InputError: Of an unknown logger.
    """
    fields, saved = dict(config.train), json.loads(config_lib.to_json(config))
    return [
        partial(LOGGERS.choose(name).from_fields, fields, settings=saved)
        for name in dict.fromkeys(config.train.loggers)
    ]


def warn_of_the_optimizer(config: ConfigDict) -> None:
    """Warns of a training shorter than its warm-up, and of snapshots from which no average is reconstructed."""
    fields, num_steps = config.optimizer, config.train.num_steps
    if num_steps < fields.warmup_steps:
        warnings.warn(
            f"train.num_steps is {num_steps}, but the learning rate rises until step {fields.warmup_steps}; "
            "set --config.optimizer.warmup_steps",
            stacklevel=1,
        )
    if fields.ema_snapshot_every and len(set(fields.ema_lengths)) < 2:
        warnings.warn(
            f"optimizer.ema_lengths is {fields.ema_lengths}: from snapshots of one length no other average is "
            "reconstructed well; name two, such as 0.05,0.1",
            stacklevel=1,
        )


def picture_sampler(exp: Experiment, mesh: jax.sharding.Mesh) -> Callable[[Any], Samples]:
    """Returns params -> the samples that the run's pictures show: always the same images.

    Args:
      exp: What is trained.
      mesh: Devices that draw them.
    """
    exp = sampling.for_pictures(exp)
    sample, num_images = exp.config.sample, exp.config.train.sample_images
    sampler = sampling.make_sampler(exp)
    draw = make_batch_sampler(
        sampling.make_draw(exp, num_frames=min(COLUMNS, sampler.grid.num_steps + 1)),
        mesh,
        num_images,
        num_classes=exp.label_classes,
        class_names=exp.label_names,
        with_frames=True,
    )
    settings = sampling.traced_options(exp)
    return lambda params: draw(params, settings, np.arange(num_images), sample.labels)
