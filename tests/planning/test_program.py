"""A train step compiled without arrays: what of it lies on a device, and how fast it can be."""

import jax
import pytest
from ml_collections import ConfigDict
from slow import slow_after

from diffusion_jax.config import default_config
from diffusion_jax.experiment.planning import planned_training
from diffusion_jax.planning.chips import CHIPS, Chip
from diffusion_jax.planning.collectives import Traffic
from diffusion_jax.planning.hlo import Kernels
from diffusion_jax.planning.program import Compiled, compile_step
from diffusion_jax.planning.roofline import estimate, gflop_per_image, roofline

WIDTH, PIXELS = 128, 64


def small(**mesh: int) -> ConfigDict:
    config = default_config()
    config.model.name, config.model.channels, config.model.num_res_blocks = "mlp", WIDTH, 1
    config.train.batch_size = 64
    config.mesh.update(mesh)
    return config


@pytest.mark.parametrize("data, fsdp", slow_after(1, [(1, 8), (8, 1)]))
def test_a_device_holds_its_part_of_parameters_moments_and_averages(data: int, fsdp: int):
    """Of the perceptron only its four square kernels have 2^14 numbers, from which on arrays are divided."""
    step = compile_step(*planned_training(small(data=data, fsdp=fsdp), jax.devices()[:8]))
    square = 4 * WIDTH * WIDTH  # Of the time, and three of the block.
    in_and_out = 2 * PIXELS * WIDTH
    vectors = (
        5 + 4
    ) * WIDTH + PIXELS  # Biases of the five maps to that width; two norms; bias of the output.
    expected = 4 * (square // fsdp + in_and_out + vectors)
    assert step.mesh == {"data": data, "fsdp": fsdp}
    assert step.state["parameters"] == step.state["averages"] == expected
    assert step.state["optimizer"] == 2 * expected + 8  # Adam's two moments and two counts.
    assert step.batch == 8 * (PIXELS + 4)  # Bytes of pixels, and a label.
    # The program is given just these, but for labels that it does not use.
    assert step.arguments == sum(step.state.values()) + step.batch - 8 * 4
    # The new state takes the place of the old; the metrics do not.
    assert 0 < step.unaliased < 2000
    assert step.total == step.arguments + step.unaliased + step.temporaries + step.code
    assert 0 < step.activations < step.temporaries


@pytest.mark.slow
def test_accumulation_needs_less_memory_and_computes_as_much():
    """XLA counts the loop over micro-batches once."""
    whole, micro = small(data=1), small(data=1)
    for config in (whole, micro):
        config.train.batch_size = 1024
    micro.train.accumulate = 8
    devices = jax.devices()[:1]
    one, eight = (compile_step(*planned_training(config, devices)) for config in (whole, micro))
    assert eight.activations < one.activations / 2
    # Per image six operations a parameter of each kernel, but that no gradient goes to pixels and time.
    kernels = 4 * WIDTH**2 + 2 * PIXELS * WIDTH
    least = 6 * kernels - 2 * (WIDTH**2 + PIXELS * WIDTH)
    for step in (one, eight):
        assert (
            1 < 1e9 * gflop_per_image(step, 1024) / least < 1.5
        )  # The rest is element by element.


def step_of(**figures: object) -> Compiled:
    plain = {
        **dict(mesh={"data": 2, "fsdp": 2}, state={"parameters": 30}, batch=1, arguments=100),
        **dict(num_parameters=7),
        **dict(unaliased=5, temporaries=50, code=7, flops=0.0, bytes_accessed=0.0),
        **dict(cycles={}, collectives={}, unknown_loops=0, seconds=0.0),
    }
    return Compiled(**{**plain, **figures})  # pyright: ignore[reportArgumentType]


def test_the_bound_is_the_slowest_of_three_roofs_by_hand():
    chip = Chip("", {"bfloat16": 200.0, "float32": 100.0}, 1.0, 50.0, 10.0)
    sent = {"all-reduce": Traffic(1, 8, 12.0), "all-gather": Traffic(2, 9, 8.0)}
    step = step_of(flops=300.0, bytes_accessed=60.0, collectives=sent)
    least = roofline(step, chip, "float32")
    assert (least.compute, least.memory, least.interconnect) == (3.0, 1.2, 2.0)
    assert (least.step, least.limited_by) == (3.0, "compute")
    faster = roofline(step, chip, "bfloat16")
    assert (faster.compute, faster.step, faster.limited_by) == (1.5, 2.0, "interconnect")
    assert gflop_per_image(step, 16) == 300 * 4 / 16 / 1e9  # Four devices, sixteen images.
    assert step.total == 100 + 5 + 50 + 7 and step.activations == 20


def test_expected_cycles_take_time_by_a_tpus_clock():
    """1.5 GHz for v5e, the figure in common use; from its peak and its four matrix units here."""
    assert CHIPS["TPU v5e"].clock == pytest.approx(1.5e9, rel=0.01)
    seconds = estimate(step_of(cycles={"fusion": 2_000_000, "copy": 1_000_000}), CHIPS["TPU v5e"])
    assert seconds == pytest.approx(2e-3, rel=0.01)
    assert (
        estimate(step_of(cycles={"fusion": 2_000_000, "copy": 1_000_000}), CHIPS["NVIDIA H200"])
        is None
    )
    assert estimate(step_of(), CHIPS["TPU v5e"]) is None
    # A kernel takes its operations at the peak, 197 TFLOP/s, at least.
    step = step_of(cycles={"fusion": 3_000_000}, kernels=Kernels(197_000_000_000, 2, 0))
    assert estimate(step, CHIPS["TPU v5e"]) == pytest.approx(3e-3, rel=0.01)


def test_the_ridge_of_each_chip_is_where_its_makers_figures_put_it():
    """Operations a byte from which on a chip is limited by its peak: of all these a few hundred."""
    for chip in CHIPS.values():
        assert 140 < chip.flops["bfloat16"] / chip.bandwidth < 600, chip
        assert chip.bandwidth > chip.interconnect > 1e11, chip
        assert 10e9 < chip.memory < 200e9, chip
