"""Pictures in notebooks: their pixels, the text beside them, and one line for wrong arrays."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import InputError
from diffusion_jax.reporting import Picture, pictures, show


def test_the_png_has_the_pixels_of_the_grid(rng: np.random.Generator):
    images = rng.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    shown = np.asarray(Image.open(io.BytesIO(show(images, columns=3).png())))
    np.testing.assert_array_equal(shown, pictures.grid(images, columns=3))


def test_floats_are_those_of_the_model(rng: np.random.Generator):
    images = rng.integers(0, 256, (4, 4, 1), dtype=np.uint8)
    floats = jnp.asarray(images / 127.5 - 1, jnp.float32)
    np.testing.assert_array_equal(show(floats).pixels, images)
    np.testing.assert_array_equal(show(np.array([[[-3.0], [9.0]]])).pixels.ravel(), [0, 255])


def test_the_page_has_sharp_pixels_and_the_escaped_title():
    page = Picture(np.zeros((8, 80, 1), np.uint8), 'a < "b"')._repr_html_()
    assert 'alt="a &lt; &quot;b&quot;"' in page and 'width="640"' in page and "pixelated" in page


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((4, 4), np.uint8), r"\(4, 4\); it must be \(\.\.\., H, W, 1 or 3\)"),
        (np.zeros((0, 4, 4, 1), np.uint8), "it must be"),
        (np.zeros((4, 4, 1), np.int32), "int32; they must be uint8, or floats"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_other_arrays_get_one_line(images: np.ndarray, message: str):
    with pytest.raises(InputError, match=message):
        show(images)
