"""How times are drawn: evenly, in strata, or by importance without changing the expected loss."""

from collections import deque
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import slow_after

from diffusion_jax.errors import InputError
from diffusion_jax.losses import weightings
from diffusion_jax.losses.objective import NoiseDraw, Objective, make_objective
from diffusion_jax.losses.time_samplers import (
    EVEN_SHARE,
    KEPT,
    TIME_SAMPLERS,
    History,
    importance,
    likelihood,
    probabilities,
    remember,
    stratified,
    training_time,
    uniform,
)
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.ncsn import NCSN
from diffusion_jax.processes.process import Process
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.processes.sde import VE, VP, SubVP


def loss(params: Any, aux: Any, x0: Any, labels: Any, draws: NoiseDraw, keys: Any) -> Any:
    return draws.u


# ---- stratified --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [8, 12, 100])
def test_stratified_times_are_uniform_and_one_lies_in_each_stratum(n: int) -> None:
    keys = jax.random.split(jax.random.key(0), 4000)
    u, weight = jax.jit(jax.vmap(lambda key: stratified().draw((), key, n)))(keys)
    np.testing.assert_array_equal(weight, 1)
    assert u.min() >= 0 and u.max() < 1
    strata = np.sort(np.floor(np.asarray(u, float) * n), axis=1)
    np.testing.assert_array_equal(strata, np.broadcast_to(np.arange(n), (4000, n)))
    for i in (0, 3, n - 1):
        counts = np.bincount(np.asarray(u[:, i] * 10, int), minlength=10)
        # Five standard deviations of a binomial count.
        np.testing.assert_allclose(counts, 400, atol=5 * np.sqrt(400))


def test_two_batches_of_strata_differ() -> None:
    one, other = (stratified().draw((), jax.random.key(k), 4)[0] for k in (0, 1))
    assert not np.array_equal(one, other)


# ---- as the likelihood weighting ---------------------------------------------------------------------


PROCESS = DDPM(make_schedule("linear", 100))


@pytest.mark.parametrize(
    "process",
    slow_after(
        1, [PROCESS, VP(), SubVP(), VE(), NCSN(sigma_min=0.1, sigma_max=9.0, num_timesteps=7)]
    ),
)
def test_times_as_the_likelihood_weighting_estimate_its_integral_with_less_spread(
    process: Process,
) -> None:
    """The integrand is the weighting times a smooth function of time; its integral over u is by fine sums."""
    weighting, n = weightings.likelihood(process), 100_000

    def integrand(u: jax.Array) -> jax.Array:
        point = process.at(training_time(process, u))
        return weighting(point) * (2 + jnp.cos(3 * u))

    # Even in log u below 0.1, where the weighting of VP is as 1 / u; above in u.
    edges = np.append(np.geomspace(1e-9, 0.1, 40_001), np.linspace(0.1, 1, 40_001)[1:])
    middle = jnp.asarray((edges[1:] + edges[:-1]) / 2, jnp.float32)
    exact = float(np.asarray(integrand(middle), np.float64) @ np.diff(edges))
    spread = {}
    for times in (likelihood(process), uniform()):
        u, weight = jax.jit(lambda key, times=times: times.draw((), key, n))(jax.random.key(1))
        assert u.min() >= 0 and u.max() < 1
        values = np.asarray(weight * integrand(u), np.float64)
        spread[len(spread)] = values.std()
        # Five standard errors, and the sums' own error.
        error = 5 * values.std() / np.sqrt(n) + 1e-3 * exact
        np.testing.assert_allclose(values.mean(), exact, atol=error)
    # That of the cosine alone is left. (Of VE and NCSN the weighting is constant.)
    assert spread[0] < 0.4 * exact and spread[0] < 1.01 * spread[1]


def test_training_times_of_a_chain_are_the_steps_each_equally_often() -> None:
    process = DDPM(make_schedule("linear", 40))
    u = jnp.asarray((np.arange(4000) + 0.5) / 4000, jnp.float32)
    t, counts = np.unique(training_time(process, u), return_counts=True)
    np.testing.assert_array_equal(t, np.arange(40))
    np.testing.assert_array_equal(counts, 100)
    last = training_time(process, jnp.array([np.nextafter(np.float32(1), np.float32(0))]))
    assert last[0] == 39


