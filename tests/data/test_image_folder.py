"""Image folders: which files are read, how they become square arrays, and damaged ones."""

import os
import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import data
from diffusion_jax.data import headers, load
from diffusion_jax.data.image_file import fit
from diffusion_jax.errors import InputError, RunError


def save(path, color=(200, 10, 10), size=(12, 9), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


def opened(folder, tmp_path, split="train", **arguments):
    arguments = {"image_size": 8, "test_fraction": 0.0, **arguments}
    return load("image_folder", split, source_dir=folder, cache_dir=tmp_path / "cache", **arguments)


def whole(split):
    return split.read(np.arange(split.num_images))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "images"


def test_sub_folders_are_classes_at_any_depth(folder, tmp_path):
    save(folder / "a" / "1.png", (255, 0, 0))
    save(folder / "b" / "deep" / "2.jpeg", (0, 255, 0))
    save(folder / "b" / "3.WEBP", (0, 0, 255))
    (folder / "notes.txt").write_text("not an image")
    split = opened(folder, tmp_path)
    batch = whole(split)
    assert split.class_names == ("a", "b")
    assert split.image_shape == (8, 8, 3)
    # Sorted by path; each is one color, JPEG and WebP within a few levels.
    assert batch["label"].tolist() == [0, 1, 1]
    assert batch["image"].mean((1, 2)).argmax(1).tolist() == [0, 2, 1]


@pytest.mark.parametrize("names", [("1.png", "2.png"), ("1.png", "a/2.png")])
def test_images_in_the_folder_itself_mean_no_classes(folder, tmp_path, names):
    for name in names:
        save(folder / name)
    split = opened(folder, tmp_path)
    assert split.num_classes == 0
    assert whole(split)["label"].tolist() == [0, 0]


def test_linked_folders_are_followed_without_going_round(folder, tmp_path):
    save(tmp_path / "elsewhere" / "1.png")
    folder.mkdir()
    (folder / "a").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    assert opened(folder, tmp_path).num_images == 1


@pytest.mark.parametrize("gray_mode", ["L", "LA", "1", "I;16"])
def test_one_channel_stays_only_if_all_images_are_gray(folder, tmp_path, gray_mode):
    save(folder / "1.png", 0, mode="L")
    white = Image.new("L", (9, 9), 255).convert(gray_mode)
    if gray_mode == "I;16":
        white = Image.new(gray_mode, (9, 9), 65535)
    white.save(folder / "2.png")
    assert opened(folder, tmp_path).image_shape == (8, 8, 1)
    save(folder / "3.png")
    assert opened(folder, tmp_path).image_shape == (8, 8, 3)


def test_16_bit_gray_is_scaled(tmp_path):
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16).repeat(4, 0)
    Image.fromarray(values).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert fit(image, 4, "L")[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(tmp_path, mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    if mode == "P":
        image = Image.new("P", (4, 4), 0)
        image.putpalette([0, 0, 0])
        image.info["transparency"] = 0
    assert (fit(image.convert(mode), 4, "RGB") == 255).all()


def test_half_transparent_pixels_are_laid_over_white():
    assert abs(int(fit(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), 4, "L")[0, 0, 0]) - 127) <= 1


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned a quarter clockwise: top left goes to top right.
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        turned = fit(image, 8, "RGB")
    np.testing.assert_array_equal(turned, np.rot90(pixels, -1))


@pytest.mark.parametrize("shape", [(8, 24), (24, 8)])
def test_the_center_is_kept(shape):
    pixels = np.zeros(shape, np.uint8)
    pixels[shape[0] // 2 - 4 :, shape[1] // 2 - 4 :][:8, :8] = np.arange(64).reshape(8, 8)
    np.testing.assert_array_equal(
        fit(Image.fromarray(pixels), 8, "L")[..., 0], np.arange(64).reshape(8, 8)
    )


def test_shrinking_averages_instead_of_skipping_pixels():
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    # The mean is 127.5; away from the border the antialiasing filter leaves at most rounding.
    assert (abs(fit(Image.fromarray(checks), 8, "L")[1:-1, 1:-1].astype(int) - 127.5) <= 3).all()


def test_damaged_files_are_counted_and_named_and_the_rest_is_read(folder, tmp_path):
    for i in range(4):
        save(folder / f"{i}.png", (i, i, i))
    good = (folder / "0.png").read_bytes()
    (folder / "4.jpg").write_bytes(b"not an image")
    (folder / "5.png").write_bytes(good[:45])  # The header is whole, the pixels are not.
    (folder / "6.png").write_bytes(b"")
    message = r"image_folder: 3 damaged files are left out: 4.jpg, 5.png, 6.png"
    with pytest.warns(UserWarning, match=message):
        opened(folder, tmp_path)
    with pytest.warns(UserWarning, match=message):  # Also when the prepared copy is used.
        split = opened(folder, tmp_path)
    np.testing.assert_array_equal(whole(split)["image"][:, 0, 0, 0], np.arange(4))


@pytest.mark.parametrize("blob", [b"not an image", None])
def test_only_damaged_files_is_an_error(folder, tmp_path, blob):
    save(folder / "1.png")
    if blob is None:
        blob = (folder / "1.png").read_bytes()[:45]
    (folder / "1.png").write_bytes(blob)
    with pytest.raises(InputError, match="none of the .* can be read"):
        opened(folder, tmp_path)


def test_an_empty_folder_is_an_error(folder, tmp_path):
    folder.mkdir()
    with pytest.raises(InputError, match="holds no images"):
        opened(folder, tmp_path)


def test_a_size_is_needed(folder, tmp_path):
    save(folder / "1.png")
    with pytest.raises(InputError, match="data.image_size is unset"):
        opened(folder, tmp_path, image_size=None)
    with pytest.raises(InputError, match="data.source_dir is unset"):
        load("image_folder", "train", image_size=8, cache_dir=tmp_path)


def test_a_share_of_each_class_is_held_out_and_the_parts_are_disjoint(folder, tmp_path):
    for i in range(20):
        save(folder / "ab"[i % 2] / f"{i:02}.png", (i, i, i))
    parts = [whole(opened(folder, tmp_path, s, test_fraction=0.2)) for s in ("train", "test")]
    pixels = [set(part["image"][:, 0, 0, 0].tolist()) for part in parts]
    assert pixels[0] | pixels[1] == set(range(20)) and not pixels[0] & pixels[1]
    assert np.bincount(parts[1]["label"]).tolist() == [2, 2]


def test_the_copy_is_reused_until_the_files_or_the_size_change(folder, tmp_path, monkeypatch):
    from diffusion_jax.data.sources import image_folder

    save(folder / "1.png")
    opened(folder, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "_contents", None)
        assert opened(folder, tmp_path).num_images == 1
    assert opened(folder, tmp_path, image_size=4).image_shape == (4, 4, 3)
    save(folder / "2.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert opened(folder, tmp_path).num_images == 2


# Sets above the memory limit


def in_place(folder, tmp_path, split="train", **arguments):
    return opened(folder, tmp_path, split, memory_limit=0, **arguments)


def test_a_set_above_the_limit_is_not_copied_and_reads_like_a_small_one(folder, tmp_path, rng):
    for i in range(150):  # More than are decoded at once.
        image = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        image.save(folder / "ab"[i % 2] / f"{i}.png")
    limit = 150 * 8 * 8 * 3
    arguments = {"test_fraction": 0.2, "memory_limit": limit - 1}
    large = {name: opened(folder, tmp_path, name, **arguments) for name in ("train", "test")}
    written = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*"))
    assert written < limit / 2 and not (tmp_path / "cache" / "data").exists()
    for name, split in large.items():
        small = opened(folder, tmp_path, name, test_fraction=0.2, memory_limit=limit)
        assert (tmp_path / "cache" / "data").exists()
        assert split.class_names == small.class_names == ("a", "b")
        rows = np.r_[rng.permutation(split.num_images), 0, 0]
        batch, expected = split.read(rows), small.read(rows)
        for key in ("image", "label"):
            np.testing.assert_array_equal(batch[key], expected[key])
            assert batch[key].dtype == expected[key].dtype
        assert data.fingerprint(split) == data.fingerprint(small)
    assert large["train"].read(np.arange(0))["image"].shape == (0, 8, 8, 3)


def test_headers_are_looked_at_once_and_again_when_the_files_change(folder, tmp_path, monkeypatch):
    looked_at = []
    look = headers.look
    monkeypatch.setattr(headers, "look", lambda path: [looked_at.append(path), look(path)][1])
    for name in ("1.png", "2.png"):
        save(folder / name, 7, mode="L")
    requests: list[dict[str, Any]] = [{}, {}, {"image_size": 4}, {"test_fraction": 0.5}]
    for arguments in requests:
        assert in_place(folder, tmp_path, **arguments).image_shape[2] == 1
    assert sorted(path.name for path in looked_at) == ["1.png", "2.png"]
    save(folder / "2.png")
    assert in_place(folder, tmp_path).image_shape == (8, 8, 3)
    assert len(looked_at) == 4
    for index in (tmp_path / "cache" / "index").iterdir():
        index.write_bytes(index.read_bytes()[:50])
    assert in_place(folder, tmp_path).num_images == 2
    assert len(looked_at) == 6


def test_a_flipped_bit_of_an_index_has_it_made_anew(folder, tmp_path):
    for i in range(3):
        save(folder / f"{i}.png")
    names, index = ["0.png", "1.png", "2.png", "3.png"], tmp_path / "index"
    (folder / "3.png").write_bytes(b"")
    right = headers.headers(folder, names, index)
    assert right == ("cccx", {"3.png": "damaged"}, {"12x9": [3, "0.png"]})
    data = index.read_bytes()
    for bit in range(0, 8 * len(data), 7):  # Another of each byte.
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        index.write_bytes(changed)
        assert headers.headers(folder, names, index) == right
        assert index.read_bytes() == data


def test_a_file_found_damaged_while_reading_is_named_and_what_to_do(folder, tmp_path):
    for i in range(3):
        save(folder / f"{i}.png")
    good = (folder / "0.png").read_bytes()
    (folder / "1.png").write_bytes(good[:45])  # The header is whole, the pixels are not.
    (folder / "3.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 damaged files are left out: 3.png"):
        split = in_place(folder, tmp_path)
    assert split.read(np.array([0, 2]))["image"].shape == (2, 8, 8, 3)
    with pytest.raises(RunError, match=r"images/1.png' cannot be read \(.*\); replace it"):
        list(data.batches(split, seed=0, batch_size=3, stop=1))
    (folder / "0.png").unlink()
    with pytest.raises(RunError, match=r"images/0.png' cannot be read \(no such file"):
        split.read(np.array([0]))


def test_a_large_set_without_test_images_or_a_cache_says_so(folder, tmp_path):
    save(folder / "1.png")
    with pytest.raises(InputError, match="image_folder has no test images; it has train"):
        in_place(folder, tmp_path, "test")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot prepare image_folder in .* set cache_dir"):
        in_place(folder, tmp_path / "file")


def test_a_pipe_in_place_of_an_index_is_not_waited_for(folder, tmp_path):
    save(folder / "a.png")
    os.mkfifo(tmp_path / "index")
    said = headers.headers(folder, ["a.png"], tmp_path / "index")
    assert (
        said
        == headers.headers(folder, ["a.png"], tmp_path / "index")
        == (headers.COLOR, {}, {"12x9": [1, "a.png"]})
    )


@pytest.mark.parametrize("memory_limit", [2**30, 0])  # Copied, and in place.
def test_pictures_that_show_little_are_counted_and_named(folder, tmp_path, memory_limit):
    """Of side 32 they are if they are enlarged more than four times, or if more than three quarters are cut off."""
    for name, size in {
        "a": (8, 8),
        "b": (400, 100),
        "c": (7, 64),
        "d": (1, 1),
        "e": (401, 100),
    }.items():
        save(folder / f"{name}.png", size=size)
    save(folder / "f.png", size=(1, 1))
    said = "4 of 6 images .*data.image_size=32.*: c.png is 7x64, d.png is 1x1, e.png is 401x100$"
    with pytest.warns(UserWarning, match=said):
        opened(folder, tmp_path, image_size=32, memory_limit=memory_limit)
    with pytest.warns(UserWarning, match="2 of 6 images .*: c.png is 7x64, e.png is 401x100$"):
        opened(folder, tmp_path, image_size=4, memory_limit=memory_limit)
