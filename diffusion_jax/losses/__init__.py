"""Training objectives, by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from diffusion_jax.errors import InputError, expect, shortened
from diffusion_jax.losses.objective import NoiseDraw, Objective, make_objective
from diffusion_jax.losses.simple import simple, simple_loss
from diffusion_jax.losses.sliced import sliced, sliced_objective
from diffusion_jax.losses.time_samplers import TIME_SAMPLERS, TimeSampler, uniform
from diffusion_jax.losses.variational import hybrid, vlb
from diffusion_jax.losses.weightings import WEIGHTINGS, Weighting
from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.options import Component, Registry

__all__ = [
    "LOSSES",
    "TIME_SAMPLERS",
    "WEIGHTINGS",
    "NoiseDraw",
    "Objective",
    "TimeSampler",
    "TrainingLoss",
    "Weighting",
    "hybrid",
    "loss_function",
    "make_objective",
    "simple",
    "simple_loss",
    "sliced",
    "sliced_objective",
    "uniform",
    "vlb",
]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingLoss(Component[Objective]):
    """A loss; `make` maps a model, what it asks for, and its options to an `Objective`.

    Attributes:
      on_grid: Whether its times are those of the process's whole grid, whatever the smallest u of training.
      only_variance: The only variance of the reverse steps that it is for; None: any that it takes.
    """

    on_grid: bool = False
    only_variance: str | None = None


LOSSES: Registry[TrainingLoss] = Registry(
    "loss",
    {
        "simple": TrainingLoss(simple, "squared error, Eq. 14"),
        "vlb": TrainingLoss(vlb, "the bound", on_grid=True),
        "hybrid": TrainingLoss(
            hybrid, "simple, vlb for the variance", on_grid=True, only_variance="learned"
        ),
        "sliced": TrainingLoss(sliced, "sliced score matching"),
    },
    given=("model", "variance", "weighting", "times"),
)


def loss_function(
    name: str,
    model: DiffusionModel,
    *,
    weighting: Weighting | None = None,
    times: TimeSampler | None = None,
    variance: str | None = None,
    **options: Any,
) -> Objective:
    """Returns the objective with this name.

    Args:
      name: A key of `LOSSES`.
      model: The model to train.
      weighting: Weight of each noise level, such as `WEIGHTINGS["min_snr"]()`; None: the objective's own.
      times: Time sampler, such as `TIME_SAMPLERS["stratified"]()`; None: independent times.
      variance: vlb, hybrid: a key of `VARIANCES`; None: the objective's default.
      **options: Options of the loss, such as vlb_weight of hybrid and num_probes of sliced.

    Raises:
      InputError: Unknown name; a model of another type; an option that the objective does not have.

    Example:
      >>> model = dj.DiffusionModel(dj.VP(), "eps", lambda params, x, *_: jnp.zeros_like(x))
      >>> objective = dj.loss_function("simple", model)
      >>> noise = objective.draw((), jax.random.key(0), (8, 4, 4, 1))
      >>> losses = objective.loss({}, (), jnp.zeros((8, 4, 4, 1)), None, noise, None)
      >>> bool(jnp.allclose(losses, (noise.eps**2).mean((1, 2, 3))))  # The network predicts no noise.
      True
    """
    loss = LOSSES.choose(name)
    expect(
        "model",
        model,
        DiffusionModel,
        "a DiffusionModel, such as DiffusionModel(process, 'eps', network)",
    )
    if weighting is not None and not callable(weighting):
        raise InputError(
            f"weighting is {shortened(weighting)}; it must be a function of the point, such as WEIGHTINGS['min_snr']()"
        )
    if times is not None:
        expect("times", times, TimeSampler, "a TimeSampler, such as TIME_SAMPLERS['stratified']()")
    given = {"weighting": weighting, "times": times, "variance": variance, **options}
    given = {option: value for option, value in given.items() if value is not None}
    for option in sorted(given):
        if not loss.takes(option):
            raise InputError(f"the loss {name!r} takes no {option}; leave it unset")
    return loss.bind(model=model)(**given)
