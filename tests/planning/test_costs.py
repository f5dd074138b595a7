"""Hours, chip-hours and price of a training, by hand."""

import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.planning.costs import cost, parse_price


def test_a_training_costs_its_hours_on_every_chip():
    """Half a second a step, 72,000 steps: 36,000 s are 10 hours, on 16 chips 160 chip-hours, of 1.25 each 200."""
    assert cost(0.5, 72_000, 16, 1.25) == (10.0, 160.0, 200.0)
    assert cost(0.5, 72_000, 16) == (10.0, 160.0, None)
    assert cost(0.5, 72_000, 1, 0.0).price == 0


@pytest.mark.parametrize("text", ["", "cheap", "-1", "nan", "inf", "-inf", "1,2"])
def test_a_price_is_a_finite_number_of_at_least_0(text: str):
    with pytest.raises(InputError, match=f"--price is '{text}'; it must be the price of a chip"):
        parse_price(text)
    assert parse_price("1.2") == 1.2 and parse_price("0") == 0
