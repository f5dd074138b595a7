"""The state over several devices: what lies where, who computes what, and checkpoints for other numbers of devices."""

import contextlib
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec
from slow import slow, slow_after

from diffusion_jax.checkpoints.store import CheckpointStore
from diffusion_jax.losses import NoiseDraw, make_objective, uniform
from diffusion_jax.models.networks import Model
from diffusion_jax.parallel.sharding import batch_sharding, make_mesh, put
from diffusion_jax.training.loop import compile_steps
from diffusion_jax.training.optimizer import ema_decay, make_optimizer
from diffusion_jax.training.state import (
    TrainState,
    abstract_like,
    create_state,
    from_parts,
    state_shardings,
    to_parts,
)
from diffusion_jax.training.step import make_train_step

SIZE = 512  # SIZE x SIZE numbers are worth dividing, SIZE are not.
OPTIMIZER, AVERAGES = make_optimizer(1e-2, 2), {"slow": ema_decay(0.99)}


def init(key: Any) -> Any:
    return {"w": jax.random.normal(key, (SIZE, SIZE)) / SIZE, "b": jnp.zeros(SIZE)}


def loss(params: Any, aux: Any, x0: Any, labels: Any, draws: NoiseDraw, keys: Any) -> Any:
    x = x0.reshape(len(x0), SIZE)
    return jnp.square(x @ params["w"] + params["b"][None, :] - 1).mean(1)


def create(key: Any) -> TrainState:
    model = Model(init, lambda *_: None)  # type: ignore[arg-type]
    return create_state(key, model, OPTIMIZER, averages=AVERAGES)


def places(mesh: Mesh) -> TrainState:
    return state_shardings(mesh, jax.eval_shape(create, jax.random.key(0)))


def new_state(mesh: Mesh) -> TrainState:
    return jax.jit(create, out_shardings=places(mesh))(jax.random.key(0))


def compiled_step(mesh: Mesh) -> Any:
    step = make_train_step(
        make_objective(loss, uniform()),
        OPTIMIZER,
        jax.random.key(1),
        averages=AVERAGES,
        mesh=mesh,
        accumulate=2,
    )
    return compile_steps(step, 1, mesh, places(mesh))[1]


def batch(k: int, mesh: Mesh) -> Any:
    images = np.random.default_rng(k).integers(0, 256, (16, 1, SIZE, 1), np.uint8)
    return put(batch_sharding(mesh), {"image": images, "label": np.zeros(16, np.int32)})


def moments(state: TrainState) -> dict[str, Any]:
    (adam,) = [
        s
        for s in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu"))
        if hasattr(s, "mu")
    ]
    assert isinstance(adam, optax.ScaleByAdamState)
    return {"mu": adam.mu, "nu": adam.nu}


def collectives(text: str) -> dict[str, int]:
    """Returns the bytes of the results of each kind of collective in a compiled program."""
    found: dict[str, int] = {}
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    for line in text.splitlines():
        match = re.search(rf"= (.*?) ({kinds})(?:-start)?\(", line)
        alone = re.search(r"replica_groups=(\{\{\d+\},|\[\d+,1\])", line)  # Nothing is sent.
        if match and not alone:
            arrays = re.findall(r"(?:f32|s32|u32)\[([\d,]*)\]", match[1])
            numbers = sum(math.prod(map(int, a.split(","))) if a else 1 for a in arrays)
            found[match[2]] = found.get(match[2], 0) + 4 * numbers
    return found


def program(mesh: Mesh) -> str:
    state = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        jax.eval_shape(create, jax.random.key(0)),
        places(mesh),
    )
    return str(compiled_step(mesh).lower(state, batch(0, mesh)).compile().as_text())


