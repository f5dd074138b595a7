"""The parameters that a new training begins from, where they are those of another run."""

from __future__ import annotations

import warnings
from typing import Any

import jax

from diffusion_jax.errors import InputError
from diffusion_jax.experiment.build import Experiment
from diffusion_jax.experiment.training import Training
from diffusion_jax.runs.run import full_path, load_experiment, load_run
from diffusion_jax.training.state import TrainState

FIELD = "train.init_from"
NAMED = 3  # Parameters that a message names.


def begin(exp: Experiment, training: Training) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state at step 0, and as JSON what checkpoints are to say of it.

    Args:
      exp: What is trained.
      training: Its state and mesh.

    Raises:
      InputError: See `begin_from`.
      RunError: See `begin_from`.
    """
    workdir = exp.init_from
    if workdir is None:
        return training.create(), {}
    state, origin = begin_from(workdir, exp, training)
    return state, {"init_from": origin}


def begin_from(
    workdir: str, exp: Experiment, training: Training
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state at step 0 with the averaged parameters of another run, and where they come from as JSON.

    Averages and the objective's state begin from them too; the optimizer begins anew.

    Args:
      workdir: Folder of that run, a full path.
      exp: What is trained.
      training: Its state and mesh.

    Raises:
      InputError: There is no such run, or its parameters have other names or shapes.
      RunError: None of its checkpoints is sound.
    """
    workdir = full_path(FIELD, workdir)
    like = training.template.params
    try:
        theirs = load_experiment(workdir)
        _check_same(workdir, exp, theirs, like)
        run = load_run(workdir, sharding=jax.tree.map(lambda array: array.sharding, like))
    except InputError as error:
        raise InputError(f"{FIELD}: {error}") from error
    if changed := exp.changes_from(theirs, ("model", "process")):
        warnings.warn(
            f"{FIELD}: the parameters were trained with another config: {changed}", stacklevel=2
        )
    return training.begin(run.params), {"workdir": workdir, "step": run.step, "digest": run.digest}


def _check_same(workdir: str, exp: Experiment, theirs: Experiment, like: Any) -> None:
    """Raises if the parameters of the other run have other names or shapes than these."""
    here, there = _shapes(like), _shapes(jax.eval_shape(theirs.network.init, jax.random.key(0)))
    different = [
        f"{name} {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
        for name in {**here, **there}
        if here.get(name) != there.get(name)
    ]
    if not different:
        return
    rest = len(different) - NAMED
    more = f"; and {rest} more" if rest > 0 else ""
    changed = exp.changes_from(theirs, ("model",))
    if theirs.image_shape[2] != exp.image_shape[2]:
        changed = f"images of {theirs.image_shape[2]} channels there, {exp.image_shape[2]} here; {changed}"
    raise InputError(
        f"{workdir} is a network of other parameters: {'; '.join(different[:NAMED])}{more}"
        + (f" ({changed.removesuffix('; ')})" if changed else "")
    )


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each parameter by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves
    }
