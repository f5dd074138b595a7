"""Pictures: layout of grids and strips, PNG files, the loss curve."""

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import image_file, picture
from diffusion_jax.reporting.pictures import (
    edits,
    grid,
    grid_by_class,
    magnified,
    progressive,
    save_loss_curve,
    save_png,
    shared,
    strip,
)


def flat_images(*values: int, shape: tuple[int, int, int] = (2, 3, 1)) -> np.ndarray:
    """Returns one image a value, each of that value alone."""
    return np.stack([np.full(shape, value, np.uint8) for value in values])


def test_a_grid_is_row_by_row_on_white_with_margins_of_two_pixels():
    picture = grid(flat_images(10, 20, 30, 40, 50))  # 3 columns, 2 rows of images of 2x3 pixels
    assert picture.shape == (2 + 2 * (2 + 2), 2 + 3 * (3 + 2), 1)
    expected = np.full(picture.shape, 255)
    for i, value in enumerate((10, 20, 30, 40, 50)):
        top, left = 2 + i // 3 * 4, 2 + i % 3 * 5
        expected[top : top + 2, left : left + 3] = value
    np.testing.assert_array_equal(picture, expected)


@pytest.mark.parametrize(("n", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (16, 4, 4), (17, 5, 4)])
def test_a_grid_is_as_near_to_a_square_as_can_be(n, columns, rows):
    picture = grid(np.zeros((n, 1, 1, 3), np.uint8))
    assert picture.shape == (2 + 3 * rows, 2 + 3 * columns, 3)


def test_a_grid_takes_the_columns_it_is_given():
    assert grid(flat_images(*range(6)), columns=6).shape == (2 + 4, 2 + 6 * 5, 1)


def test_classes_have_a_row_each_in_their_order_and_gaps_are_white():
    images = flat_images(10, 20, 30, 40, 50, shape=(1, 1, 1))
    picture = grid_by_class(images, np.array([7, 2, 7, 2, 7]))
    assert picture.shape == (2 + 2 * 3, 2 + 3 * 3, 1)
    assert picture[2::3, 2::3, 0].tolist() == [[20, 40, 255], [10, 30, 50]]
    for labels in (None, np.full(5, 3), np.arange(5)):  # No rows of several images.
        np.testing.assert_array_equal(grid_by_class(images, labels), grid(images))


@pytest.mark.parametrize(("side", "factor"), [(8, 7), (28, 2), (32, 2), (64, 1), (256, 1)])
def test_tiny_images_are_magnified_pixel_by_pixel(side, factor):
    images = np.arange(side, dtype=np.uint8)[None, :, None, None].repeat(side, axis=2)
    large = magnified(images)
    assert large.shape == (1, side * factor, side * factor, 1)
    np.testing.assert_array_equal(large[0, :, 0, 0], np.arange(side).repeat(factor))


def test_a_strip_has_two_rows_an_image_x_t_above_x0_and_a_column_a_frame():
    # Frame f of image i: x_t is 10 i + f, x0_hat is 100 more.
    x_t = np.stack([flat_images(f, 10 + f, shape=(64, 64, 3)) for f in range(3)])
    picture = strip(x_t, x_t + 100)
    assert picture.shape == (2 + 4 * 66, 2 + 3 * 66, 3)
    middles = picture[2 + 32 :: 66, 2 + 32 :: 66, 0]
    np.testing.assert_array_equal(
        middles, [[0, 1, 2], [100, 101, 102], [10, 11, 12], [110, 111, 112]]
    )


def test_progressive_generation_is_a_row_an_image_and_a_column_a_moment():
    frames = np.stack([flat_images(f, 10 + f, shape=(64, 64, 3)) for f in range(3)])
    picture = progressive(frames)
    assert picture.shape == (2 + 2 * 66, 2 + 3 * 66, 3)
    assert picture[2 + 32 :: 66, 2 + 32 :: 66, 0].tolist() == [[0, 1, 2], [10, 11, 12]]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_shared_picture_is_a_block_an_image_and_a_row_a_time_with_its_label(channels):
    def value(i: int, t: int, column: int) -> int:
        return 100 + 40 * i + 10 * t + column

    shape = (2, 3, 6, 64, 64, channels)  # Two images at three times: x_t, x0_hat and four samples.
    images = np.zeros(shape, np.uint8)
    for index in np.ndindex(shape[:3]):
        images[index] = value(*index)
    picture = shared(images[:, :, 0], images[:, :, 1], images[:, :, 2:], [999.0, 12.3456, 0.0])
    block = 18 + 3 * 66 + 2
    assert picture.shape == (2 * block, 64 + 2 * 66 + 2 + 18 + 4 * 66 + 2, channels)
    for i, t, column in np.ndindex(shape[:3]):
        top, left = i * block + 20 + 66 * t, 66 + 66 * column + 20 * (column > 1)
        assert (picture[top : top + 64, left : left + 64] == value(i, t, column)).all()
        assert (picture[top + 16 : top + 48, :64] < 100).any()  # The label, beside the middle.
        assert (picture[top + 64 : top + 66] == 255).all()
    assert (picture[:18] < 100).any() and (picture[block : block + 18] == 255).all()


