"""Names of slices against the tables of Google Cloud's documentation."""

import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.planning.chips import TOPOLOGIES
from diffusion_jax.planning.slices import cloud_size, gpus_of, slice_name

# cloud.google.com/tpu/docs: names of slices, the number of chips of v5e and v6e, of cores of v4 and v5p.
RENTED = {
    "v5litepod-1": "v5e:1x1",
    "v5litepod-8": "v5e:2x4",
    "v5litepod-16": "v5e:4x4",
    "v5litepod-256": "v5e:16x16",
    "v6e-4": "v6e:2x2",
    "v6e-64": "v6e:8x8",
    "v4-8": "v4:2x2x1",
    "v4-32": "v4:2x2x4",
    "v4-512": "v4:4x8x8",
    "v5p-8": "v5p:2x2x1",
    "v5p-16": "v5p:2x2x2",
    "v5p-128": "v5p:4x4x4",
}


@pytest.mark.parametrize("name, shape", RENTED.items())
def test_a_rented_slice_has_the_shape_of_the_documentation(name, shape):
    assert slice_name(name) == shape


def test_three_names_are_of_one_slice():
    assert {slice_name(n) for n in ("v5e-16", "v5litepod-16", "v5e:4x4", "v5litepod:4x4")} == {
        "v5e:4x4"
    }


def test_each_number_names_one_shape():
    for generation, shapes in TOPOLOGIES.items():
        sizes = [cloud_size(generation, shape) for shape in shapes]
        assert len(set(sizes)) == len(sizes)
        assert [slice_name(f"{generation}-{n}") for n in sizes] == [
            f"{generation}:{shape}" for shape in shapes
        ]


@pytest.mark.parametrize(
    "name, near",
    [("v5e-15", "v5e-16"), ("v5e", "v5e"), ("v9:4x4", "v4"), ("h10:8", "h100:8"), ("", "v5e:4x4")],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, near):
    with pytest.raises(InputError, match="unknown --topology") as raised:
        slice_name(name)
    assert near in str(raised.value) and "v5litepod-16" in str(raised.value)


def test_gpus_are_named_by_kind_and_number():
    found = gpus_of("H100:8")
    assert found is not None and found.number == 8 and found.chip.name == "H100 SXM"
    assert gpus_of("v5e:4x4") is None
    for wrong in ("h100", "h100:0", "h100:x", "h100:-1"):
        with pytest.raises(InputError, match="GPUs are named with their number, as h100:8"):
            gpus_of(wrong)
