"""Compiled programs as text: loops, collectives, and what they weigh."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from diffusion_jax.config import default_config
from diffusion_jax.experiment.planning import planned_training
from diffusion_jax.parallel import sharding
from diffusion_jax.planning import hlo
from diffusion_jax.planning.collectives import Traffic, traffic
from diffusion_jax.planning.program import compile_step

# Two loops, one in the other, of which the compiler says the trips of one; the other's condition does.
LOOPS = """HloModule jit_f, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner_condition (s: (s32[], f32[4,2])) -> pred[] {
  %s = (s32[], /*index=1*/f32[4,2]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%inner (s.1: (s32[], f32[4,2])) -> (s32[], f32[4,2]) {
  %s.1 = (s32[], f32[4,2]{1,0:T(8,128)}) parameter(0)
  %x = f32[4,2]{1,0:T(8,128)S(1)} get-tuple-element(%s.1), index=1
  %all-reduce.1 = f32[4,2]{1,0} all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %t = (s32[], f32[4,2]{1,0}) tuple(%x, %all-reduce.1)
}

%outer_condition (o: (s32[], f32[4,2])) -> pred[] {
  %o = (s32[], f32[4,2]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

%outer (o.1: (s32[], f32[4,2])) -> (s32[], f32[4,2]) {
  %o.1 = (s32[], f32[4,2]{1,0}) parameter(0)
  ROOT %w.1 = (s32[], f32[4,2]{1,0}) while(%o.1), condition=%inner_condition, body=%inner
}

ENTRY %main (p: f32[4,2]) -> f32[4,2] {
  %p = f32[4,2]{1,0} parameter(0)
  %start = (f32[4,2]{1,0}, f32[32,2]{1,0}) all-gather-start(%p), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %done = f32[32,2]{1,0} all-gather-done(%start)
  %part = bf16[4,2]{1,0} reduce-scatter(%done), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  %alone = f32[4,2]{1,0} all-reduce(%p), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  %swap = f32[4,2]{1,0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}
  %stay = f32[4,2]{1,0} collective-permute(%p), source_target_pairs={{0,0},{1,1}}
  %turned = (f32[1,2]{1,0}, f32[3,2]{1,0}) all-to-all(%p, %p), replica_groups={}
  %w = (s32[], f32[4,2]{1,0}) while(%p), condition=%outer_condition, body=%outer, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %r = f32[4,2]{1,0} get-tuple-element(%w), index=1
}
"""


def test_collectives_count_as_often_as_their_loops_run_and_once_from_start_to_done():
    found = traffic(hlo.parse(LOOPS))
    assert found == {
        # 3 x 5 runs, of 32 bytes among 4 devices, each of which sends 2 * 3/4 of them.
        "all-reduce": Traffic(15, 15 * 32, 15 * 48.0),
        "all-gather": Traffic(1, 32 * 2 * 4, 224.0),  # All but its own eighth.
        "reduce-scatter": Traffic(1, 4 * 2 * 2, 16.0),  # To one other device, its part.
        "all-to-all": Traffic(1, (2 + 6) * 4, 28.0),
        "collective-permute": Traffic(1, 32, 32.0),
    }


def test_a_collective_in_pieces_on_a_tpu_counts_once_and_groups_may_be_axes_of_a_mesh():
    piece = (
        """all-reduce(%x), channel_id=7, replica_groups=mesh['a'=4,'b'=2] {'b'}, to_apply=%add, """
    )
    text = LOOPS.replace(
        "all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%add", piece + 'x={chain_id="0"}'
    )
    assert text != LOOPS
    twice = text.replace(
        "  ROOT %t =", "  %again = f32[4,2]{1,0} " + piece + 'x={chain_id="0"}\n  ROOT %t ='
    )
    assert traffic(hlo.parse(twice))["all-reduce"] == Traffic(15, 15 * 32, 15 * 32.0)
    assert traffic(hlo.parse(twice.replace('chain_id="0"', "")))["all-reduce"].operations == 30


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    text = LOOPS.replace("constant(5)", "parameter(1)")
    assert traffic(hlo.parse(text))["all-reduce"].operations == 3
    assert hlo.repeats(hlo.parse(text)).unknown == 1


def test_expected_cycles_count_as_often_as_their_loops_run_and_not_within_a_fusion():
    def expect(text: str, instruction: str, cycles: int) -> str:
        assert instruction in text
        said = f', backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}'
        return text.replace(instruction, instruction + said)

    text = expect(LOOPS, "all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%add", 100)
    text = expect(text, "source_target_pairs={{0,1},{1,0}}", 7)
    text = expect(text, "add(%a, %b)", 1000)  # Part of the reductions that call it.
    expected = {"all-reduce": 3 * 5 * 100, "collective-permute": 7}
    assert list(hlo.cycles(hlo.parse(text)).items()) == list(expected.items())
    assert hlo.cycles(hlo.parse(LOOPS)) == {}


def test_kernels_are_counted_by_what_they_state_and_as_often_as_their_loops_run():
    stated = (
        ', custom_call_target="tpu_custom_call", backend_config={"cost_estimate":{"flops":"50"}}'
    )
    text = LOOPS.replace("all-reduce(%x)", f"custom-call(%x){stated}", 1)
    unknown = 'custom-call(%y), custom_call_target="__flash"'
    none = 'custom-call(), custom_call_target="AllocateBuffer"'
    head, entry, tail = text.partition("ENTRY")
    line, rest = tail.split("\n", 1)
    added = f"\n  %k1 = f32[8] {unknown}\n  %k2 = f32[8] {none}\n"
    found = hlo.kernels(hlo.parse(head + entry + line + added + rest))
    assert found == hlo.Kernels(flops=3 * 5 * 50, counted=15, uncounted=1)
    assert hlo.kernels(hlo.parse(LOOPS)) == hlo.Kernels(0, 0, 0)


@pytest.mark.parametrize(
    "shape, size",
    [
        ("f32[3,4]{1,0:T(8,128)S(1)}", 48),
        ("(bf16[8]{0}, /*index=1*/pred[2,2]{1,0}, token[])", 20),
        ("s4[3]{0}", 2),  # Two numbers a byte.
        ("f8e4m3fn[7]{0}", 7),
        ("u32[]", 4),
        ("c64[2]", 16),
        ("f32[<=6]{0}", 24),
    ],
)
def test_bytes_of_a_shape(shape: str, size: int):
    assert hlo.num_bytes(shape) == size


def test_factors_make_a_scans_counts_those_of_the_steps_written_out():
    """XLA counts a loop's body once; written out, it counts every pass."""
    matrices = jax.ShapeDtypeStruct((6, 64, 64), jnp.float32)
    x = jax.ShapeDtypeStruct((32, 64), jnp.float32)

    def scanned(x: jax.Array, matrices: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda h, w: (h @ w, None), x, matrices)[0]

    def written_out(x: jax.Array, matrices: jax.Array) -> jax.Array:
        for w in matrices:
            x = x @ w
        return x

    def analyzed(function: Callable[..., Any]) -> tuple[float, hlo.Factors]:
        compiled: Any = jax.jit(function).lower(x, matrices).compile()
        return compiled.cost_analysis()["flops"], hlo.factors(hlo.parse(compiled.as_text()))

    (once, factors), (flat, none) = analyzed(scanned), analyzed(written_out)
    assert factors.flops == 6 and factors.unknown == 0
    assert none[:2] == (1, 1)
    # The loop's counter is counted too.
    np.testing.assert_allclose(once * factors.flops, flat, rtol=1e-3)


def test_a_program_that_gathers_over_the_mesh_moves_the_bytes_of_what_it_gathers():
    mesh = sharding.make_mesh(2, 4, devices=jax.devices()[:8])
    divided = jax.sharding.NamedSharding(mesh, PartitionSpec("fsdp"))
    whole = sharding.replicated(mesh)
    x = jax.ShapeDtypeStruct((16, 10), jnp.float32, sharding=divided)
    compiled: Any = jax.jit(lambda x: x + 1, out_shardings=whole).lower(x).compile()
    found = traffic(hlo.parse(compiled.as_text()))
    assert found == {"all-gather": Traffic(1, 640, 480.0)}  # Three quarters come from elsewhere.


def test_eight_devices_along_data_reduce_four_bytes_a_parameter():
    config = default_config()
    config.model.name, config.model.channels, config.model.num_res_blocks = "mlp", 128, 1
    config.train.batch_size = 64
    config.mesh.data = 8
    step = compile_step(*planned_training(config, jax.devices()[:8]))
    assert set(step.collectives) == {"all-reduce"}
    parameters = step.state["parameters"]
    assert parameters > 4 * 2 * 64 * 128  # Of the maps from 64 pixels and back alone.
    # Besides the gradients the loss and norms are summed, a few numbers.
    np.testing.assert_allclose(step.collectives["all-reduce"].result_bytes, parameters, rtol=0.01)
    assert math.isclose(
        step.collectives["all-reduce"].sent_bytes,
        step.collectives["all-reduce"].result_bytes * 2 * 7 / 8,
    )
