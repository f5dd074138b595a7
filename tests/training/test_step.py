"""The train step: optimizer, average, metrics, noise, accumulation, several devices; the dispatches."""

import contextlib
import itertools
import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from slow import slow_after

from diffusion_jax.checkpoints.store import CheckpointStore
from diffusion_jax.data import from_arrays, to_model_range
from diffusion_jax.keys import indexed
from diffusion_jax.losses import NoiseDraw, Objective, loss_function, make_objective, uniform
from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.models.networks import MLP, Model, as_functions
from diffusion_jax.models.networks.blocks import ResBlock, SelfAttention
from diffusion_jax.models.networks.embeddings import time_embedding
from diffusion_jax.models.networks.layers import Conv
from diffusion_jax.parallel.sharding import batch_sharding, fetch, make_mesh, put, replicated
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.training.held_out import held_out_draws, make_held_out_loss
from diffusion_jax.training.loop import compile_steps, dispatch_sizes
from diffusion_jax.training.optimizer import (
    DECAYS,
    ema_decay,
    learning_rate_schedule,
    make_optimizer,
)
from diffusion_jax.training.state import (
    TrainState,
    abstract_like,
    create_state,
    from_parts,
    to_parts,
)
from diffusion_jax.training.step import TrainStep, make_multi_step, make_train_step, step_keys

T = 100


def toy_loss(params: Any, aux: Any, x0: Any, labels: Any, draws: NoiseDraw, key: Any) -> Any:
    """A loss that every input but the dropout keys has a part in."""
    time = draws.u[:, None, None, None]
    error = params["w"][None, None, None, :] * x0 + params["b"] * draws.eps - time
    return jnp.square(error).mean((1, 2, 3)) + (0 if labels is None else 0.1 * labels)


def new_state(optimizer: optax.GradientTransformation, params: Any = None) -> TrainState:
    params = {"w": [0.5, -1.0, 2.0], "b": 0.3} if params is None else params
    # Of one type from the start: a weakly typed scalar would compile each step twice.
    params = jax.tree.map(jnp.float32, params, is_leaf=lambda x: isinstance(x, list))
    model = Model(lambda key: params, lambda *_: None)  # type: ignore[arg-type]
    return create_state(jax.random.key(0), model, optimizer, averages=["slow"])


def make_batch(k: int = 0, size: int = 8, shape: tuple = (2, 2, 3)) -> dict[str, jax.Array]:
    rng = np.random.default_rng(k)
    images = rng.integers(0, 256, (size, *shape), np.uint8)
    return {
        "image": jnp.asarray(images),
        "label": jnp.asarray(rng.integers(0, 10, size), jnp.int32),
    }


def toy_step(optimizer: optax.GradientTransformation, loss: Any = toy_loss, **changes) -> TrainStep:
    settings = {"averages": {"slow": ema_decay(0.99)}, **changes}
    return make_train_step(
        make_objective(loss, uniform()), optimizer, jax.random.key(7), **settings
    )


assert_close = partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


# ---- optimizer and average ---------------------------------------------------------------------------


@pytest.mark.parametrize("grad_clip", [1.0, 0.0])
@pytest.mark.parametrize("warmup_steps", [4, 0])
def test_optimizer_is_adam_with_warm_up_and_clipping_done_by_hand(warmup_steps, grad_clip):
    gradients = np.array(
        [[3.0, 4.0], [0.3, -0.4], [-30.0, 40.0], [0.0, 0.5], [6.0, 0.0], [1.0, 1.0]]
    )
    optimizer = make_optimizer(0.01, warmup_steps, grad_clip)
    params = jnp.array([1.0, -1.0])
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    mean = variance = np.zeros(2)
    expected = np.array(params, np.float64)
    for k, gradient in enumerate(gradients):
        updates, state = update(jnp.asarray(gradient, jnp.float32), state, params)
        params = jnp.asarray(optax.apply_updates(params, updates))
        if grad_clip:
            gradient = gradient * min(1.0, grad_clip / np.linalg.norm(gradient))
        mean = 0.9 * mean + 0.1 * gradient
        variance = 0.999 * variance + 0.001 * gradient**2
        rate = 0.01 * min(1.0, (k + 1) / warmup_steps) if warmup_steps else 0.01
        unbiased = np.sqrt(variance / (1 - 0.999 ** (k + 1))) + 1e-8
        expected = expected - rate * mean / (1 - 0.9 ** (k + 1)) / unbiased
        np.testing.assert_allclose(params, expected, rtol=1e-5)  # float32


