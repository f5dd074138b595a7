"""The reader of picture files: what it opens, what it refuses and why, and that damage is noticed."""

import io
import os
import stat
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import image_file, picture
from diffusion_jax.data.picture import Damaged, Unreadable

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def chunk(name: bytes, contents: bytes) -> bytes:
    checksum = zlib.crc32(name + contents)
    return struct.pack(">I", len(contents)) + name + contents + struct.pack(">I", checksum)


def png(width: int, height: int, depth: int, color: int, rows: bytes, interlaced: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return SIGNATURE + b"".join(parts)


def deep_png(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits of gray (h, w), RGB or RGBA (h, w, c); Pillow cannot write the latter."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    color = 0 if pixels.ndim == 2 else {3: 2, 4: 6}[pixels.shape[2]]
    return png(pixels.shape[1], pixels.shape[0], 16, color, rows)


@pytest.fixture
def photo(rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "photo.png"


@pytest.mark.parametrize("kind", picture.FORMATS)
def test_each_format_is_read_whatever_the_name_says(
    photo: Image.Image, file: Path, kind: str
) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    file.write_bytes(encoded(photo, kind, **options))
    read = np.asarray(image_file.read(file).convert("RGB"))
    with Image.open(file) as image:
        np.testing.assert_array_equal(read, np.asarray(image.convert("RGB")))
    if kind in ("PNG", "WEBP", "TIFF", "BMP"):
        np.testing.assert_array_equal(read, np.asarray(photo))


@pytest.mark.parametrize("start", [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xc5\xd0\xd3\xc6"])
def test_no_picture_starts_a_program(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    marker, gs = tmp_path / "started", tmp_path / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {marker}\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", str(gs.parent), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    file.write_bytes(start + b"%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    for read in (image_file.read, lambda path: picture.header(path).__enter__()):
        with pytest.raises(Unreadable, match="EPS, not PNG, JPEG"):
            read(file)
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["AVIF", "DDS", "ICO", "JPEG2000"])
def test_other_formats_are_named(photo: Image.Image, file: Path, kind: str) -> None:
    try:
        file.write_bytes(encoded(photo, kind))
    except (KeyError, OSError):
        pytest.skip(f"needs a Pillow that writes {kind}, as its wheels do")
    with pytest.raises(Unreadable, match=f"^{kind.replace('G2', 'G 2')}, not PNG") as caught:
        image_file.read(file)
    assert not isinstance(caught.value, Damaged)


def test_pipes_devices_and_folders_are_not_opened(file: Path, tmp_path: Path) -> None:
    os.mkfifo(file)
    for path, message in (
        (file, "not a regular"),
        ("/dev/zero", "not a regular"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(Unreadable, match=message):
            image_file.read(path)
    assert stat.S_ISFIFO(file.stat().st_mode)


def test_too_many_pixels_are_too_large_and_not_damaged(file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file.write_bytes(png(20_000, 20_000, 1, 0, b""))
        with pytest.raises(Unreadable, match=r"^too large: 400000000 pixels, limit \d+$") as caught:
            image_file.read(file)
        assert not isinstance(caught.value, Damaged)
        # Between Pillow's warning and its limit; sound, so it is read.
        file.write_bytes(png(10_000, 10_000, 1, 0, bytes(10_000 * 1251)))
        assert image_file.read(file).size == (10_000, 10_000)


def test_every_flipped_bit_of_a_png_is_noticed(file: Path, rng: np.random.Generator) -> None:
    image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(image, exif=exif, transparency=(0, 0, 0), gamma=0.5)
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        with pytest.raises(Unreadable):
            image_file.read(file)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_a_file_that_is_cut_short_is_damaged(photo: Image.Image, file: Path, kind: str) -> None:
    data = encoded(photo, kind)
    for share in (0.3, 0.6, 0.9):
        file.write_bytes(data[: int(share * len(data))])
        with pytest.raises(Damaged):
            image_file.read(file)


def test_a_png_with_right_checksums_and_too_few_rows_is_damaged(file: Path) -> None:
    rows = b"".join(b"\0" + bytes([200] * 7) for _ in range(5))
    for interlaced in (0, 1):
        file.write_bytes(png(7, 5, 8, 0, rows[:-8], interlaced))
        with pytest.raises(Damaged):
            image_file.read(file)
    file.write_bytes(png(7, 5, 8, 0, rows))
    assert (np.asarray(image_file.read(file)) == 200).all()
    file.write_bytes(png(7, 5, 8, 0, bytes(40)))  # All are there, and all are black.
    assert not np.asarray(image_file.read(file)).any()


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 9), (17, 16)])
def test_interlaced_rows_are_counted(file: Path, size: tuple[int, int]) -> None:
    width, height = size
    passes = [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]
    counted = [(len(range(y, height, b)), len(range(x, width, a))) for x, y, a, b in passes]
    rows = b"".join((b"\0" + b"\7" * n) * m for m, n in counted if m and n)
    file.write_bytes(png(width, height, 8, 0, rows, 1))
    assert (np.asarray(image_file.read(file)) == 7).all()
    file.write_bytes(png(width, height, 8, 0, rows[:-1], 1))
    with pytest.raises(Damaged, match="missing|truncated"):
        image_file.read(file)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_scaled_if_they_are_used_and_else_refused(file: Path, channels: int) -> None:
    pixels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    if channels > 1:
        pixels = np.stack([pixels, pixels[::-1], pixels, pixels * 0 + 255][:channels], -1)
    file.write_bytes(deep_png(pixels * 257))
    np.testing.assert_array_equal(np.asarray(image_file.read(file)), pixels)
    file.write_bytes(deep_png(pixels * 0))
    assert not np.asarray(image_file.read(file)).any()  # Black, not of few bits.
    for bits in (8, 10, 12, 14):
        file.write_bytes(deep_png((pixels + 1) * 2 ** (bits - 8) - 1))
        message = rf"nearly black: .* of 65535, so its 16 bits seem to hold {bits}; scale it"
        with pytest.raises(Unreadable, match=message) as caught:
            image_file.read(file)
        assert not isinstance(caught.value, Damaged)


def deep_tiff(pixels: np.ndarray, order: str, compressed: bool) -> bytes:
    """A TIFF of 16 bits of RGB, which Pillow cannot write."""
    data = pixels.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if compressed else data
    height, width, _ = pixels.shape
    bits = 8 + 2 + 12 * 9 + 4  # Where the bits of each channel stand; the pixels follow.
    shorts = {256: width, 257: height, 259: 8 if compressed else 1, 262: 2, 277: 3, 278: height}
    entries = {tag: (3, 1, struct.pack(f"{order}HH", value, 0)) for tag, value in shorts.items()}
    for tag, kind, count, value in (
        *((258, 3, 3, bits), (273, 4, 1, bits + 6)),
        (279, 4, 1, len(data)),
    ):
        entries[tag] = kind, count, struct.pack(f"{order}I", value)
    table = [
        struct.pack(f"{order}HHI", tag, *entries[tag][:2]) + entries[tag][2]
        for tag in sorted(entries)
    ]
    start = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HIH", 42, 8, len(table))
    end = struct.pack(f"{order}IHHH", 0, 16, 16, 16)
    return start + b"".join(table) + end + data


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bits_of_tiff_in_colors_are_scaled_if_they_are_used_and_black_is_black(
    file: Path, order: str, compressed: bool
) -> None:
    pixels = np.arange(192, dtype=np.uint16).reshape(8, 8, 3)
    for factor in (257, 0):
        file.write_bytes(deep_tiff(pixels * factor, order, compressed))
        expected = pixels * (factor > 0)
        np.testing.assert_array_equal(np.asarray(image_file.read(file)), expected)
    file.write_bytes(deep_tiff(pixels, order, compressed))
    with pytest.raises(Unreadable, match="its brightest value is 191 of 65535"):
        image_file.read(file)


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bits_of_tiff_are_read_in_either_byte_order(file: Path, order: str) -> None:
    pixels = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    image = Image.frombytes(
        "I;16" if order == "<" else "I;16B", (16, 16), pixels.astype(f"{order}u2").tobytes()
    )
    file.write_bytes(encoded(image, "TIFF"))
    np.testing.assert_array_equal(np.asarray(image_file.read(file)), pixels // 257)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bits_are_refused_with_advice(file: Path, dtype: type) -> None:
    file.write_bytes(encoded(Image.fromarray(np.eye(8, dtype=dtype)), "TIFF"))
    with pytest.raises(Unreadable, match="32 bits per pixel.*save it with 8 or 16"):
        image_file.read(file)
