"""The adaptive solution of differential equations, one image independent of the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.parallel.sharding import make_mesh, over_batch
from diffusion_jax.processes.ode import solve


def rotation(y: jax.Array, t: jax.Array) -> jax.Array:
    """dy/dt = 2 t J y turns each pair of numbers by t^2."""
    return 2 * t[:, None] * jnp.stack([-y[:, 1], y[:, 0]], -1)


def turned(y: np.ndarray, angle: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([cos * y[:, 0] - sin * y[:, 1], sin * y[:, 0] + cos * y[:, 1]], -1)


START, STOP = (
    np.array([0.0, 1.0, 3.0, 2.0, 0.0, 1.0, -1.0, 0.5]),
    np.array([2.0, 0, 1, 2.5, 3, 4, 0, 1]),
)
Y = np.stack([np.arange(1.0, 9), np.full(8, 0.5)], -1)


def run(y, start, stop, **options):
    arrays = (jnp.asarray(a, jnp.float32) for a in (y, start, stop))
    return jax.jit(lambda *a: solve(rotation, *a, **options))(*arrays)


def test_each_image_goes_from_its_time_to_its_time_forwards_or_backwards():
    solution = run(Y, START, STOP, rtol=1e-6, atol=1e-6)
    # The error of some tens of steps of 1e-6 each, relative to numbers up to 8.
    np.testing.assert_allclose(solution.y, turned(Y, STOP**2 - START**2), atol=2e-4)
    assert solution.stats.finished.all()
    np.testing.assert_array_equal(solution.stats.reached, STOP.astype(np.float32))


def test_the_error_falls_with_the_tolerance():
    exact = turned(Y, STOP**2 - START**2)
    errors = [
        np.abs(run(Y, START, STOP, rtol=r, atol=r).y - exact).max() for r in (1e-2, 1e-3, 1e-4)
    ]
    # The error of a step is held to the tolerance, so the whole error goes with it.
    assert errors[1] < 0.4 * errors[0] and errors[2] < 0.4 * errors[1], errors


def test_an_image_does_not_depend_on_the_others_nor_on_the_devices():
    whole = run(Y, START, STOP)
    alone = [run(Y[i : i + 1], START[i : i + 1], STOP[i : i + 1]) for i in range(8)]
    np.testing.assert_array_equal(
        whole.stats.evaluations, np.concatenate([a.stats.evaluations for a in alone])
    )
    np.testing.assert_allclose(whole.y, np.concatenate([a.y for a in alone]), rtol=1e-6)
    assert len(set(np.asarray(whole.stats.evaluations).tolist())) > 4
    mesh = make_mesh(4)
    rows = (jnp.asarray(a, jnp.float32) for a in (Y, START, STOP))
    parts = jax.jit(over_batch(lambda _, *rows: tuple(solve(rotation, *rows)), mesh, (0, 0)))(
        (), *rows
    )
    np.testing.assert_array_equal(parts[1].evaluations, whole.stats.evaluations)
    np.testing.assert_allclose(parts[0], whole.y, rtol=1e-6)


def test_evaluations_are_one_and_six_a_try():
    calls = []

    def counted(y, t):
        jax.debug.callback(lambda: calls.append(1))
        return -y

    y, one = jnp.ones((1, 2)), jnp.ones(1)
    solution = jax.jit(lambda: solve(counted, y, 0 * one, one))()
    jax.effects_barrier()
    assert len(calls) == int(solution.stats.evaluations[0])
    assert (len(calls) - 1) % 6 == 0
    np.testing.assert_allclose(solution.y, np.exp(-1) * y, rtol=1e-4)


def test_the_limit_of_steps_is_reported_image_by_image_with_the_time_reached():
    # Images 0 and 3 have the shortest ways.
    solution = run(Y, START, STOP, max_steps=9)
    finished = np.asarray(solution.stats.finished)
    assert finished.any() and not finished.all()
    np.testing.assert_array_equal(np.asarray(solution.stats.evaluations)[~finished], 1 + 6 * 9)
    reached = np.asarray(solution.stats.reached, np.float64)
    # What is returned is the solution at that time.
    np.testing.assert_allclose(solution.y, turned(Y, reached**2 - START**2), atol=1e-3)
    np.testing.assert_array_equal(reached[finished], STOP[finished])
    assert (np.abs(reached - START) < np.abs(STOP - START))[~finished].all()


def test_a_field_that_is_not_finite_ends_its_own_image_alone():
    y = jnp.asarray([[1.0, 0], [jnp.nan, 0]])
    solution = jax.jit(lambda: solve(rotation, y, jnp.zeros(2), jnp.ones(2)))()
    np.testing.assert_array_equal(solution.stats.finished, [True, False])
    assert int(solution.stats.evaluations[1]) == 1


def test_a_try_that_leaves_where_the_field_is_defined_is_made_again_shorter():
    """y' = 400 (1 - y), defined below 2 alone: of the first step, 0.01, some stages lie beyond."""

    def field(y, t):
        return jnp.where(y > 2, jnp.nan, 400 * (1 - y))

    solution = jax.jit(lambda: solve(field, jnp.full((1, 1), 0.5), jnp.zeros(1), jnp.ones(1)))()
    assert solution.stats.finished.all()
    np.testing.assert_allclose(solution.y, 1, atol=1e-4)


def test_a_tree_of_arrays_is_solved_to_the_tolerance_of_each():
    def field(y, t):
        return {"slow": -y["slow"], "fast": -30 * y["fast"] * jnp.sin(30 * t)}

    y = {"slow": jnp.ones((1, 1000)), "fast": jnp.ones(1)}
    solution = solve(field, y, jnp.zeros(1), jnp.ones(1), rtol=1e-5, atol=1e-5)  # Eagerly too.
    np.testing.assert_allclose(solution.y["slow"], np.exp(-1) * np.ones((1, 1000)), rtol=1e-4)
    # A mean over all 1,001 numbers would allow it thirty times the error.
    np.testing.assert_allclose(solution.y["fast"], [np.exp(np.cos(30) - 1)], rtol=2e-4)


@pytest.mark.parametrize("wrong", [{"rtol": 0.0}, {"atol": -1.0}, {"max_steps": 0}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        run(Y, START, STOP, **wrong)
