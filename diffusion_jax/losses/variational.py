"""L_vlb, the variational bound itself as a loss, and L_hybrid (Nichol & Dhariwal, 2021, Section 3)."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.errors import InputError
from diffusion_jax.likelihood.vlb import term
from diffusion_jax.losses.objective import NoiseDraw, Objective, make_objective
from diffusion_jax.losses.simple import squared_error
from diffusion_jax.losses.time_samplers import TimeSampler, uniform
from diffusion_jax.losses.weightings import Weighting
from diffusion_jax.models.diffusion_model import DiffusionModel, Output
from diffusion_jax.options import Option, kinds
from diffusion_jax.processes.gaussian import q_sample
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import Grid, Point


class _Noised(NamedTuple):
    """Noised images, and the network's output for them."""

    step: Int[Array, " b"]
    point: Point
    x_t: Float[Array, " b *dims"]
    output: Output


def vlb(
    model: DiffusionModel,
    *,
    variance: str = "fixed_large",
    times: TimeSampler | None = None,
) -> Objective:
    """Returns L_vlb in bits per dimension: N times the term of one step, of the N steps of the process's whole grid.

    Its expectation over uniform u is the bound without L_T, which has no parameters. The predicted x0 is not clipped;
    images must be of 256 levels, as the discretized decoder's are.

    Args:
      model: The model to train.
      variance: A key of `VARIANCES`.
      times: Time sampler; None: independent times.
    """
    grid = make_grid(model.process)

    def loss(
        params: Any,
        aux: Any,
        x0: Array,
        labels: Array | None,
        noise: NoiseDraw,
        dropout_keys: Array | None,
    ) -> Float[Array, " b"]:
        del aux
        noised = _noised(grid, model, params, x0, labels, noise, dropout_keys)
        return _term(grid, model, x0, noised, variance)

    return make_objective(loss, times or uniform())


def hybrid(
    model: DiffusionModel,
    *,
    variance: str = "learned",
    weighting: Weighting | None = None,
    vlb_weight: Annotated[float, Option(kinds.Float(0), "weight of vlb, in bits/dim")] = 0.001,
    times: TimeSampler | None = None,
) -> Objective:
    """Returns L_simple + lambda L_vlb, where L_vlb trains the variance alone: the mean gets no gradient from it.

    Nichol & Dhariwal (2021), Eq. 16, with L_vlb in bits per dimension.

    Args:
      model: The model to train; its network's output has twice the channels of x_t.
      variance: "learned"; L_vlb would train nothing for the others.
      weighting: As in `simple_loss`.
      vlb_weight: lambda.
      times: Time sampler; None: independent times.

    Raises:
      InputError: A variance other than learned.
    """
    if variance != "learned":
        raise InputError(
            f"the loss 'hybrid' is for the variance 'learned', not {variance!r}; choose that, or the loss 'simple'"
        )
    grid = make_grid(model.process)

    def loss(
        params: Any,
        aux: Any,
        x0: Array,
        labels: Array | None,
        noise: NoiseDraw,
        dropout_keys: Array | None,
    ) -> Float[Array, " b"]:
        del aux
        noised = _noised(grid, model, params, x0, labels, noise, dropout_keys)
        point, x_t, output = noised.point, noised.x_t, noised.output
        error = model.target(point, x_t, x0, noise.eps) - output.mean
        simple = squared_error(model, point, error, weighting)
        stopped = noised._replace(output=output._replace(mean=jax.lax.stop_gradient(output.mean)))
        return simple + vlb_weight * _term(grid, model, x0, stopped, variance)

    return make_objective(loss, times or uniform())


def _noised(
    grid: Grid,
    model: DiffusionModel,
    params: Any,
    x0: Array,
    labels: Array | None,
    noise: NoiseDraw,
    dropout_keys: Array | None,
) -> _Noised:
    # u counts from the least noise, steps from the most.
    from_data = jnp.minimum((noise.u * grid.num_steps).astype(jnp.int32), grid.num_steps - 1)
    step = grid.num_steps - 1 - from_data
    point = grid.at(step)
    x_t = q_sample(point, x0, noise.eps)
    return _Noised(step, point, x_t, model.output(params, x_t, point, labels, dropout_keys))


def _term(
    grid: Grid, model: DiffusionModel, x0: Array, noised: _Noised, variance: str
) -> Float[Array, " b"]:
    predicted = model.interpret(noised.x_t, noised.point, noised.output)
    return grid.num_steps * term(grid, x0, noised.x_t, predicted, noised.step, variance)