def test_edits_are_named_rows_of_a_column_an_image():
    rows = np.stack([flat_images(150, 160, 170), flat_images(180, 190, 200)])
    picture = edits(rows.repeat(28, 2).repeat(28, 3), ["given", "drawn"])  # Of 56x84 pixels.
    assert picture.shape == (2 + 2 * 58, 64 + 2 + 3 * 86, 1)
    for row, column in np.ndindex(2, 3):
        top, left = 2 + 58 * row, 66 + 86 * column
        assert (picture[top : top + 56, left : left + 84] == 150 + 30 * row + 10 * column).all()
    for row in range(2):
        assert (
            picture[2 + 58 * row + 14 : 2 + 58 * row + 42, :64] < 100
        ).any()  # Beside the middle.
    assert (picture[58:60] == 255).all()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_png_gives_the_same_pixels_back_and_replaces_the_one_before(
    tmp_path, rng, channels, mode
):
    path = tmp_path / "new" / "folder" / "image.png"
    for _ in range(2):
        pixels = rng.integers(0, 256, (5, 7, channels), np.uint8)
        save_png(path, pixels)
        np.testing.assert_array_equal(image_file.pixels(path), pixels)
        with Image.open(path) as image:
            assert image.format == "PNG" and image.mode == mode and image.size == (7, 5)
    assert [file.name for file in path.parent.iterdir()] == ["image.png"]


def test_a_damaged_png_is_not_read(tmp_path, rng):
    path = tmp_path / "image.png"
    save_png(path, rng.integers(0, 256, (50, 50, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(picture.Damaged, match="cut short"):
        image_file.pixels(path)


def test_the_loss_curve_is_a_png_with_a_line_for_each_metric_there_is(tmp_path):
    path = tmp_path / "loss.png"
    save_loss_curve(path, [])
    empty = image_file.pixels(path)
    rows = [{"step": k, "loss": 1 / k, "loss_q1": 2 / k, "loss_q2": None} for k in range(1, 5)]
    save_loss_curve(path, [*rows, {"step": 4, "eval_loss": 0.5}])
    drawn = image_file.pixels(path)
    assert drawn.shape == empty.shape and min(drawn.shape[:2]) > 400
    red = (drawn[..., 0] > 150) & (drawn[..., 1] < 80) & (drawn[..., 2] < 80)  # held-out loss
    assert red.any() and not ((empty[..., 0] > 150) & (empty[..., 1] < 80)).any()
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


def test_only_the_held_out_loss_is_red_in_the_loss_curve(tmp_path):
    def red_pixels(rows: list[dict[str, float]]) -> int:
        save_loss_curve(tmp_path / "loss.png", rows)
        red, green, blue, *_ = np.moveaxis(
            image_file.pixels(tmp_path / "loss.png").astype(int), -1, 0
        )
        return int(((red - np.maximum(green, blue)) > 60).sum())

    quarters = {f"loss_q{q}": 0.1 * q for q in range(1, 5)}
    rows = [{"step": k, "loss": 1.0, **quarters} for k in range(1, 5)]
    assert red_pixels(rows) == 0
    assert red_pixels([*rows, {"step": 2, "eval_loss": 0.5}, {"step": 4, "eval_loss": 0.6}]) > 100


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_of_classes_have_their_number_and_name_beside_them(channels: int) -> None:
    images = flat_images(150, 160, 170, 180, shape=(56, 56, channels))
    labels, bare = np.array([1, 0, 1, 0]), grid_by_class(images, np.array([1, 0, 1, 0]))
    rooms = []
    for names in ((), ("cat", "dog"), ("cat", "w" * 300)):
        named = grid_by_class(images, labels, names)
        rooms.append(room := named.shape[1] - bare.shape[1])
        np.testing.assert_array_equal(named[:, room:], bare)
        for row in range(2):
            beside = named[2 + 58 * row :, :room][:56]
            assert (beside < 100).any() and (beside[:14] == 255).all()
    assert 0 < rooms[0] < rooms[1] < rooms[2] < 400  # However long the name is.
    np.testing.assert_array_equal(grid_by_class(images, np.arange(4), ("a",)), grid(images))


def test_strips_and_progressive_generation_name_the_class_of_each_image() -> None:
    frames = np.stack([flat_images(100 + f, 150 + f, shape=(64, 64, 1)) for f in range(3)])
    for named, bare in (
        (strip(frames, frames, ["0: cat", "1: dog"]), strip(frames, frames)),
        (progressive(frames, ["0: cat", "1: dog"]), progressive(frames)),
    ):
        room = named.shape[1] - bare.shape[1]
        np.testing.assert_array_equal(named[:, room:], bare)
        for half in np.split(named[2:, :room], 2):
            assert (half < 100).any()


def test_letters_that_the_font_lacks_are_escaped() -> None:
    images, labels = np.full((4, 56, 56, 1), 255, np.uint8), np.array([0, 0, 1, 1])
    written = grid_by_class(images, labels, ("中", "é"))
    escaped = grid_by_class(images, labels, (r"\u4e2d", "é"))
    np.testing.assert_array_equal(written, escaped)


def test_names_in_other_letters_are_written_and_not_as_boxes() -> None:
    images, labels = np.full((4, 56, 56, 1), 255, np.uint8), np.array([0, 0, 1, 1])
    one, two = np.split(grid_by_class(images, labels, ("кот", "пёс"))[2:118], 2)
    assert (one != two).mean() > 0.01
