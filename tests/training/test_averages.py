"""Averages of the parameters over the steps are the weighted sums that they are said to be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.training import averages
from diffusion_jax.training.averages import (
    Exponential,
    Fit,
    PowerFunction,
    Profile,
    fit,
    power_exponent,
    step_weights,
    weighted_sum,
)
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


def decays(profile: Profile, num_steps: int) -> list[float]:
    """Returns the decays of steps 1, 2, ... as they are defined."""
    steps = range(1, num_steps + 1)
    if isinstance(profile, PowerFunction):
        return [(1 - 1 / k) ** (power_exponent(profile.length) + 1) for k in steps]
    assert isinstance(profile, Exponential)
    return [min(profile.decay, k / (k + 9)) if profile.warmup else profile.decay for k in steps]


@functools.cache
def last_averages(profile: Profile) -> np.ndarray:
    return directly_tracked(profile, PATH)


def directly_tracked(profile: Profile, path: np.ndarray) -> np.ndarray:
    """Returns an average after each step, which is updated from step to step, in float64."""
    averages = [path[0]]
    for decay, new in zip(decays(profile, len(path) - 1), path[1:], strict=True):
        averages.append(decay * averages[-1] + (1 - decay) * new)
    return np.stack(averages)


PROFILES = (
    *(PowerFunction(0.02), PowerFunction(0.05), PowerFunction(0.2)),
    *(Exponential(0.9), Exponential(0.99), Exponential(0.995, warmup=False)),
)


def noisy_path(num_steps: int = 4000) -> np.ndarray:
    """Parameters that fall towards a mean, wander and are noisy, as in training with a constant rate."""
    rng = np.random.default_rng(0)
    wandering = np.cumsum(rng.normal(size=(num_steps + 1, 20)), 0) / np.sqrt(num_steps)
    falling = np.exp(-np.arange(num_steps + 1) / (num_steps / 10))[:, None]
    return 1 + falling + 0.3 * wandering + 0.1 * rng.normal(size=(num_steps + 1, 20))


PATH = noisy_path()
LAST = len(PATH) - 1


@pytest.mark.parametrize("profile", PROFILES, ids=str)
def test_weights_of_the_steps_are_those_of_the_average_updated_from_step_to_step(
    profile: Profile,
) -> None:
    averages = directly_tracked(profile, PATH[:301])
    for step in (1, 2, 10, 89, 90, 300):
        weights = step_weights(profile, step)
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)
        np.testing.assert_allclose(weights @ PATH[: step + 1], averages[step], rtol=1e-12)


def reconstructed(
    target: Profile, lengths: tuple[float, ...], num_snapshots: int
) -> tuple[float, Fit]:
    """Returns the error of the last average, relative to the tracked one, and the fit that it is made by."""
    steps = [LAST * k // num_snapshots for k in range(1, num_snapshots + 1)]
    saved = [(PowerFunction(length), step) for length in lengths for step in steps]
    tracked_ = {length: last_averages(PowerFunction(length)) for length in lengths}
    found = fit(saved, target, LAST)
    trees = ({"w": tracked_[p.length][step]} for p, step in saved)
    average, expected = weighted_sum(trees, found.coefficients), last_averages(target)[-1]
    error = np.linalg.norm(average["w"] - expected) / np.linalg.norm(expected)
    return float(error), found


@pytest.mark.parametrize("length", [0.05, 0.1])
def test_an_average_that_was_saved_is_reconstructed_as_itself(length: float) -> None:
    error, found = reconstructed(PowerFunction(length), (0.05, 0.1), 20)
    assert error < 1e-9 and found.error < 1e-7
    np.testing.assert_allclose(found.amplification, 1, atol=1e-7)


def test_an_average_that_was_saved_some_steps_before_is_reconstructed() -> None:
    """At step 1234 no snapshot was taken, but the checkpoint of that step has the averages."""
    saved = [(PowerFunction(x), step) for x in (0.05, 0.1) for step in (400, 800, 1200, 1234)]
    found = fit(saved, PowerFunction(0.05), 1234)
    assert np.argmax(found.coefficients) == 3 and found.error < 1e-8


@pytest.mark.parametrize(
    ("target", "lengths", "num_snapshots", "of_profile", "of_parameters"),
    [
        (PowerFunction(0.075), (0.05, 0.1), 20, 3e-3, 1e-4),
        (PowerFunction(0.075), (0.05, 0.1), 50, 5e-4, 1e-5),
        (PowerFunction(0.075), (0.05, 0.1), 100, 2e-4, 1e-6),
        (PowerFunction(0.075), (0.03, 0.07, 0.15), 50, 1e-5, 1e-7),
        (PowerFunction(0.2), (0.05, 0.1), 100, 1e-3, 4e-5),
        (Exponential(0.995), (0.05, 0.1), 100, 3e-4, 2e-6),
        (Exponential(0.995), (0.03, 0.07, 0.15), 100, 1e-5, 1e-7),
        (Exponential(0.995, warmup=False), (0.03, 0.07, 0.15), 100, 1e-5, 1e-7),
        (Exponential(0.999), (0.03, 0.07, 0.15), 50, 1e-4, 1e-6),
    ],
    ids=str,
)
def test_an_average_that_was_not_saved_is_reconstructed_better_with_more_snapshots(
    target: Profile,
    lengths: tuple[float, ...],
    num_snapshots: int,
    of_profile: float,
    of_parameters: float,
) -> None:
    error, found = reconstructed(target, lengths, num_snapshots)
    assert found.error < of_profile and error < of_parameters
    assert found.amplification < 3


def test_the_error_of_a_profile_is_that_of_the_weights_of_all_steps() -> None:
    saved = [(PowerFunction(x), step) for x in (0.05, 0.15) for step in (300, 500, 1000)]
    target = Exponential(0.99)
    found = fit(saved, target, 1000)
    matrix = np.stack([np.append(step_weights(p, s), np.zeros(1000 - s)) for p, s in saved], 1)
    wanted = step_weights(target, 1000)
    error = np.linalg.norm(matrix @ found.coefficients - wanted) / np.linalg.norm(wanted)
    np.testing.assert_allclose(found.error, error, rtol=1e-9)
    # No other sum of coefficients that add up to 1 is nearer.
    for i in range(1, len(saved)):
        for sign in (-1, 1):
            other = found.coefficients + sign * 1e-2 * (np.eye(6)[i] - np.eye(6)[0])
            assert np.linalg.norm(matrix @ other - wanted) / np.linalg.norm(wanted) > error


def test_the_number_of_steps_taken_together_does_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved = [(PowerFunction(x), step) for x in (0.05, 0.1) for step in (300, 700, 1000)]
    whole = fit(saved, Exponential(0.99), 1000)
    monkeypatch.setattr(averages, "_STEPS_AT_ONCE", 7)
    parts = fit(saved, Exponential(0.99), 1000)
    np.testing.assert_allclose(parts.coefficients, whole.coefficients, rtol=1e-7)


def test_parameters_that_do_not_change_are_reconstructed_as_they_are() -> None:
    found = fit([(PowerFunction(0.1), 500), (PowerFunction(0.1), 1000)], Exponential(0.9), 1000)
    np.testing.assert_allclose(found.coefficients.sum(), 1, rtol=1e-12)
    assert found.error > 0.05


def test_a_sum_is_added_up_in_float64_and_has_the_type_of_the_arrays() -> None:
    trees = [{"w": jnp.float32([x])} for x in (1.0, 1e-3, -1.0)]
    total = weighted_sum(iter(trees), [1e6, 1.0, 1e6])
    assert total["w"].dtype == np.float32
    np.testing.assert_allclose(total["w"], 1e-3, rtol=1e-6)