def rates(steps: Iterable[int], decay: str, num_steps: int) -> np.ndarray:
    """Returns the learning rates of these steps, with a warm-up of ten steps to 0.5."""
    rate = learning_rate_schedule(0.5, warmup_steps=10, decay=decay, num_steps=num_steps)
    return np.array([rate(jnp.asarray(k)) for k in steps])


@pytest.mark.parametrize(
    ("decay", "at_a_third", "at_the_last"),
    [
        ("constant", 1.0, 1.0),
        ("linear", 2 / 3, 1 / 90),
        ("cosine", 3 / 4, math.sin(math.pi / 180) ** 2),  # (1 + cos x) / 2 = sin((pi - x) / 2)^2.
    ],
)
def test_the_rate_rises_over_the_warm_up_and_decays_to_0_at_the_last_step(
    decay: str, at_a_third: float, at_the_last: float
) -> None:
    end = 1.0 if decay == "constant" else 0.0
    share = {0: 0.1, 4: 0.5, 9: 1.0, 10: 1.0, 40: at_a_third, 99: at_the_last}
    share |= {100: end, 101: end, 10**6: end}
    expected = [0.5 * s for s in share.values()]
    # The cosine of the last steps is nearly -1: it has the absolute error of float32.
    np.testing.assert_allclose(rates(share, decay, 100), expected, rtol=1e-6, atol=1e-7)
    assert (np.diff(rates(range(9, 102), decay, 100)) <= 0).all()


@pytest.mark.parametrize("decay", DECAYS)
def test_a_training_no_longer_than_its_warm_up_has_the_warm_ups_rates(decay: str) -> None:
    for num_steps in (1, 10):
        found = rates(range(10), decay, num_steps)
        np.testing.assert_allclose(found, 0.05 * np.arange(1, 11), rtol=1e-6)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_optimizers_steps_shrink_as_the_rate_decays(decay: str) -> None:
    # Of a constant gradient Adam's step is the rate itself: mean and root of the variance are equal.
    optimizer = make_optimizer(0.5, 0, grad_clip=0.0, decay=decay, num_steps=4)
    state, steps = optimizer.init(jnp.zeros(())), []
    for _ in range(5):
        change, state = optimizer.update(jnp.ones(()), state, jnp.zeros(()))
        steps.append(-jnp.asarray(change))
    f = np.array([0, 1 / 4, 1 / 2, 3 / 4, 1])
    expected = 1 - f if decay == "linear" else (1 + np.cos(np.pi * f)) / 2
    np.testing.assert_allclose(steps, 0.5 * expected, rtol=1e-5, atol=1e-7)  # float32


def test_decay_of_the_average_warms_up():
    steps = np.array([0, 1, 8, 90, 10_000])
    values = [ema_decay(0.99)(jnp.asarray(k)) for k in steps]
    np.testing.assert_allclose(values, [1 / 10, 2 / 11, 9 / 18, 91 / 100, 0.99], rtol=1e-6)


def test_without_warm_up_the_decay_is_the_same_from_the_first_step_on():
    values = [ema_decay(0.99, warmup=False)(jnp.asarray(k)) for k in (0, 1, 10_000)]
    np.testing.assert_allclose(values, 0.99, rtol=1e-6)


