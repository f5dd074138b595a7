"""Masks and images that are edited: in which forms they are read, and what is refused."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.commands.edit_inputs import _read, load_mask
from diffusion_jax.errors import InputError

HALF = np.zeros((16, 16), np.uint8)
HALF[:, 8:] = 255
SHAPE = (16, 16, 3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16"])
def test_a_gray_mask_is_read_in_every_mode(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "mask.png"
    if mode == "I;16":
        Image.fromarray(HALF.astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(HALF).convert(mode).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(load_mask(str(path), SHAPE), HALF == 0)


def test_a_mask_of_0_and_1_is_taken_with_a_word(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(HALF // 255).save(path)
    with pytest.warns(UserWarning, match="mask.png holds only 0 and 1; 1 is taken for white"):
        np.testing.assert_array_equal(load_mask(str(path), SHAPE), HALF == 0)


def test_a_black_mask_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(HALF * 0).save(path)
    with pytest.warns(UserWarning, match="is black; nothing is drawn anew"):
        assert load_mask(str(path), SHAPE).all()


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (HALF // 3, "the brightest pixel of .* is 85 of 255.*make them white"),
        (np.stack([HALF, HALF, HALF * 0], -1), "has colors; it must be gray"),
        (np.stack([HALF, 255 - HALF], -1), "has transparent pixels; save it without"),
        (HALF[:8], "has 16x8 pixels; the model's images have 16x16"),
        (HALF.astype(np.uint16) * 8, "nearly black: its brightest value is 2040 of 65535"),
    ],
)
def test_masks_that_may_mean_something_else_are_refused(
    tmp_path: Path, pixels: np.ndarray, message: str
) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(pixels).save(path)
    with pytest.raises(InputError, match=f"^edit.mask: .*{message}"):
        load_mask(str(path), SHAPE)


def test_an_image_that_is_not_square_is_turned_upright_and_laid_over_white(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[0, 0] = (200, 100, 50, 255)  # The rest is transparent.
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned a quarter clockwise.
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    read = _read(str(tmp_path / "a.png"), (6, 4, 3))
    assert read[0, 3].tolist() == [200, 100, 50]
    assert (read.reshape(-1, 3) == 255).all(-1).sum() == 23
