"""Integrity checks of PNG files: chunks, their checksums, and the amount of compressed data.

Pillow does not verify the checksums of all chunks, and reads missing rows as black.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEAD, _CHECKSUM = struct.Struct(">I4s"), struct.Struct(">I")
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # Channels by color type.
# Passes of Adam7: first column and row, and steps between columns and rows.
_PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
_PASSES += [(0, 1, 1, 2)]


def check(data: bytes) -> None:
    """Raises a ValueError if the file ends early or a chunk has a wrong checksum."""
    for _ in _chunks(data):
        pass


def is_interlaced(data: bytes) -> bool:
    """Whether the rows are stored in several passes."""
    return data[28] > 0


def check_rows(data: bytes) -> None:
    """Raises a ValueError if the compressed data do not cover all rows."""
    size = _size(data[16:29])
    stream, left = zlib.decompressobj(), size
    for name, contents in _chunks(data):
        if name == b"IDAT" and left:
            left -= len(stream.decompress(contents, left))
    if left:
        raise ValueError(f"{left} of {size} bytes of its rows are missing")


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yields the name and contents of each chunk up to IEND."""
    view, start, name = memoryview(data), len(SIGNATURE), b""
    while name != b"IEND":
        try:
            length, name = _HEAD.unpack_from(data, start)
            end = start + 8 + length
            (checksum,) = _CHECKSUM.unpack_from(data, end)
        except struct.error:
            raise ValueError("the file is cut short") from None
        if zlib.crc32(view[start + 4 : end]) != checksum:
            raise ValueError(f"wrong checksum of chunk {name.decode('ascii', 'replace')!r}")
        yield name, view[start + 8 : end]
        start = end + 4


def _size(header: bytes) -> int:
    """Returns the number of bytes of all rows, including one byte per row for its filter."""
    width, height = (int.from_bytes(header[i : i + 4], "big") for i in (0, 4))
    depth, color, interlaced = header[8], header[9], header[12]
    passes = _PASSES if interlaced else [(0, 0, 1, 1)]
    size = 0
    for column, row, across, down in passes:
        columns, rows = -((column - width) // across), -((row - height) // down)
        if columns > 0 and rows > 0:
            size += rows * (1 + -(-columns * depth * _CHANNELS[color] // 8))
    return size