def test_averages_follow_the_parameters_each_at_its_own_pace():
    # Clipped gradient descent on a slope: w falls by 1 a step, so it is 1000 - k after k steps.
    def slope(params: Any, aux: Any, x0: Any, *_: Any) -> Any:
        return 5 * params + 0 * x0.mean((1, 2, 3))

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    averages = {"warm": ema_decay(0.9999), "cold": ema_decay(0.9999, warmup=False)}
    step = jax.jit(toy_step(optimizer, slope, averages=averages))
    params = jnp.float32(1000.0)
    model = Model(lambda key: params, lambda *_: None)  # type: ignore[arg-type]
    state = create_state(jax.random.key(0), model, optimizer, averages=averages)
    warm = cold = 1000.0
    for k in range(20):
        state, _ = step(state, make_batch())
        decay = min(0.9999, (1 + k) / (10 + k))
        warm = decay * warm + (1 - decay) * (1000.0 - (k + 1))
        cold = 0.9999 * cold + 0.0001 * (1000.0 - (k + 1))
        np.testing.assert_allclose(state.params, 1000.0 - (k + 1))
        np.testing.assert_allclose(state.ema["warm"], warm, rtol=1e-6)
        np.testing.assert_allclose(state.ema["cold"], cold, rtol=1e-6)
    assert state.ema["warm"] < 990 and state.ema["cold"] > 999.9


# ---- batches in pieces, steps in groups ---------------------------------------------------------------


@pytest.mark.parametrize("conditional", [False, True])
def test_four_micro_batches_are_one_batch(conditional):
    optimizer = optax.sgd(0.1)
    states = []
    for accumulate in (1, 4):
        step = toy_step(optimizer, conditional=conditional, accumulate=accumulate, flip=True)
        state, step = new_state(optimizer), jax.jit(step)
        for k in range(3):
            state, _ = step(state, make_batch(k))
        states.append(state)
    # The same sums in another order; plain SGD enlarges nothing.
    assert_close(states[1], states[0])


@pytest.mark.parametrize("accumulate", [1, 16])
def test_each_image_has_a_dropout_key_of_its_own_however_the_batch_is_split(accumulate):
    def noise(params: Any, aux: Any, x0: Any, labels: Any, draws: Any, keys: Any) -> Any:
        return params * jax.vmap(jax.random.uniform)(keys)

    objective = make_objective(noise, uniform())._replace(
        update=lambda aux, params, noise, losses: losses
    )
    step = make_train_step(objective, optax.sgd(1.0), jax.random.key(7), accumulate=accumulate)
    state, _ = jax.jit(step)(new_state(optax.sgd(1.0), 1.0), make_batch(size=64))
    key = step_keys(jax.random.key(7), 0).dropout
    expected = [jax.random.uniform(jax.random.fold_in(key, i)) for i in range(64)]
    np.testing.assert_array_equal(state.aux, expected)


def test_three_steps_in_one_scan_are_three_steps():
    optimizer = make_optimizer(0.01, 2)
    step = toy_step(optimizer, flip=True)
    batches = [make_batch(k) for k in range(3)]
    single, compiled, metrics = new_state(optimizer), jax.jit(step), []
    for batch in batches:
        single, of_step = compiled(single, batch)
        metrics.append(of_step)
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *batches)
    together, of_three = jax.jit(make_multi_step(step, 3))(new_state(optimizer), stacked)
    assert_close(together, single)  # Two programs, fused differently.
    assert_close(of_three, jax.tree.map(lambda *parts: jnp.stack(parts), *metrics))
    assert together.step == 3


def test_one_step_a_dispatch_is_the_step_itself():
    step = toy_step(optax.sgd(0.1))
    assert make_multi_step(step, 1) is step


# ---- metrics -----------------------------------------------------------------------------------------


def test_metrics_are_those_of_the_step_and_by_quarter_of_u():
    # The loss of an image is the quarter of its u; the gradient (3, 4) is clipped, and then divided by 10.
    def quarter_loss(
        params: Any, aux: Any, x0: Any, labels: Any, draws: NoiseDraw, key: Any
    ) -> Any:
        slope = params @ jnp.array([3.0, 4.0])
        return jnp.floor(4 * draws.u) + slope - jax.lax.stop_gradient(slope)

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    step = jax.jit(toy_step(optimizer, quarter_loss))
    state = new_state(optimizer, [0.0, 0.0])
    for k in range(3):
        state, m = step(state, make_batch(size=64))
        np.testing.assert_allclose(m.grad_norm, 5, rtol=1e-6)  # Before clipping.
        np.testing.assert_allclose(m.param_norm, 0.1 * (k + 1), rtol=1e-5)  # After the step.
        assert m.quartile_images.sum() == 64 and m.quartile_images.min() > 4
        np.testing.assert_allclose(m.quartile_loss.sum() / 64, m.loss, rtol=1e-6)
        np.testing.assert_allclose(m.quartile_loss, np.arange(4) * m.quartile_images, rtol=1e-6)


