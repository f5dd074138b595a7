"""Operations of a program as lowered, against those counted by hand, with calls and loops."""

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.config import default_config
from diffusion_jax.experiment.planning import training_elsewhere
from diffusion_jax.planning.lowered import count_flops, lower_step

SIZE = 64
PRODUCT = 2 * SIZE**3  # Multiplications and additions of a product of two square matrices.


def test_loops_are_repeated_and_a_function_counts_at_each_call():
    """A loop of 7 products, and 3 calls of a function of one product: 10 products."""
    square = jax.jit(lambda x: x @ x)

    def function(x):
        looped = jax.lax.scan(lambda x, _: (x @ x.T, None), x, None, length=7)[0]
        return square(square(square(looped)))

    lowered = jax.jit(function).lower(jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32))
    flops, unknown = count_flops(lowered)
    assert unknown == 0 and flops == 10 * PRODUCT


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (-1, 3))])
@pytest.mark.parametrize("spread, gap", [(1, 1), (2, 1), (1, 2)])
def test_zeros_around_and_between_pixels_are_not_counted(stride, padding, spread, gap):
    """As XLA's analysis of the CPU's programs counts convolutions."""
    if isinstance(padding, str) and spread > 1:
        padding = ((2, 2), (2, 2))  # JAX has no padding by name of spread images.

    def gradients(x, w):
        def convolve(x, w):
            return jax.lax.conv_general_dilated(
                *(x, w, (stride, stride), padding, (spread, spread), (gap, gap)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )

        y, pullback = jax.vjp(convolve, x, w)
        return pullback(y)

    shapes = (2, 7, 6, 3), (3, 2, 3, 5)
    lowered = jax.jit(gradients).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
    expected = (lowered.cost_analysis() or {})["flops"]
    assert count_flops(lowered) == (expected, 0)


def test_gpus_share_the_operations_and_the_state_is_divided():
    config = default_config()
    config.model.name, config.model.channels, config.model.num_res_blocks = "mlp", 128, 1
    config.train.batch_size = 64
    one = lower_step(*training_elsewhere(config, 1))
    config.mesh.fsdp = 8
    eight = lower_step(*training_elsewhere(config, 8))
    assert eight.flops == pytest.approx(one.flops / 8)
    assert eight.batch == one.batch / 8 and one.collectives == {}
    # The four square kernels are divided; see test_program.py.
    assert one.state["parameters"] - eight.state["parameters"] == 4 * 4 * 128**2 * 7 / 8
    # Per image six operations a parameter of each kernel, but that no gradient goes to pixels and time.
    kernels = 4 * 128**2 + 2 * 64 * 128
    least = 64 * (6 * kernels - 2 * (128**2 + 64 * 128))
    assert least <= one.flops <= 1.5 * least


def test_micro_batches_compute_as_much():
    config = default_config()
    config.model.name, config.model.channels, config.model.num_res_blocks = "mlp", 32, 1
    config.train.batch_size = 64
    whole = lower_step(*training_elsewhere(config, 1))
    config.train.accumulate = 4
    assert lower_step(*training_elsewhere(config, 1)).flops == whole.flops
