"""The images of a sampling job on disk: batches as they are finished, then the files that were asked for.

Nothing here holds all images of a job in memory.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int64, UInt8

from diffusion_jax.lifecycle import stopping
from diffusion_jax.lifecycle.ownership import owned_write
from diffusion_jax.parallel import distributed
from diffusion_jax.parallel.resumable import Batches, explained, rows_of
from diffusion_jax.reading.npz import open_array, open_npz
from diffusion_jax.reporting import pictures
from diffusion_jax.writing.atomic import remove_unfinished

Images = UInt8[np.ndarray, "n h w c"]
Labels = Int[np.ndarray, " n"] | None
Shape = tuple[int, int, int, int]  # Of all images of a job.
CHUNK = 1024  # Images read at once, where a file holds them all.
# What a damaged file makes its readers raise.
BROKEN = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    RuntimeError,
    SyntaxError,
    zlib.error,
)


class ImageFiles:
    """The folder of a job: parts/ while it is drawn, and at its end a file or folder for each format.

    Each appears whole or not at all, and is read with its checksum.

    Attributes:
      parts: Batches of `images`.
    """

    def __init__(self, folder: Path, num_images: int, image_shape: tuple[int, int, int]) -> None:
        self._folder, self._num_images, self._image_shape = folder, num_images, image_shape
        # Formats whose files were read to their end, which takes seconds where they are many.
        self._checked: set[str] = set()
        is_sound = rows_of(images=(np.uint8, image_shape))
        self.parts = Batches(folder / "parts", num_images, is_sound)

    @property
    def num_bytes(self) -> int:
        """Size of all images in memory."""
        return self._num_images * math.prod(self._image_shape)

    def finished(self) -> Int64[np.ndarray, " n"]:
        """Returns the images that need not be drawn, on every process: those of a sound file, or of sound parts."""
        if distributed.broadcast_from_first(
            "images written", lambda: self._sound(FORMATS) is not None
        ):
            return np.arange(self._num_images)
        return self.parts.finished()

    def head(self, num_images: int) -> Images:
        """Returns the first images of a job that is drawn; all, if it has fewer."""
        read: list[Images] = []
        for images in self._read():
            read.append(images)
            if sum(map(len, read)) >= num_images:
                break
        return np.concatenate(read)[:num_images]

    def write(
        self, formats: Iterable[str], labels: Labels, class_names: tuple[str, ...] = ()
    ) -> list[Path]:
        """Writes the files of a job that is drawn, unless they are there; then deletes the parts.

        Args:
          formats: Keys of `FORMATS`.
          labels: Class of each image; None without classes.
          class_names: Name of each class that there is, some perhaps without an image.

        Returns:
          The file or folder of each format.

        Raises:
          RunError: One cannot be written: disk full, …. The parts are still there.
        """
        paths = []
        remove_unfinished(self._folder)
        for name in formats:
            path = self._folder / FORMATS[name].path
            paths.append(path)
            if self._sound([name]) is None:
                shape = (self._num_images, *self._image_shape)
                with explained(path), owned_write(path) as unfinished:
                    FORMATS[name].write(unfinished, self._read(), shape, labels, class_names)
        self.parts.remove()
        return paths

    def _read(self) -> Iterator[Images]:
        name = self._sound(FORMATS)
        if name is None:
            read = (part["images"] for part in self.parts.read_all())
        else:
            read = FORMATS[name].read(self._folder / FORMATS[name].path)
        for images in read:
            stopping.check()
            yield images

    def _sound(self, formats: Iterable[str]) -> str | None:
        """Returns the first of these formats whose file is there and can be read to its end."""
        for name in formats:
            path = self._folder / FORMATS[name].path
            with contextlib.suppress(*BROKEN):
                if name not in self._checked and path.exists():
                    if self._has_all(FORMATS[name].read(path)):
                        self._checked.add(name)
            if name in self._checked:
                return name
        return None

    def _has_all(self, batches: Iterator[Images]) -> bool:
        count = 0
        for images in batches:
            stopping.check()
            if images.shape[1:] != self._image_shape:
                return False
            count += len(images)
        return count == self._num_images


# ---- formats: written from batches, read in batches -------------------------------------------------------


class Format(NamedTuple):
    """A form that the images of a job can have.

    Attributes:
      path: Name of its file or folder.
      write: (path, batches of images, shape of all images, labels, names of classes) -> None.
      read: path -> batches of images; raises one of `BROKEN` if it is damaged.
    """

    path: str
    write: Callable[[Path, Iterator[Images], Shape, Labels, tuple[str, ...]], None]
    read: Callable[[Path], Iterator[Images]]


def _write_npz(
    path: Path,
    batches: Iterator[Images],
    shape: Shape,
    labels: Labels,
    class_names: tuple[str, ...],
) -> None:
    del class_names
    path.parent.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_2_0(file, header)
            for images in batches:
                file.write(images.tobytes())
        if labels is not None:
            with archive.open("labels.npy", "w") as file:
                np.lib.format.write_array(file, labels)


def _read_npz(path: Path) -> Iterator[Images]:
    with open_npz(path) as archive:
        if not {"images.npy"} <= {*archive.namelist()} <= {"images.npy", "labels.npy"}:
            raise ValueError(f"it holds {', '.join(archive.namelist())}")
        with open_array(archive, "images") as (header, file):
            if header.dtype != np.uint8 or header.fortran_order or len(header.shape) != 4:
                raise ValueError(f"images of {header}")
            size = math.prod(header.shape[1:])
            while size and (block := file.read(CHUNK * size)):
                yield np.frombuffer(block, np.uint8).reshape(-1, *header.shape[1:])
        if "labels.npy" in archive.namelist():
            with open_array(archive, "labels") as (header, file):
                file.read()


def _write_png(
    path: Path,
    batches: Iterator[Images],
    shape: Shape,
    labels: Labels,
    class_names: tuple[str, ...],
) -> None:
    del shape, labels, class_names
    path.mkdir(parents=True)
    i = 0
    for images in batches:
        for image in images:
            pictures.save_png(path / f"{i:06}.png", image)
            i += 1


def _read_png(path: Path) -> Iterator[Images]:
    from diffusion_jax.data import image_file

    for i in itertools.count():
        file = path / f"{i:06}.png"
        if not file.exists():
            return
        yield image_file.pixels(file)[None]


def _write_array_record(
    path: Path,
    batches: Iterator[Images],
    shape: Shape,
    labels: Labels,
    class_names: tuple[str, ...],
) -> None:
    """Writes a TFDS data set, so that `data.name=tfds:images` can train on it."""
    from diffusion_jax.data.prepare import write_images
    from diffusion_jax.data.sources.base import Contents

    num_images, image_shape = shape[0], shape[1:]
    classes = () if labels is None else class_names

    def rows() -> Iterator[tuple[np.ndarray, int]]:
        i = 0
        for images in batches:
            for image in images:
                yield image, 0 if labels is None else int(labels[i])
                i += 1

    write_images(path, Contents(image_shape, classes, num_images, {"train": rows()}))


def _read_array_record(path: Path) -> Iterator[Images]:
    from diffusion_jax.data.reader import read_images

    split = read_images(path)
    for first in range(0, split.num_images, CHUNK):
        indices = np.arange(first, min(first + CHUNK, split.num_images))
        yield split.read(indices)["image"]


FORMATS = {
    "npz": Format("images.npz", _write_npz, _read_npz),
    "array_record": Format("array_record", _write_array_record, _read_array_record),
    "png": Format("png", _write_png, _read_png),
}