def test_an_objective_keeps_its_own_state_and_draws_from_it():
    """One that remembers its losses by step, and draws u at its count of steps."""

    def draw(aux: Any, key: Any, shape: tuple[int, ...]) -> NoiseDraw:
        n = shape[:1]
        return NoiseDraw(jnp.full(n, aux["steps"] / 10), jnp.zeros(shape), jnp.ones(n))

    def update(aux: Any, params: Any, draws: NoiseDraw, losses: Any) -> Any:
        assert losses.shape == draws.u.shape
        return {"steps": aux["steps"] + 1, "sum": aux["sum"] + losses.sum()}

    objective = Objective(
        lambda params: {"steps": jnp.zeros(()), "sum": jnp.zeros(())},
        draw,
        lambda params, aux, x0, labels, draws, key: params * draws.u,
        update,
    )
    optimizer = optax.sgd(0.0)
    model = Model(lambda key: jnp.float32(2.0), lambda *_: None)  # type: ignore[arg-type]
    for accumulate in (1, 4):
        step = jax.jit(
            make_train_step(objective, optimizer, jax.random.key(0), accumulate=accumulate)
        )
        state = create_state(jax.random.key(0), model, optimizer, objective=objective)
        for k in range(3):
            state, metrics = step(state, make_batch())
            np.testing.assert_allclose(metrics.loss, 2 * k / 10, rtol=1e-6)
        # 8 images with losses 0, 0.2 and 0.4.
        assert_close(state.aux, {"steps": 3.0, "sum": 8 * 0.6})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_unevenly_drawn_times_are_weighted_in_loss_gradient_and_quarters_alone(accumulate):
    """The objective's own state gets the losses as they are."""
    u, weight = np.array([0.1, 0.2, 0.3, 0.9] * 2), np.array([2.0, 0.5, 1.0, 0.25] * 2)

    def draw(aux: Any, key: Any, shape: tuple[int, ...]) -> NoiseDraw:
        return NoiseDraw(jnp.float32(u), jnp.zeros(shape), jnp.float32(weight))

    objective = Objective(
        lambda params: jnp.zeros(8),
        draw,
        lambda params, aux, x0, labels, draws, key: params * (1 + draws.u),
        lambda aux, params, draws, losses: losses,
    )
    optimizer = optax.sgd(0.1)
    step = make_train_step(objective, optimizer, jax.random.key(0), accumulate=accumulate)
    state, metrics = jax.jit(step)(new_state(optimizer, 3.0), make_batch())
    slope = (weight * (1 + u)).mean()
    assert_close(metrics.loss, np.float32(3 * slope))
    assert_close(metrics.grad_norm, np.float32(slope))
    assert_close(state.params, np.float32(3 - 0.1 * slope))
    assert_close(state.aux, np.float32(3 * (1 + u)))
    assert_close(metrics.quartile_images, np.array([5, 2, 0, 0.5], np.float32))
    by_quarter = [2 * (2 * 1.1 + 0.5 * 1.2), 2 * 1.3, 0, 2 * 0.25 * 1.9]
    assert_close(metrics.quartile_loss, 3 * np.array(by_quarter, np.float32))


# ---- randomness --------------------------------------------------------------------------------------


def draws(steps: int = 1, size: int = 4096, **changes: Any) -> list[dict[str, Any]]:
    """Returns what the loss was given at each step, for images that are black left and white right."""
    seen = []

    def record(params: Any, aux: Any, x0: Any, labels: Any, draws: NoiseDraw, key: Any) -> Any:
        seen.append({"x0": np.asarray(x0), "u": np.asarray(draws.u), "eps": np.asarray(draws.eps),
                     "labels": labels, "key": jax.random.key_data(key)})  # fmt: skip
        return params * jnp.ones(len(x0))

    step = toy_step(optax.sgd(0.1), record, **changes)
    images = jnp.broadcast_to(jnp.array([0, 255], jnp.uint8)[None, None, :, None], (size, 1, 2, 1))
    state = new_state(optax.sgd(0.1), 1.0)
    for _ in range(steps):
        state, _ = step(state, {"image": images, "label": jnp.arange(size)})
    return seen