@pytest.mark.parametrize("name", TIME_SAMPLERS)
def test_training_draws_u_evenly_above_its_smallest(name: str) -> None:
    process = VP()
    given = (process,) if name == "likelihood" else ()
    times = TIME_SAMPLERS[name](*given, u_min=0.25)
    time = jax.jit(lambda u: times.time(process, u))(jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(time, [999 * 0.25, 999 * 0.625], rtol=1e-6)
    for u_min in (0.0, 1.0, np.nan):
        with pytest.raises(InputError, match=f"u_min is {u_min}; it must be in the open interval"):
            TIME_SAMPLERS[name](*given, u_min=u_min)


# ---- a history of losses -----------------------------------------------------------------------------


def test_the_history_holds_the_last_ten_losses_of_each_bin_in_order(
    rng: np.random.Generator,
) -> None:
    """Against a queue a bin, fed image by image; batches hold up to thirty losses of one bin."""
    queues = [deque(maxlen=KEPT) for _ in range(5)]
    history = importance(num_bins=5).init()
    step = jax.jit(remember)
    for _ in range(12):
        bins = rng.choice(5, size=40, p=[0.7, 0.2, 0.07, 0.03, 0])
        losses = rng.random(40).astype(np.float32)
        for i, value in zip(bins, losses, strict=True):
            queues[i].append(value)
        history = step(history, jnp.asarray(bins), jnp.asarray(losses))
        for queue, row, count in zip(queues, history.losses, history.seen, strict=True):
            assert (count >= KEPT) == (len(queue) == KEPT)
            oldest = count % KEPT if count >= KEPT else 0
            np.testing.assert_array_equal(np.roll(row, -oldest)[: len(queue)], queue)
    assert [len(queue) for queue in queues] == [10, 10, 10, 10, 0]


def full(losses: Any) -> History:
    """A history with these losses, (bins, KEPT)."""
    losses = jnp.asarray(losses, jnp.float32)
    return History(losses, jnp.full(len(losses), KEPT))


def test_a_bin_is_as_probable_as_the_root_mean_square_of_its_losses() -> None:
    losses = np.ones((3, KEPT))
    losses[1] = [0, 4] * 5  # Mean 2, mean square 8.
    losses[2] = 0
    p = np.asarray(probabilities(full(losses)), float)
    even = EVEN_SHARE / 3
    np.testing.assert_allclose((p[1] - even) / (p[0] - even), np.sqrt(8), rtol=1e-5)
    np.testing.assert_allclose(p[2], even, rtol=1e-6)
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-6)


# ---- importance --------------------------------------------------------------------------------------

LOSS = np.array(
    [4.0, 0.0, 1.0, 0.5, 0.01, 2.5, 1.0, 0.3]
)  # Of each bin; known to the history but for noise.


@pytest.fixture
def history(rng: np.random.Generator) -> History:
    return full(LOSS[:, None] * rng.uniform(0.5, 1.5, (8, KEPT)))


