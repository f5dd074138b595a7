"""Our single file: there and back, and what is refused."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax.errors import InputError
from diffusion_jax.interchange import single, source_of

PARAMS: dict[str, Any] = {
    "conv_in": {"kernel": np.arange(54, dtype=np.float32).reshape(3, 3, 3, 2)},
    "time": {"a": {"bias": np.array([np.pi, -0.0], np.float32)}},
}
DESCRIPTION = single.Description(
    {"seed": 3, "model": {"name": "unet", "channel_mult": [1, 2]}},
    (8, 8, 3),
    ("cat",),
    7,
    {"x": "y"},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    single.write(tmp_path / single.NAME, PARAMS, DESCRIPTION)
    return tmp_path / single.NAME


def test_parameters_come_back_bit_for_bit_with_their_config(path):
    for source in (path, path.parent):
        foreign = single.read(source)
        jax.tree.map(np.testing.assert_array_equal, foreign.params, PARAMS)
        assert foreign.fields == {"seed": 3, "model.name": "unet", "model.channel_mult": (1, 2)}
        assert (foreign.image_shape, foreign.class_names, foreign.step) == ((8, 8, 3), ("cat",), 7)
        assert source_of(source) == "single"


def test_a_file_of_another_maker_is_refused_by_name(tmp_path):
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "x.safetensors", {"diffusion_jax": "{}"})
    with pytest.raises(InputError, match="x.safetensors has no config of diffusion_jax"):
        single.read(tmp_path / "x.safetensors")


def test_a_truncated_file_is_refused_by_name(path):
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="model.safetensors does not hold weights"):
        single.read(path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        single.read(path)