def test_half_of_the_images_are_mirrored_if_asked_for():
    left = draws(flip=True)[0]["x0"][:, 0, 0, 0]
    assert set(np.unique(left)) == {-1.0, 1.0}
    np.testing.assert_allclose(left.mean(), 0, atol=5 / np.sqrt(4096))
    np.testing.assert_array_equal(draws()[0]["x0"][:, 0, 0, 0], -1)


def test_every_step_draws_anew_and_draws_the_same_again():
    first, again = draws(steps=2, size=64), draws(steps=2, size=64)
    for name in ("u", "eps", "key"):
        assert not np.array_equal(first[0][name], first[1][name])
        np.testing.assert_array_equal(first[0][name], again[0][name])
        np.testing.assert_array_equal(first[1][name], again[1][name])


def test_flip_draws_and_dropout_share_no_key():
    n, seen = 4096, {}
    dropout_key = step_keys(jax.random.key(7), 0).dropout

    # Like the flip, these draw with the very key that they are given: one key for two of them gives
    # both the same numbers.
    def draw(aux: Any, key: Any, shape: tuple[int, ...]) -> NoiseDraw:
        return NoiseDraw(jax.random.uniform(key, shape[:1]), jnp.zeros(shape), jnp.ones(shape[:1]))

    def loss(params: Any, aux: Any, x0: Any, labels: Any, draws: NoiseDraw, keys: Any) -> Any:
        assert (keys == indexed(dropout_key, jnp.arange(n))).all()
        seen.update(flip=x0[:, 0, 0, 0], u=draws.u, dropout=jax.random.uniform(dropout_key, (n,)))
        return params * jnp.ones(n)

    objective = Objective(lambda params: (), draw, loss, lambda aux, *_: aux)
    step = make_train_step(objective, optax.sgd(0.1), jax.random.key(7), flip=True)
    images = jnp.broadcast_to(jnp.array([0, 255], jnp.uint8)[None, None, :, None], (n, 1, 2, 1))
    step(new_state(optax.sgd(0.1), 1.0), {"image": images, "label": jnp.zeros(n, jnp.int32)})
    correlations = np.corrcoef(np.stack(list(seen.values())))
    # The correlation of n independent pairs has a standard deviation of 1 / sqrt(n): this is five.
    np.testing.assert_allclose(correlations, np.eye(3), atol=5 / np.sqrt(n))


def test_labels_are_given_to_conditional_losses_only():
    assert draws(size=8)[0]["labels"] is None
    np.testing.assert_array_equal(draws(size=8, conditional=True)[0]["labels"], np.arange(8))


def test_a_share_of_the_labels_is_dropped_anew_in_each_step_and_nothing_else_changes():
    plain = draws(steps=2, conditional=True)
    dropped = draws(steps=2, conditional=True, label_dropout=0.1, no_label=-7)
    shares = []
    for before, after in zip(plain, dropped, strict=True):
        lost = np.asarray(after["labels"] == -7)
        np.testing.assert_array_equal(np.asarray(after["labels"])[~lost], np.arange(4096)[~lost])
        for name in ("u", "eps", "key"):
            np.testing.assert_array_equal(after[name], before[name])
        shares.append(lost)
    # Five standard deviations of a share of 4,096.
    np.testing.assert_allclose(np.mean(shares, axis=1), 0.1, atol=5 * np.sqrt(0.09 / 4096))
    np.testing.assert_allclose(np.mean(shares[0] & shares[1]), 0.01, atol=0.01)


# ---- a whole model -----------------------------------------------------------------------------------


class Blocks(nn.Module):
    """What a U-Net is made of, with little to compile."""

    @nn.compact
    def __call__(self, x: Any, t: Any, labels: Any = None, dropout_keys: Any = None) -> Any:
        h = ResBlock(8, 0.1, jnp.float32)(Conv(8)(x), time_embedding(t, 8), dropout_keys)
        return Conv(x.shape[-1])(SelfAttention(jnp.float32)(h))


