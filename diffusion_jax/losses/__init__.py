"""Training objectives, by name."""

import inspect
from collections.abc import Callable

from diffusion_jax.denoiser import Network, parameterization
from diffusion_jax.errors import InputError, choose, expect, shortened
from diffusion_jax.losses.objective import Draws, Objective
from diffusion_jax.losses.simple import simple, simple_loss
from diffusion_jax.losses.sliced import sliced, sliced_objective
from diffusion_jax.losses.times import TIMES, Times, objective_of, uniform
from diffusion_jax.losses.variational import hybrid, vlb
from diffusion_jax.losses.weightings import WEIGHTINGS, Weighting
from diffusion_jax.processes.process import Process

__all__ = [
    "OBJECTIVES",
    "TIMES",
    "WEIGHTINGS",
    "Draws",
    "Objective",
    "Times",
    "Weighting",
    "hybrid",
    "loss_function",
    "objective_of",
    "simple",
    "simple_loss",
    "sliced",
    "sliced_objective",
    "uniform",
    "vlb",
]

# (process, prediction, network, those options of `loss_function` that it has) -> Objective
OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "simple": simple,
    "vlb": vlb,
    "hybrid": hybrid,
    "sliced": sliced,
}


def loss_function(
    name: str,
    process: Process,
    prediction: str,
    network: Network,
    *,
    weighting: Weighting | None = None,
    times: Times | None = None,
    variance: str | None = None,
    vlb_weight: float | None = None,
    num_probes: int | None = None,
) -> Objective:
    """Returns the objective of that name.

    Args:
      name: A key of `OBJECTIVES`.
      process: The forward process.
      prediction: What the network predicts, a key of `PARAMETERIZATIONS`.
      network: (params, x_t, time, labels, dropout_keys) -> output.
      weighting: Weight of each noise level, such as `WEIGHTINGS["min_snr"]()`; None: the objective's own.
      times: How times are drawn, such as `TIMES["stratified"]()`; None: independently of one another.
      variance: vlb, hybrid: a key of `VARIANCES`; None: the objective's default.
      vlb_weight: hybrid: how much L_vlb counts; None: 0.001.
      num_probes: sliced: random directions of each image; None: 1.

    Raises:
      InputError: Unknown name or prediction; an option that the objective does not have.
    """
    parameterization(prediction, process)
    make = choose("loss", name, OBJECTIVES)
    options = {
        "weighting": weighting,
        "times": times,
        "variance": variance,
        "vlb_weight": vlb_weight,
        "num_probes": num_probes,
    }
    if weighting is not None and not callable(weighting):
        raise InputError(
            f"weighting is {shortened(weighting)}; it must be a function of the point, such as WEIGHTINGS['min_snr']()"
        )
    if times is not None:
        expect("times", times, Times, "a Times, such as TIMES['stratified']()")
    given = {option: value for option, value in options.items() if value is not None}
    for option in sorted(given.keys() - inspect.signature(make).parameters.keys()):
        raise InputError(f"the loss {name!r} takes no {option}; leave it unset")
    return make(process, prediction, network, **given)
