"""Runs that were not trained here: a workdir made of parameters and a config."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from diffusion_jax import config as config_lib
from diffusion_jax.checkpoints.store import CheckpointStore
from diffusion_jax.errors import InputError, reason
from diffusion_jax.experiment.build import Experiment
from diffusion_jax.models.networks import count_parameters
from diffusion_jax.runs.run import IMPORTED
from diffusion_jax.training.state import average_part
from diffusion_jax.training.tracked import AVERAGE
from diffusion_jax.writing.atomic import atomic_write


def create_run(
    workdir: Path,
    exp: Experiment,
    params: PyTree,
    trained: PyTree | None,
    step: int,
    origin: Mapping[str, Any],
) -> None:
    """Writes a workdir that all modes but training use like that of a trained run, whole or not at all.

    Args:
      workdir: A folder that does not exist yet, or is empty.
      exp: Process, network and config.
      params: The parameters to sample with, the main average.
      trained: The parameters that they are the average of; None: they are used for these too.
      step: Number of training steps that they have seen, as far as it is known.
      origin: Where they come from, as JSON.

    Raises:
      InputError: The workdir holds something, or cannot be written.
      RunError: The checkpoint cannot be written, such as on a full disk.
    """
    check_free(workdir)
    config = json.loads(config_lib.to_json(exp.config))
    data = {
        "image_shape": exp.image_shape,
        "num_classes": exp.num_classes,
        "class_names": exp.class_names,
    }
    parts = {
        "params": jax.tree.map(jnp.asarray, params if trained is None else trained),
        average_part(AVERAGE): jax.tree.map(jnp.asarray, params),
    }
    try:
        with atomic_write(workdir) as unfinished:
            with contextlib.closing(CheckpointStore(unfinished / "checkpoints")) as store:
                store.save(step, parts, {"config": config, "data": data, IMPORTED: dict(origin)})
                store.wait()
            (unfinished / "config.json").write_text(config_lib.to_json(exp.config))
            record = {**origin, "parameters": count_parameters(params), "earlier": []}
            (unfinished / "results").mkdir()
            (unfinished / "results" / "import.json").write_text(json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {workdir}: {reason(error)}") from error


def check_free(workdir: Path, flag: str = "--workdir") -> None:
    """Raises an InputError if a folder holds something already.

    Args:
      workdir: A folder, which need not exist.
      flag: What named it.
    """
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise InputError(f"{flag}: {workdir} holds something already; name another folder")
