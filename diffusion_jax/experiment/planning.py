"""Inputs of a training plan from a config: images, the step on given devices, and the step with changed fields."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import build
from diffusion_jax.experiment.training import (
    Training,
    batch_template,
    check_divisible,
    make_training,
    make_training_mesh,
)
from diffusion_jax.parallel.sharding import abstract_mesh
from diffusion_jax.training.step import DeviceBatch

# (height, width, channels) and number of classes of the data sets whose images all have one shape.
KNOWN_IMAGES = {
    "digits": ((8, 8, 1), 10),
    "fashion_mnist": ((28, 28, 1), 10),
    "cifar10": ((32, 32, 3), 10),
}


def assumed_images(config: ConfigDict) -> tuple[tuple[int, int, int], int]:
    """Returns (H, W, C) of the config's images and their number of classes, without looking at them.

    Raises:
      InputError: The config does not say it.
    """
    name, size = config.data.name, config.data.image_size
    shape, classes = KNOWN_IMAGES.get(name, (None, config.model.num_classes))
    if classes == config_lib.AUTO:
        raise InputError(
            "model.num_classes is 'auto', but --mode=plan reads no images; set it to the number of classes"
        )
    if shape is None and size is None:
        raise InputError(
            f"data.image_size is unset; --mode=plan reads no images, and {name} may be of any size: "
            "--config.data.image_size=64"
        )
    channels = 3 if shape is None else shape[2]
    if size is not None:
        return (size, size, channels), classes
    assert shape is not None
    return shape, classes


def source_of_shape(config: ConfigDict) -> str:
    """Says where `assumed_images` has the shape from."""
    if config.data.image_size is None:
        return f"those of {config.data.name}"
    channels = "" if config.data.name in KNOWN_IMAGES else ", assumed to be in color"
    return f"data.image_size{channels}"


def planned_training(config: ConfigDict, devices: Sequence[Any]) -> tuple[Training, DeviceBatch]:
    """Returns the config's training on these devices, and the shapes of its batches, without looking at images.

    Args:
      config: A valid config.
      devices: Those that there are, or abstract ones of a topology.

    Raises:
      InputError: A mesh that these devices do not make, or images that the model does not fit.
    """
    config = copy.deepcopy(config)
    config.sample.labels = None  # The classes may be named, and no names are known here.
    exp = build.build(config, *assumed_images(config))
    mesh = make_training_mesh(config, devices)
    return make_training(exp, mesh), batch_template(exp, mesh)


def training_elsewhere(
    config: ConfigDict, num_devices: int
) -> tuple[Training, DeviceBatch, jax.sharding.AbstractMesh]:
    """Returns the config's training on one device, whole batches, and the mesh of those that it is planned for.

    Args:
      config: A valid config.
      num_devices: Devices, of which there is no description here to compile for.

    Raises:
      InputError: A mesh that so many devices do not make, or images that the model does not fit.
    """
    mesh = abstract_mesh(config.mesh.data, config.mesh.fsdp, num_devices)
    check_divisible(config, mesh.size)
    one = {"mesh.data": 1, "mesh.fsdp": 1, "train.accumulate": 1}  # The operations are the same.
    return *planned_training(with_changes(config, one), jax.devices()[:1]), mesh


def memory_fields(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields that decide the memory of a step and may be changed for it: arguments of `fit.candidates`."""
    remat = config_lib.options_of(config, "model").get("remat", "blocks")
    return {
        "batch_size": config.train.batch_size,
        "accumulate": config.train.accumulate,
        "remat": remat,
        "data": config.mesh.data,
        "fsdp": config.mesh.fsdp,
    }


def with_changes(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """Returns the config with other values of some fields, which are named as in "train.accumulate"."""
    config = config.copy_and_resolve_references()
    for name, value in changes.items():
        group, field = name.split(".")
        with config.ignore_type():  # A field may be a name or a tuple of names.
            config[group][field] = value
    return config