@pytest.mark.parametrize("devices", [slow(2), 4])
def test_each_device_along_fsdp_keeps_and_updates_its_part(devices: int) -> None:
    mesh = make_mesh(8 // devices, devices)
    compiled, state = compiled_step(mesh), new_state(mesh)
    for k in range(2):
        before = state
        state, _ = compiled(state, batch(k, mesh))
        assert all(x.is_deleted() for x in jax.tree.leaves(before))
        for tree in (state.params, *moments(state).values(), state.ema["slow"]):
            assert tree["w"].sharding.spec == PartitionSpec("fsdp")
            assert tree["b"].sharding.is_fully_replicated
    # Of Adam's square roots and of the squares in norms and moments, a device computes those of its part.
    text = program(mesh)
    part = str(SIZE // devices)
    roots = re.findall(rf"f32\[(\d+),{SIZE}\]\S* sqrt\(", text)
    squares = re.findall(rf"f32\[(\d+),{SIZE}\]\S* multiply\((%\S+), \2\)", text)
    assert set(roots) == {part}
    assert part in {rows for rows, _ in squares} and str(SIZE) not in {rows for rows, _ in squares}


def target_of(params: Any, aux: Any) -> Any:
    """The average of the parameters that a target network has."""
    return jax.tree.map(lambda old, new: old + 0.5 * (new - old), aux, params)


def test_a_target_network_is_divided_like_the_parameters_and_the_loss_sees_all_of_it() -> None:
    """The loss compares with the target network's output, which follows the parameters after each step."""

    def compare(params: Any, aux: Any, x0: Any, labels: Any, noise: NoiseDraw, keys: Any) -> Any:
        x = x0.reshape(len(x0), SIZE)
        ours, target = (x @ of["w"] + of["b"][None, :] for of in (params, aux))
        return jnp.square(ours - target - 1).mean(1)

    objective = make_objective(compare, uniform())._replace(
        init=lambda params: jax.tree.map(jnp.copy, params),
        draw=lambda aux, key, shape: NoiseDraw(
            jnp.zeros(shape[0]), jnp.zeros(shape), jnp.ones(shape[0])
        ),
        update=lambda aux, params, noise, losses: target_of(params, aux),
    )
    model = Model(init, lambda *_: None)  # type: ignore[arg-type]
    create = partial(
        create_state, network=model, optimizer=OPTIMIZER, averages=AVERAGES, objective=objective
    )

    def run(mesh: Mesh, num_steps: int) -> TrainState:
        where = state_shardings(mesh, jax.eval_shape(create, jax.random.key(0)))
        state = jax.jit(create, out_shardings=where)(jax.random.key(0))
        step = make_train_step(
            objective, OPTIMIZER, jax.random.key(1), averages=AVERAGES, mesh=mesh, accumulate=2
        )
        compiled = compile_steps(step, 1, mesh, where)[1]
        for k in range(num_steps):
            state, _ = compiled(state, batch(k, mesh))
        return state

    expected, divided = run(make_mesh(1), 2), run(make_mesh(2, 4), 2)
    assert divided.aux["w"].sharding.spec == PartitionSpec("fsdp")
    chex.assert_trees_all_close(
        jax.device_get(divided), jax.device_get(expected), rtol=1e-4, atol=1e-6
    )
    first = run(make_mesh(1), 1)
    chex.assert_trees_all_close(
        jax.device_get(first.aux),
        jax.device_get(target_of(first.params, init(jax.random.key(0)))),
        rtol=1e-6,
    )


def test_along_data_only_the_gradients_are_summed_and_once() -> None:
    found = collectives(program(make_mesh(8)))
    numbers = SIZE * SIZE + SIZE
    # Besides the gradients: the batch's losses, and sums of them by quarter of the times.
    assert 4 * numbers <= found.pop("all-reduce") <= 1.01 * 4 * numbers
    assert sum(found.values()) <= 0.01 * 4 * numbers


def test_along_fsdp_parameters_are_gathered_and_gradients_are_summed_where_they_are_kept() -> None:
    found = collectives(program(make_mesh(1, 8)))
    large = 4 * SIZE * SIZE  # For each of two micro-batches; a loop's body is counted once.
    assert large <= found.pop("all-gather") <= 1.01 * large
    assert large / 8 <= found.pop("reduce-scatter") <= 1.01 * large / 8
    assert sum(found.values()) <= 0.01 * large


def test_a_device_of_eight_along_fsdp_keeps_an_eighth() -> None:
    kept = [
        sum(
            x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(new_state(make_mesh(1, n)))
        )
        for n in (1, 8)
    ]
    assert kept[1] <= (1 / 8 + 0.02) * kept[0]


@pytest.mark.parametrize("mesh", [slow((2, 1)), slow((1, 2)), (2, 4)])
def test_a_mesh_updates_as_one_device(mesh: tuple[int, int]) -> None:
    states = []
    for shape in ((1, 1), mesh):
        devices = make_mesh(*shape)
        compiled, state = compiled_step(devices), new_state(devices)
        for k in range(4):
            state, _ = compiled(state, batch(k, devices))
        states.append(jax.device_get(state))
    # Adam divides by the size of a gradient, so the rounding of small ones counts: a hundredth of a step.
    chex.assert_trees_all_close(states[1], states[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("before", "after"), slow_after(1, [((1, 1), (1, 8)), ((1, 8), (2, 1)), ((2, 2), (1, 4))])
)
def test_a_checkpoint_is_read_on_another_mesh(
    before: tuple[int, int], after: tuple[int, int], tmp_path: Path
) -> None:
    mesh = make_mesh(*before)
    saved, _ = compiled_step(mesh)(new_state(mesh), batch(0, mesh))
    template = partial(abstract_like, create, places(make_mesh(*after)))
    with contextlib.closing(CheckpointStore(tmp_path)) as store:
        store.save(1, to_parts(saved), {})
        store.wait()
        checkpoint = store.restore(to_parts(template()))
    assert checkpoint is not None
    read = from_parts(checkpoint.parts)
    chex.assert_trees_all_equal(jax.device_get(read), jax.device_get(saved))
    assert jax.tree.map(lambda x: x.sharding, read) == places(make_mesh(*after))
