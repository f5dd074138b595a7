"""What a plan asks of a config: the shape of images that nobody looked at, and the config with other fields."""

import pytest

from diffusion_jax.config import default_config
from diffusion_jax.errors import InputError
from diffusion_jax.experiment.planning import (
    assumed_images,
    memory_fields,
    source_of_shape,
    with_changes,
)


@pytest.mark.parametrize(
    "name, size, shape, classes, source",
    [
        ("digits", None, (8, 8, 1), 10, "those of digits"),
        ("fashion_mnist", 32, (32, 32, 1), 10, "data.image_size"),
        ("image_folder", 64, (64, 64, 3), 5, "data.image_size, assumed to be in color"),
        ("tfds:flowers", 16, (16, 16, 3), 5, "data.image_size, assumed to be in color"),
    ],
)
def test_the_shape_of_images_comes_from_the_config(
    name: str, size: int | None, shape: tuple[int, int, int], classes: int, source: str
):
    config = default_config()
    config.data.name, config.data.image_size, config.model.num_classes = name, size, 5
    assert assumed_images(config) == (shape, classes)
    assert source_of_shape(config) == source


def test_images_of_unknown_size_are_refused():
    config = default_config()
    config.data.name = "tfds:flowers"
    with pytest.raises(InputError, match="data.image_size is unset.* tfds:flowers may be"):
        assumed_images(config)


def test_other_fields_are_those_of_a_copy():
    config = default_config()
    changed = with_changes(config, {"model.remat": ("conv", "attention"), "mesh.fsdp": 2})
    assert changed.model.remat == ("conv", "attention") and changed.mesh.fsdp == 2
    assert config == default_config()


def test_a_network_that_cannot_recompute_has_nothing_more_to_recompute():
    config = default_config()
    assert memory_fields(config)["remat"] == "none"
    config.model.name = "mlp"
    assert memory_fields(config)["remat"] == "blocks"