@pytest.mark.slow
def test_one_device_and_eight_have_the_same_loss_curve():
    model = as_functions(Blocks(), (8, 8, 1))
    optimizer = make_optimizer(1e-3, 5)
    objective = loss_function(
        "simple", DiffusionModel(DDPM(make_schedule("linear", T)), "eps", model.apply)
    )
    averages = {"slow": ema_decay(0.99)}
    batches = [make_batch(k, 16, (8, 8, 1)) for k in range(10)]
    create = jax.jit(partial(create_state, network=model, optimizer=optimizer, averages=averages))
    initial = fetch(create(jax.random.key(2)))
    curves = []
    for devices in (1, 8):
        mesh = make_mesh(devices)
        step = make_train_step(
            objective, optimizer, jax.random.key(1), averages=averages, flip=True, mesh=mesh
        )
        state = jax.device_put(initial, replicated(mesh))
        compiled = jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh))
        before, curve = state, []
        for batch in batches:
            before = state
            state, metrics = compiled(state, put(batch_sharding(mesh), batch))
            curve.append(fetch(metrics))
        large = jax.tree.leaves((before.params, before.ema, before.opt_state))
        assert all(leaf.is_deleted() for leaf in large), "not donated"
        assert state.step == 10
        curves.append(curve)
    for one, eight in zip(*curves, strict=True):
        # The sums over the batch are split: float32 rounding, which ten steps hardly enlarge.
        assert_close(eight.loss, one.loss, rtol=1e-5)
        assert_close(eight.quartile_loss, one.quartile_loss, rtol=1e-4)
        np.testing.assert_array_equal(eight.quartile_images, one.quartile_images)


@pytest.mark.parametrize(("dropout", "accumulate"), slow_after(1, [(0.0, 1), (0.3, 4)]))
def test_two_devices_have_the_loss_curve_of_one_over_200_steps(dropout, accumulate):
    model = as_functions(MLP(channels=8, num_res_blocks=1, dropout=dropout), (1, 1, 2))
    optimizer = make_optimizer(1e-3, 20)
    objective = loss_function(
        "simple", DiffusionModel(DDPM(make_schedule("cosine", T)), "eps", model.apply)
    )
    batches = make_batch(size=200 * 16, shape=(1, 1, 2))
    batches = jax.tree.map(lambda x: x.reshape(200, 16, *x.shape[1:]), batches)
    curves = []
    for devices in (1, 2):
        mesh, pieces = make_mesh(devices), 1 if devices == 1 else accumulate
        step = make_train_step(
            objective, optimizer, jax.random.key(1), accumulate=pieces, mesh=mesh
        )
        state = create_state(jax.random.key(2), model, optimizer)
        state = jax.device_put(state, replicated(mesh))
        _, metrics = jax.jit(make_multi_step(step, 200))(
            state, put(batch_sharding(mesh, axis=1), batches)
        )
        curves.append(np.asarray(metrics.loss))
    assert np.ptp(curves[0]) > 0.1
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5)  # Float32 sums in another order.


@pytest.mark.parametrize("prediction", slow_after(1, ["eps", "x0", "v"]))
def test_training_reduces_the_loss(prediction):
    model = as_functions(MLP(channels=32, num_res_blocks=1), (1, 1, 2))
    optimizer = make_optimizer(1e-2, 10)
    process = DDPM(make_schedule("cosine", T))
    objective = loss_function("simple", DiffusionModel(process, prediction, model.apply))
    step = make_train_step(objective, optimizer, jax.random.key(1))
    # One image again and again: a network can tell the noise from it exactly.
    batch = {
        "image": jnp.broadcast_to(jnp.array([0, 200], jnp.uint8), (20, 64, 1, 1, 2)),
        "label": jnp.zeros((20, 64), jnp.int32),
    }
    steps = jax.jit(make_multi_step(step, 20))
    state = jax.jit(partial(create_state, network=model, optimizer=optimizer))(jax.random.key(0))
    curve = []
    for _ in range(10):
        state, metrics = steps(state, batch)
        curve.append(float(metrics.loss.mean()))
    assert curve[-1] < 0.25 * curve[0]


