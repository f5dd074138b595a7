"""Golden values: schedules and a likelihood against closed forms; a train step, samples, a likelihood against pins."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import golden_values as golden
from samplers import normal_data

import diffusion_jax as dj


@pytest.fixture(scope="module")
def derived() -> dict[str, Any]:
    return json.loads(golden.FILE.read_text())["derived"]


@pytest.fixture(scope="module")
def pinned() -> dict[str, Any]:
    return json.loads(golden.FILE.read_text())["pinned"]


def test_the_derived_values_of_the_table_are_those_of_the_formulas(derived: dict[str, Any]) -> None:
    assert derived["schedules"] == golden.derived_schedules()
    assert derived["normal_likelihood"] == golden.derived_normal_likelihood()


@pytest.mark.parametrize("name", golden.PROCESSES)
def test_schedules_are_the_papers_formulas(name: str, derived: dict[str, Any]) -> None:
    process = golden.PROCESSES[name]()
    times = np.array([golden.native_time(name, (t + 1) / 1000) for t in golden.TIMES])
    signal, std = np.array(derived["schedules"][name], np.float64).T
    exact = process.at(times)
    # Float64, of sums of up to 1,000 logarithms.
    np.testing.assert_allclose(np.exp(exact.log_signal), signal, rtol=1e-11)
    np.testing.assert_allclose(exact.std, std, rtol=1e-11)
    point = process.at(jnp.asarray(times, jnp.float32))
    # Float32: a time has a rounding of 6e-8 of 999, and log signal falls by 0.02 a step at most.
    np.testing.assert_allclose(point.signal, signal, rtol=2e-5)
    np.testing.assert_allclose(point.std, std, rtol=2e-5)


def test_the_likelihood_of_normal_data_is_the_closed_form(derived: dict[str, Any]) -> None:
    assert (float(golden.MEAN), float(golden.STD)) == (normal_data.MEAN, normal_data.STD)
    grid = dj.make_grid(dj.VP(), 2, u_min=1e-3)
    x = dj.data.to_model_range(golden.images(1))
    score = lambda x: dj.exact_likelihood(normal_data.optimal, grid, dj.VP(), x)  # noqa: E731
    log_p = float(jax.jit(score)(x).log_likelihood[0]) / x.size
    # The adaptive solution's relative tolerance is 1e-5 a step, in float32.
    assert log_p == pytest.approx(float(derived["normal_likelihood"]), abs=3e-4)


@pytest.mark.slow
def test_a_train_step_has_the_pinned_loss_and_gradient(pinned: dict[str, Any]) -> None:
    """A pin of this library's own result: it shows a change, not an error."""
    found = golden.train_step()
    # Float32 sums in another order; other random numbers or another network differ in the first digits.
    assert found["loss"] == pytest.approx(pinned["train_step"]["loss"], rel=1e-4)
    assert found["grad_norm"] == pytest.approx(pinned["train_step"]["grad_norm"], rel=1e-3)


def test_ten_images_are_the_pinned_ones_within_a_gray_level(pinned: dict[str, Any]) -> None:
    """A pin. Where float rounding decides, a pixel may be the next level: so pixels are compared, not hashes."""
    drawn = golden.samples().reshape(10, -1).astype(int)
    assert np.abs(drawn - np.array(pinned["samples"])).max() <= 1


def test_the_likelihood_of_an_image_by_the_flow_is_the_pinned_one(pinned: dict[str, Any]) -> None:
    """A pin, to the tolerance of the adaptive solution, whose steps may differ."""
    assert golden.ode_likelihood() == pytest.approx(pinned["ode_likelihood"], abs=1e-3)