def draw(history: History, n: int, num_bins: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bins and weights of n images."""
    u, weight = jax.jit(importance(num_bins=num_bins).draw, static_argnums=2)(
        history, jax.random.key(1), n
    )
    bins = np.asarray(u, float) * num_bins - 0.5
    np.testing.assert_array_equal(bins, np.round(bins))
    return bins.astype(int), np.asarray(weight, float)


def test_weights_leave_the_expected_loss_unchanged(history: History) -> None:
    bins, weight = draw(history, 200_000)
    p = np.asarray(probabilities(history), float)
    w = np.zeros(8)
    w[bins] = weight
    drawn = np.bincount(bins, minlength=8) > 0
    np.testing.assert_allclose(w[drawn], 1 / (8 * p[drawn]), rtol=1e-6)
    np.testing.assert_allclose((p * w * LOSS)[drawn].sum(), LOSS.mean(), rtol=1e-6)
    # Five standard errors of a mean of independent draws, and of a binomial share.
    spread = np.sqrt((p * (w * LOSS) ** 2).sum() - LOSS.mean() ** 2)
    np.testing.assert_allclose(
        (weight * LOSS[bins]).mean(), LOSS.mean(), atol=5 * spread / np.sqrt(len(bins))
    )
    shares = np.bincount(bins, minlength=8) / len(bins)
    np.testing.assert_array_less(abs(shares - p), 5 * np.sqrt(p / len(bins)))


def test_the_weights_take_out_the_spread_of_the_losses_and_none_exceeds_a_thousand(
    history: History,
) -> None:
    """Losses that are the same each time have w L = mean L, but for the even share."""
    level = full(np.broadcast_to(LOSS[:, None], (8, KEPT)))
    p = np.asarray(probabilities(level), float)
    # The even share adds 1e-3 / 8 to p, at most 4e-3 of what these losses have.
    some = LOSS >= 0.3
    np.testing.assert_allclose((LOSS / (8 * p))[some], LOSS.mean(), rtol=5e-3)
    for known in (level, history):
        weights = 1 / (8 * np.asarray(probabilities(known), float))
        np.testing.assert_allclose(weights.max(), 1 / EVEN_SHARE, rtol=1e-5)  # Of the loss 0.


def test_draws_are_even_until_every_bin_has_ten_losses(history: History) -> None:
    waiting = history._replace(seen=history.seen.at[3].set(KEPT - 1))
    bins, weight = draw(waiting, 40_000)
    np.testing.assert_allclose(weight, 1, rtol=1e-6)
    np.testing.assert_allclose(np.bincount(bins), 5000, atol=5 * np.sqrt(5000))
    update = importance(num_bins=8).update
    ready = update(waiting, jnp.array([3.5 / 8]), jnp.array([0.3]))
    assert draw(ready, 100)[1].std() > 0.1
    np.testing.assert_allclose(probabilities(importance(num_bins=8).init()), 1 / 8)


@pytest.mark.parametrize("value", [0.0, np.inf, np.nan])
def test_losses_that_are_all_0_or_not_finite_are_drawn_evenly(value: float) -> None:
    losses = np.zeros((4, KEPT)) if value == 0 else np.ones((4, KEPT))
    losses[2, 3] = value
    np.testing.assert_allclose(probabilities(full(losses)), 0.25)


@pytest.mark.parametrize("num_bins", slow_after(2, [1, 3, 1000, 4000, 123_457]))
def test_a_bin_is_a_timestep_and_gets_its_losses(num_bins: int) -> None:
    steps = np.unique(np.linspace(0, num_bins - 1, 1000).astype(int))
    times = importance(num_bins=num_bins)
    u = (jnp.asarray(steps) + 0.5) / num_bins
    history = times.update(times.init(), u, jnp.asarray(steps, jnp.float32))
    np.testing.assert_array_equal(np.flatnonzero(history.seen), steps)
    np.testing.assert_array_equal(history.losses[steps, 0], steps)
    if num_bins <= 4000:
        process = DDPM(make_schedule("cosine", num_bins))
        np.testing.assert_array_equal(training_time(process, u), steps)


@pytest.mark.parametrize("name", TIME_SAMPLERS)
def test_an_objective_draws_its_times_so_and_gives_them_its_losses(name: str) -> None:
    times = TIME_SAMPLERS[name](PROCESS) if name == "likelihood" else TIME_SAMPLERS[name]()
    objective = make_objective(loss, times)
    aux = objective.init(None)
    draws = objective.draw(aux, jax.random.key(3), (6, 2, 2, 1))
    u, weight = times.draw(aux, jax.random.split(jax.random.key(3))[0], 6)
    np.testing.assert_array_equal(draws.u, u)
    np.testing.assert_array_equal(draws.weight, weight)
    assert draws.eps.shape == (6, 2, 2, 1)
    after = objective.update(aux, None, draws, jnp.arange(6.0))
    if name == "importance":
        assert after.seen.sum() == 6 and after.losses.sum() == 15
    else:
        assert after == aux == ()


def test_the_history_is_of_losses_without_weights() -> None:
    objective: Objective = make_objective(loss, importance(num_bins=2))
    draws = NoiseDraw(jnp.array([0.25, 0.75]), jnp.zeros((2, 1)), jnp.array([1.0, 3.0]))
    history = objective.update(objective.init(None), None, draws, jnp.array([5.0, 7.0]))
    np.testing.assert_array_equal(history.losses[:, 0], [5, 7])