# ---- held-out loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 10**6])
def test_held_out_times_are_spread_evenly_however_many_images_count(first):
    u = np.asarray(held_out_draws(jax.random.key(0), first + jnp.arange(200), ()).u)
    # Multiples of the golden ratio, by which neighbors differ up to the 24 bits of a float32.
    apart = (np.diff(u.astype(float)) - (5**0.5 - 1) / 2) % 1
    np.testing.assert_allclose((apart + 0.5) % 1, 0.5, atol=2**-23)
    assert 0 <= u.min() < 0.01 and 0.99 < u.max() < 1
    for count in (10, 50, 200):
        # The mean of a sequence of such low discrepancy is off by less than 1 / count.
        np.testing.assert_allclose(u[:count].mean(), 0.5, atol=1 / count)
    assert not np.any(u == held_out_draws(jax.random.key(1), first + jnp.arange(200), ()).u)


def test_held_out_images_have_noise_of_their_own_that_is_independent_of_their_times():
    n = 4096
    draws = held_out_draws(jax.random.key(0), jnp.arange(n), (2,))
    u, eps = np.asarray(draws.u), np.asarray(draws.eps)
    assert len(np.unique(eps, axis=0)) == n, "two images with the same noise"
    series = [u[1:], eps[1:, 0], eps[1:, 1], eps[:-1, 0]]  # The last: of the image before.
    correlations = np.corrcoef(np.stack(series))
    # Five standard deviations, 1 / sqrt(n), of the correlation of independent pairs.
    np.testing.assert_allclose(correlations, np.eye(4), atol=5 / np.sqrt(n))
    np.testing.assert_allclose(eps.mean(0), 0, atol=5 / np.sqrt(n))
    np.testing.assert_allclose(eps.var(0), 1, atol=5 * np.sqrt(2 / n))  # Variance of a square: 2.


def test_held_out_loss_depends_neither_on_the_devices_nor_on_the_batches():
    def loss(params: Any, aux: Any, x0: Any, labels: Any, draws: NoiseDraw, key: Any) -> Any:
        assert labels is None and key is None  # Unconditional; no dropout.
        return toy_loss(params, aux, x0, labels, draws, key)

    images = np.asarray(make_batch(size=50)["image"])
    split = from_arrays(images)
    params = {"w": jnp.array([0.5, -1.0, 2.0]), "b": jnp.array(0.3)}
    key = jax.random.key(3)
    draws = held_out_draws(key, jnp.arange(50), (2, 2, 3))
    expected = toy_loss(params, (), to_model_range(jnp.asarray(images)), None, draws, None).mean()
    for devices in (1, 4, 8):
        for batch_size in (6, 7, 250) if devices == 1 else (7, 250):  # 6 is rounded to 8, as 7 is.
            held_out = make_held_out_loss(
                make_objective(loss, uniform()), split, make_mesh(devices), key,
                conditional=False, num_images=1000, batch_size=batch_size,
            )  # fmt: skip
            # float32 sums of 12 terms an image, in another order.
            np.testing.assert_allclose(held_out(params, ()), expected, rtol=1e-6)


@pytest.mark.parametrize("num_images", [10, 19, 100])
def test_held_out_loss_is_the_mean_over_the_first_images_each_counted_once(num_images):
    def brightness(params: Any, aux: Any, x0: Any, labels: Any, draws: NoiseDraw, key: Any) -> Any:
        return params * (x0.mean((1, 2, 3)) + labels)

    images, labels = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1) * 5, np.arange(20) % 3
    held_out = make_held_out_loss(
        make_objective(brightness, uniform()),
        from_arrays(images, labels, ("a", "b", "c")),
        make_mesh(),
        jax.random.key(0),
        conditional=True,
        num_images=num_images,
        batch_size=6,  # Rounded up to 8 devices: 10, 19 and 20 images leave a batch half full.
    )
    n = min(num_images, 20)
    expected = 2 * (images[:n].mean() / 127.5 - 1 + labels[:n].mean())
    np.testing.assert_allclose(held_out(jnp.array(2.0), ()), expected, rtol=1e-5)


# ---- dispatches --------------------------------------------------------------------------------------


def random_settings() -> list[tuple[int, int, tuple[int, ...]]]:
    """Returns (num_steps, per_dispatch, everys)."""
    rng = np.random.default_rng(0)
    return [
        (
            int(rng.integers(1, 200)),
            int(rng.integers(1, 13)),
            tuple(int(every) for every in rng.choice([0, 1, 3, 10, 24, 50], rng.integers(1, 4))),
        )
        for _ in range(200)
    ]


