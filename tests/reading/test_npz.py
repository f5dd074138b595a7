"""Arrays are read back as they were written, or refused: never wrong, never another error, never more memory."""

import io
import os
import re
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slow import slow_after

from diffusion_jax.reading.npz import read_npz

ARRAYS: dict[str, Any] = {
    "images": np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3),
    "bits": np.linspace(0, 1, 7),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "scale": np.float64(3.5),
    "name": np.array("text"),
    "empty": np.zeros((0, 5)),
}


def packed(arrays: dict[str, Any], *, compressed: bool) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize("compressed", [True, False])
def test_what_numpy_writes_is_read_back(tmp_path: Path, compressed: bool):
    (tmp_path / "x.npz").write_bytes(packed(ARRAYS, compressed=compressed))
    found = read_npz(tmp_path / "x.npz")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("compressed", slow_after(1, [True, False]))
def test_no_damage_gives_other_arrays_or_another_error(tmp_path: Path, compressed: bool):
    """Every bit of a small file, and a thousand harsher mutations of it."""
    path = tmp_path / "x.npz"
    whole = packed({"a": np.arange(5), "b": np.ones(3, np.uint8)}, compressed=compressed)
    generator = np.random.default_rng(0)
    cases = []
    for bit in range(0, 8 * len(whole)):
        blob = bytearray(whole)
        blob[bit // 8] ^= 1 << bit % 8
        cases.append(bytes(blob))
    for _ in range(1000):
        blob = bytearray(whole)
        first, last = sorted(generator.integers(0, len(whole), 2))
        blob[first:last] = generator.bytes(int(generator.integers(0, 9)))
        cases.append(bytes(blob))
    refused = 0
    for blob in cases:
        path.write_bytes(blob)
        try:
            found = read_npz(path)
        except ValueError:
            refused += 1
            continue
        for name in found.keys() & {"a", "b"}:
            expected = {"a": np.arange(5), "b": np.ones(3, np.uint8)}[name]
            np.testing.assert_array_equal(found[name], expected)
    assert refused > len(cases) / 2


def archive_of(header: bytes, *, data: bytes = b"", size: int | None = None) -> bytes:
    """An archive of one array with this header, and perhaps another size in the archive's directory."""
    file = io.BytesIO()
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", content)
    blob = file.getvalue()
    if size is not None:
        blob = blob.replace(struct.pack("<I", len(content)), struct.pack("<I", size))
    return blob


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2305843009213693952, 8)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 8)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (True,)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (0,)}",
        "{'descr': [('x', '|O')], 'fortran_order': False, 'shape': (0,)}",
        "{'descr': '\\d', 'fortran_order': False, 'shape': ()}",
        "{'descr': 'no', 'fortran_order': False, 'shape': ()}",
        "{'descr': '<f8', 'fortran_order': 1, 'shape': ()}",
        "(" * 2000,
        "-" * 9000 + "1",
        "\xff\x00",
        "[1, 2",
        "",
    ],
)
@pytest.mark.parametrize("size", [None, 2**31])
def test_a_header_that_lies_is_refused_before_memory_is_taken(
    tmp_path: Path, header: str, size: int | None
):
    path = tmp_path / "x.npz"
    path.write_bytes(archive_of(header.encode("latin1"), size=size))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            read_npz(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_pipe_and_a_folder_are_errors_of_the_system(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "folder.npz").mkdir()
    for name in ("pipe.npz", "folder.npz", "none.npz"):
        with pytest.raises(OSError, match=re.escape(name)):
            read_npz(tmp_path / name)


def test_a_file_that_numpy_does_not_open_is_not_read_either(tmp_path: Path):
    """Python's zipfile looks for the end alone, and takes what comes before the first entry for a program."""
    path = tmp_path / "a.npz"
    path.write_bytes(b"x" + packed({"a": np.arange(3)}, compressed=False))
    with pytest.raises(ValueError, match="not an .npz file"):
        read_npz(path)
