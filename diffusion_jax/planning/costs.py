"""What a training takes: hours, chip-hours and their price."""

from __future__ import annotations

import math
from typing import NamedTuple

from diffusion_jax.errors import InputError


class Cost(NamedTuple):
    """Time and price of a training.

    Attributes:
      hours: Hours from the first step to the last.
      chip_hours: These, of every chip.
      price: Price of the chip-hours, in the currency of a chip-hour's; None: that is not known.
    """

    hours: float
    chip_hours: float
    price: float | None


def cost(
    seconds_per_step: float, num_steps: int, num_chips: int, chip_hour: float | None = None
) -> Cost:
    """Returns what a training takes.

    Args:
      seconds_per_step: Seconds of a step.
      num_steps: Steps of the training.
      num_chips: Chips that are paid for, whether all of them compute or not.
      chip_hour: Price of an hour of one chip, in any currency; None: not known.
    """
    hours = seconds_per_step * num_steps / 3600
    chip_hours = hours * num_chips
    return Cost(hours, chip_hours, None if chip_hour is None else chip_hours * chip_hour)


def parse_price(text: str) -> float:
    """Returns the price of a chip-hour that a flag gives.

    Args:
      text: A finite number of at least 0.

    Raises:
      InputError: It is none.
    """
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not (math.isfinite(price) and price >= 0):
        raise InputError(
            f"--price is {text!r}; it must be the price of a chip-hour, a number of at least 0"
        )
    return price
