"""L_vlb, the variational bound itself as a loss, and L_hybrid (Nichol & Dhariwal, 2021, Section 3)."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.errors import InputError
from diffusion_jax.likelihood.bound import term
from diffusion_jax.losses.objective import Draws, Objective
from diffusion_jax.losses.simple import squared_error
from diffusion_jax.losses.times import Times, objective_of, uniform
from diffusion_jax.losses.weightings import Weighting
from diffusion_jax.models.denoiser import (
    Network,
    Parameterization,
    complete,
    network_output,
    parameterization,
)
from diffusion_jax.options import Option, kinds
from diffusion_jax.processes.gaussian import q_sample
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import Grid, Point, Process


class _Noised(NamedTuple):
    """Images on their way, and what the network says of them."""

    step: Int[Array, " b"]
    point: Point
    x_t: Float[Array, " b *dims"]
    output: Float[Array, " b *dims"]
    fraction: Float[Array, " b *dims"] | None


def vlb(
    process: Process,
    prediction: str,
    network: Network,
    *,
    variance: str = "fixed_large",
    times: Times | None = None,
) -> Objective:
    """Returns L_vlb in bits per dimension: N times the term of one step, of the N steps of the process's whole grid.

    Its expectation over uniform u is the bound without L_T, which has no parameters. The predicted x0 is not clipped;
    images must be of 256 levels, as the discretised decoder's are.

    Args:
      process: The forward process.
      prediction: What the network predicts, a key of `PARAMETERIZATIONS`.
      network: (params, x_t, time, labels, dropout_keys) -> output.
      variance: A key of `VARIANCES`.
      times: How times are drawn; None: independently of one another.

    Raises:
      InputError: Unknown prediction.
    """
    meaning, grid = parameterization(prediction, process), make_grid(process)

    def loss(
        params: Any, x0: Array, labels: Array | None, draws: Draws, dropout_keys: Array | None
    ) -> Float[Array, " b"]:
        noised = _noised(grid, network, params, x0, labels, draws, dropout_keys)
        return _term(grid, meaning, x0, noised, variance)

    return objective_of(loss, times or uniform())


def hybrid(
    process: Process,
    prediction: str,
    network: Network,
    *,
    variance: str = "learned",
    weighting: Weighting | None = None,
    vlb_weight: Annotated[
        float, Option(kinds.Float(0), "how much vlb counts, in bits/dim")
    ] = 0.001,
    times: Times | None = None,
) -> Objective:
    """Returns L_simple + lambda L_vlb, where L_vlb trains the variance alone: no gradient goes to its mean.

    Nichol & Dhariwal (2021), Eq. 16, with L_vlb in bits per dimension.

    Args:
      process: The forward process.
      prediction: What the network predicts, a key of `PARAMETERIZATIONS`.
      network: (params, x_t, time, labels, dropout_keys) -> output with twice the channels of x_t.
      variance: "learned": there is nothing that L_vlb would train of another one.
      weighting: As in `simple_loss`.
      vlb_weight: lambda.
      times: How times are drawn; None: independently of one another.

    Raises:
      InputError: Unknown prediction; another variance.
    """
    if variance != "learned":
        raise InputError(
            f"the loss 'hybrid' is for the variance 'learned', not {variance!r}; choose that, or the loss 'simple'"
        )
    meaning, grid = parameterization(prediction, process), make_grid(process)

    def loss(
        params: Any, x0: Array, labels: Array | None, draws: Draws, dropout_keys: Array | None
    ) -> Float[Array, " b"]:
        noised = _noised(grid, network, params, x0, labels, draws, dropout_keys)
        target = meaning.target(noised.point, noised.x_t, x0, draws.eps)
        simple = squared_error(meaning, noised.point, target - noised.output, weighting)
        stopped = noised._replace(output=jax.lax.stop_gradient(noised.output))
        return simple + vlb_weight * _term(grid, meaning, x0, stopped, variance)

    return objective_of(loss, times or uniform())


def _noised(
    grid: Grid,
    network: Network,
    params: Any,
    x0: Array,
    labels: Array | None,
    draws: Draws,
    dropout_keys: Array | None,
) -> _Noised:
    # u counts from the least noise on, steps from the most.
    from_data = jnp.minimum((draws.u * grid.num_steps).astype(jnp.int32), grid.num_steps - 1)
    step = grid.num_steps - 1 - from_data
    point = grid.at(step)
    x_t = q_sample(point, x0, draws.eps)
    return _Noised(
        step, point, x_t, *network_output(network, params, x_t, point, labels, dropout_keys)
    )


def _term(
    grid: Grid, meaning: Parameterization, x0: Array, noised: _Noised, variance: str
) -> Float[Array, " b"]:
    x0_hat, eps_hat = meaning.predict(noised.point, noised.x_t, noised.output)
    predicted = complete(noised.point, x0_hat, eps_hat, noised.fraction)
    return grid.num_steps * term(grid, x0, noised.x_t, predicted, noised.step, variance)