def test_dispatches_end_at_every_event_and_at_the_end():
    for num_steps, per_dispatch, everys in random_settings():
        sizes = list(dispatch_sizes(0, num_steps, per_dispatch, everys))
        assert set(sizes) <= {1, per_dispatch}
        edges = {0, *itertools.accumulate(sizes)}
        events = {k for every in everys if every for k in range(0, num_steps, every)}
        assert events | {num_steps} <= edges
        assert sum(sizes) == num_steps


def test_a_resume_at_any_boundary_has_the_dispatches_of_an_uninterrupted_run():
    for num_steps, per_dispatch, everys in random_settings():
        sizes = list(dispatch_sizes(0, num_steps, per_dispatch, everys))
        for i, start in enumerate([0, *itertools.accumulate(sizes)]):
            assert list(dispatch_sizes(start, num_steps, per_dispatch, everys)) == sizes[i:]


def test_dispatches_are_full_where_no_event_is_near():
    assert list(dispatch_sizes(0, 35, 10, (20, 0))) == [10, 10, 10, 1, 1, 1, 1, 1]
    assert list(dispatch_sizes(0, 20, 10, (5,))) == [1] * 20
    assert list(dispatch_sizes(20, 20, 10, ())) == []


@pytest.mark.parametrize("per_dispatch", slow_after(1, [1, 3]))
def test_a_step_is_traced_once_whatever_the_batch_and_also_after_a_resume(
    per_dispatch: int, tmp_path: Path
) -> None:
    model, optimizer = as_functions(MLP(channels=8, num_classes=10), (1, 1, 2)), make_optimizer()
    objective = loss_function(
        "simple", DiffusionModel(DDPM(make_schedule("cosine", T)), "eps", model.apply)
    )
    averages, mesh = {"slow": ema_decay(0.99)}, make_mesh()
    step = make_train_step(
        objective,
        optimizer,
        jax.random.key(1),
        averages=averages,
        flip=True,
        conditional=True,
        mesh=mesh,
    )
    chex.clear_trace_counter()
    counted: Any = chex.assert_max_traces(step, n=1)
    run = compile_steps(counted, per_dispatch, mesh, replicated(mesh))[per_dispatch]
    create = partial(
        create_state, network=model, optimizer=optimizer, averages=averages, objective=objective
    )
    state = jax.jit(create, out_shardings=replicated(mesh))(jax.random.key(0))

    def advance(state: TrainState, k: int) -> TrainState:
        batch = make_batch(k, 8, (1, 1, 2))
        if per_dispatch == 1:
            return run(state, put(batch_sharding(mesh), batch))[0]
        stacked = jax.tree.map(lambda x: np.stack([x] * per_dispatch), batch)
        return run(state, put(batch_sharding(mesh, axis=1), stacked))[0]

    for k in range(3):
        state = advance(state, k)
    with contextlib.closing(CheckpointStore(tmp_path)) as store:
        store.save(3, to_parts(state), {})
        store.wait()
        resumed = store.restore(to_parts(abstract_like(create, replicated(mesh))))
    assert resumed is not None
    state = from_parts(resumed.parts)
    for k in range(3, 6):
        state = advance(state, k)
    assert state.step == 6 * per_dispatch


# ---- state -------------------------------------------------------------------------------------------


def test_the_template_of_a_state_has_its_shapes_types_and_shardings():
    model, optimizer = as_functions(MLP(channels=8), (1, 1, 2)), make_optimizer()
    everywhere = replicated(make_mesh())
    create = partial(create_state, network=model, optimizer=optimizer, averages=["slow"])
    state = jax.jit(create, out_shardings=everywhere)(jax.random.key(0))
    template = abstract_like(create, everywhere)
    described = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )
    assert described == template
    assert state.step == 0


def test_the_average_starts_as_a_copy_so_that_a_state_can_be_donated():
    state = new_state(optax.adam(0.1))
    chex.assert_trees_all_equal(state.ema["slow"], state.params)
    # Donating one buffer twice is an error.
    jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)(state)
