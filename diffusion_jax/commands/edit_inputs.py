"""Inputs of --mode=inpaint and --mode=interpolate: images, their classes, and the mask."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, UInt8
from PIL import Image

from diffusion_jax.addresses import expand
from diffusion_jax.data import image_file, picture
from diffusion_jax.data.folder import pictures_in, shown
from diffusion_jax.errors import InputError, reason
from diffusion_jax.runs import Run
from diffusion_jax.samplers.batches import class_of_images

SHOWN = 5  # Images that cannot be read, in one line.
WHITE = 128  # Mask pixels from here on are drawn anew.


class Inputs(NamedTuple):
    """Images of the model's shape, and the class of each; None for an unconditional model."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, " n"] | None

    def labels_to_record(self, num_classes: int) -> Int32[np.ndarray, " n"] | None:
        """Returns the labels; None if an image has no class."""
        return None if self.labels is None or num_classes in self.labels else self.labels

    def digest(self) -> str:
        """Returns what names their contents."""
        digest = hashlib.sha256(repr((self.images.shape, self.labels is None)).encode())
        for array in self:
            digest.update(b"" if array is None else array.tobytes())
        return digest.hexdigest()


def load_inputs(
    run: Run, paths: Sequence[str] | None, num_images: int, labels: Sequence[int] | None
) -> Inputs:
    """Returns the images of `edit.images`, cropped and resized to the model's size, or else the first test images.

    Args:
      run: Whose model they are for.
      paths: The field `edit.images`: files and folders; None: the test images.
      num_images: Number of test images, at most.
      labels: The field `sample.labels`: classes in turn; None: those of the test images, or no class for other images,
        if the model was trained to do without (`train.label_dropout`).

    Raises:
      InputError: An image that cannot be read, no test images, classes that have moved, or one that nobody says.
    """
    known = None
    if paths is None:
        split = run.load_split("test", labeled=run.conditional and labels is None)
        batch = split.read(np.arange(min(num_images, split.num_images)))
        images, known = batch["image"], batch["label"].astype(np.int32)
    else:
        images = np.stack(_read_all(_files(paths), run.image_shape))
    if not run.label_classes:
        return Inputs(images, None)
    if not run.conditional:  # The data's classes need not be the classifier's.
        known = None
    if labels is not None:
        known = class_of_images(np.arange(len(images)), run.label_classes, labels)
    if known is not None:
        return Inputs(images, known)
    if run.classifier is not None:
        raise InputError(
            "sample.labels is unset, but sampler.classifier needs the class of each image that is edited"
        )
    if not run.classless:
        raise InputError(
            "sample.labels is unset, but the model needs the class of each of edit.images (it was trained without "
            "label dropout)"
        )
    if run.guidance_scale is not None:
        warnings.warn(
            f"sampler.guidance_scale is {run.guidance_scale:g}, but no class of edit.images is known, so "
            "nothing is guided; set sample.labels",
            stacklevel=1,
        )
    return Inputs(images, np.full(len(images), run.num_classes, np.int32))


def load_mask(path: str, image_shape: tuple[int, int, int]) -> Bool[np.ndarray, "h w"]:
    """Returns which pixels a mask keeps: the black ones.

    Raises:
      InputError: A mask that cannot be read, is not gray, has transparent pixels, or another size than the images.
    """
    height, width, _ = image_shape
    image = _opened(expand(path), "edit.mask", (width, height))
    bands = np.asarray(image).reshape(height, width, -1)
    if image.mode in ("LA", "RGBA"):
        if (bands[..., -1] < 255).any():
            raise InputError(
                f"edit.mask: {shown(path)} has transparent pixels; save it without transparency, "
                "black where pixels are kept"
            )
        bands = bands[..., :-1]
    if (bands != bands[..., :1]).any():
        raise InputError(
            f"edit.mask: {shown(path)} has colors; it must be gray, or black and white"
        )
    brightest = int(bands.max())
    if brightest == 0:
        warnings.warn(f"edit.mask: {shown(path)} is black; nothing is drawn anew", stacklevel=1)
    if brightest == 1:
        warnings.warn(
            f"edit.mask: {shown(path)} holds only 0 and 1; 1 is taken for white", stacklevel=1
        )
        return bands[..., 0] == 0
    if 1 < brightest < WHITE:
        raise InputError(
            f"edit.mask: the brightest pixel of {shown(path)} is {brightest} of 255, but only "
            f"pixels from {WHITE} on are drawn anew; make them white"
        )
    return bands[..., 0] < WHITE


def _files(paths: Sequence[str]) -> list[str]:
    """Returns the paths, a folder's images in place of the folder."""
    files = []
    for path in map(expand, paths):
        if not os.path.isdir(path):  # Path.is_dir raises for a name that is too long.
            files.append(path)
            continue
        found = pictures_in(Path(path), "edit.images", deep=False)
        if not found.names:
            raise InputError(
                f"edit.images: no images in {shown(path)}; it must hold {picture.KINDS} itself, since folders "
                "in it are not searched"
                + (f" ({found.passed_over_in_words()})" if found.passed_over else "")
            )
        if note := found.note():
            warnings.warn(f"edit.images: {note}", stacklevel=1)
        files += [os.path.join(path, name) for name in found.names]
    return files


def _read_all(
    paths: Sequence[str], image_shape: tuple[int, int, int]
) -> list[UInt8[np.ndarray, "h w c"]]:
    """Returns the images; names all that cannot be read, since each is one that the user asked for."""
    images, wrong = [], []
    for path in paths:
        try:
            images.append(_read(path, image_shape))
        except InputError as error:
            wrong.append(str(error))
    if wrong:
        more = (
            f" (and {len(wrong) - 1} more: {'; '.join(wrong[1:SHOWN])})" if len(wrong) > 1 else ""
        )
        raise InputError(wrong[0] + more)
    return images


def _read(path: str, image_shape: tuple[int, int, int]) -> UInt8[np.ndarray, "h w c"]:
    height, width, channels = image_shape
    mode = "L" if channels == 1 else "RGB"
    if height == width:
        return image_file.fit(_opened(path, "edit.images"), height, mode)
    image = _opened(path, "edit.images", (width, height))
    return np.asarray(image_file.over_white(image, mode)).reshape(image_shape)


def _opened(path: str, field: str, size: tuple[int, int] | None = None) -> Image.Image:
    """Returns the picture in a file, which must have the given width and height."""
    try:
        image = image_file.read(path)
    except (ValueError, OSError) as error:
        raise InputError(f"{field}: cannot read {shown(path)}: {reason(error)}") from error
    if size is not None and image.size != size:
        raise InputError(
            f"{field}: {shown(path)} has {image.size[0]}x{image.size[1]} pixels; "
            f"the model's images have {size[0]}x{size[1]}"
        )
    return image
