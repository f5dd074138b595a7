"""Averages of the parameters over the steps are the weighted sums that they are said to be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.training.averages import PowerFunction, power_exponent
from diffusion_jax.training.optimizer import exact_ema_decay, power_decay, share_of


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.25])
def test_the_length_of_a_power_function_is_the_standard_deviation_of_its_weights(
    length: float,
) -> None:
    gamma = power_exponent(length)
    # (i / t)^(gamma + 1) - ((i - 1) / t)^(gamma + 1), on the middles of many steps.
    edges = np.linspace(0, 1, 1_000_001)
    weights, middles = np.diff(edges ** (gamma + 1)), (edges[1:] + edges[:-1]) / 2
    mean = weights @ middles
    np.testing.assert_allclose(np.sqrt(weights @ (middles - mean) ** 2), length, rtol=1e-6)


def test_exponents_are_those_of_the_paper() -> None:
    """Karras et al. (2024), Section 3.1: lengths of 5 % and 10 % are gamma = 16.97 and 6.94."""
    np.testing.assert_allclose(
        [power_exponent(0.05), power_exponent(0.1)], [16.97, 6.94], atol=0.005
    )


def tracked(decay: object, path: np.ndarray) -> np.ndarray:
    """Returns an average after each step of a path, which begins with the initialization, in float32 as training."""

    def follow(old: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        step, new = at
        average = old + share_of(decay, step) * (new - old)  # type: ignore[arg-type]
        return average, average

    steps = jnp.arange(len(path) - 1)
    return np.asarray(jax.lax.scan(follow, jnp.asarray(path[0]), (steps, jnp.asarray(path[1:])))[1])


def test_a_power_function_average_has_exactly_its_weights_and_none_of_the_initialization() -> None:
    path = np.random.default_rng(0).normal(size=401).astype(np.float32)
    path[0] = 8
    exponent = power_exponent(0.1) + 1
    found = tracked(power_decay(0.1), path)
    for t in (1, 2, 7, 400):
        weights = np.diff((np.arange(t + 1) / t) ** exponent)
        np.testing.assert_allclose(found[t - 1], weights @ path[1 : t + 1], rtol=0, atol=1e-6)


def test_shares_of_late_steps_have_all_digits_of_float32() -> None:
    steps = np.array([0, 1, 1000, 10**6, 2**30])
    expected = PowerFunction(0.1).share(steps + 1)
    found = [share_of(power_decay(0.1), jnp.asarray(step, jnp.int32)) for step in steps]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    late = [share_of(exact_ema_decay(0.9999, warmup=w), jnp.int32(10**6)) for w in (True, False)]
    np.testing.assert_allclose(late, 1e-4, rtol=1e-6)
