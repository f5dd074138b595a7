"""The state that training carries from step to step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from diffusion_jax.keys import threefry
from diffusion_jax.losses import Objective
from diffusion_jax.models.networks import Model
from diffusion_jax.parallel import sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of a training run: all that a resumed run needs, and nothing else.

    The fields are not annotated with shapes, since JAX builds the same tree of shapes, shardings and other things.

    Attributes:
      step: Number of steps done, int32.
      params: Parameters.
      ema: Averages of the parameters over the steps, by name.
      opt_state: State of the optimizer.
      aux: State of the objective; () for most.
    """

    step: Any
    params: Any
    ema: dict[str, Any]
    opt_state: Any
    aux: Any


def create_state(
    key: Key[Array, ""],
    network: Model,
    optimizer: optax.GradientTransformation,
    *,
    averages: Iterable[str] = (),
    objective: Objective | None = None,
) -> TrainState:
    """Returns the state at step 0, with freshly initialized parameters.

    Args:
      key: Key that initializes the parameters.
      network: Network whose parameters are initialized.
      optimizer: Optax transformation.
      averages: Names of the parameters' averages.
      objective: The objective, if it has a state of its own.
    """
    params = network.init(threefry(key))
    return state_from(params, optimizer, averages=averages, objective=objective)


def state_from(
    params: Any,
    optimizer: optax.GradientTransformation,
    *,
    averages: Iterable[str] = (),
    objective: Objective | None = None,
) -> TrainState:
    """Returns the state at step 0 with these parameters.

    Args:
      params: The parameters.
      optimizer: Optax transformation.
      averages: Names of the parameters' averages, which begin as the parameters.
      objective: The objective, if it has a state of its own.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # Copies, not aliases: all are donated.
        ema={name: jax.tree.map(jnp.copy, params) for name in averages},
        opt_state=optimizer.init(params),
        aux=objective.init(params) if objective else (),
    )


def average_part(name: str) -> str:
    """Returns the name of the checkpoint's part that holds an average of the parameters."""
    return f"ema/{name}"


def to_parts(state: TrainState) -> dict[str, Any]:
    """Returns the state as the parts of a checkpoint: parameters and averages can be read alone."""
    averages = {average_part(name): params for name, params in state.ema.items()}
    rest = {"step": state.step, "opt_state": state.opt_state, "aux": state.aux}
    return {"params": state.params, **averages, "training": rest}


def from_parts(parts: dict[str, Any]) -> TrainState:
    """Undoes `to_parts`."""
    prefix = average_part("")
    ema = {name[len(prefix) :]: params for name, params in parts.items() if name.startswith(prefix)}
    return TrainState(params=parts["params"], ema=ema, **parts["training"])


def state_shardings(
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, state: TrainState
) -> TrainState:
    """Returns the shardings of a state: each device along `fsdp` holds and updates one part of the large arrays.

    Parameters, moments and averages are split this way (Rajbhandari et al., 2020: ZeRO, third stage); along `data`
    they are replicated. The rule depends on shapes and mesh alone, so a checkpoint is read on any mesh.

    Args:
      mesh: Devices.
      state: A state, or its shapes.
    """
    return sharding.fsdp_shardings(state, mesh)


def abstract_like(create: Any, shardings: Any) -> Any:
    """Returns the shapes, types and shardings of what `create(key)` makes: the template of a restore.

    Args:
      create: key -> tree of arrays.
      shardings: Tree of shardings, or one for all arrays.
    """

    def place(where: jax.sharding.Sharding, tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)

    return jax.tree.map(place, shardings, jax.eval_shape(create, jax.random.key(0)))
