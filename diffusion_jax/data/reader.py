"""Reading of prepared TFDS data through tfds.data_source, many images per call, without TensorFlow."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int64
from PIL import Image
from tensorflow_datasets.core import constants, read_only_builder
from tensorflow_datasets.proto import tf_example_pb2

from diffusion_jax.data import picture, prepare
from diffusion_jax.data.image_file import fit
from diffusion_jax.data.prepare import NAME, directory_in
from diffusion_jax.data.split import Batch, Split
from diffusion_jax.errors import InputError, RunError, reason
from diffusion_jax.reading.regular import only_regular

# The module creates the class at import, out of sight of type checkers.
_Example: Any = vars(tf_example_pb2)["Example"]


def open_prepared(directory: Path, name: str, split: str) -> tuple[Split, dict[str, str]]:
    """Opens a split written by `prepare`, streamed from its files.

    Returns:
      The split, and the reason for each file that was left out when it was prepared.

    Raises:
      InputError: The source has no images in that split.
      RunError: The prepared files are damaged.
    """
    try:
        only_regular(directory)
        prepare.check_seal(directory)
        builder: Any = tfds.builder_from_directory(directory)
        shape = builder.info.features["image"].shape
        class_names = tuple(builder.info.metadata["class_names"])
        left_out = builder.info.metadata["left_out"]
        counts = builder.info.metadata.get("class_counts", {})
        sources = {
            key: builder.as_data_source(
                key, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
            )
            for key in builder.info.splits
        }
    except Exception as error:  # Damaged metadata can raise nearly anything.
        raise _damaged(directory, error) from error
    if split not in sources:
        raise InputError(f"{name} has no {split} images; it has {', '.join(sources)}")
    read = _reader(sources[split], directory, lambda records: _parse(records, shape))
    sizes = {key: len(source) for key, source in sources.items()}
    counted = tuple(counts[split]) if split in counts else None
    return Split(sizes[split], shape, class_names, read, counted, sizes), left_out


def read_images(folder: Path) -> Split:
    """Opens a data set written by `write_images`, streamed from its files.

    Raises:
      RunError: The files are damaged.
    """
    return open_prepared(directory_in(folder), NAME, "train")[0]


def _damaged(directory: Path, error: Exception) -> RunError:
    return RunError(
        f"the prepared data in {str(directory)!r} cannot be read ({reason(error)}); "
        "delete that folder to prepare it again"
    )


def _reader(
    source: Any, directory: Path, parse: Callable[[Sequence[Any]], Batch]
) -> Callable[[Int64[np.ndarray, " b"]], Batch]:
    """Returns the function `Split.read` for a TFDS data source and a parser of its items."""

    def read(indices: Int64[np.ndarray, " b"]) -> Batch:
        try:
            return parse(source.__getitems__(indices.tolist()))
        except (OSError, ValueError, RuntimeError, IndexError) as error:  # An empty record.
            raise _damaged(directory, error) from error

    return read


def _parse(records: Sequence[bytes], shape: tuple[int, int, int]) -> Batch:
    """Parses serialized examples that hold images as raw bytes.

    TFDS's own parser does the same for one example at a time, at a third of the speed.
    """
    images, labels = bytearray(), []
    for record in records:
        feature = _Example.FromString(record).features.feature
        images += feature["image"].bytes_list.value[0]
        labels.append(feature["label"].int64_list.value[0])
    image = np.frombuffer(images, np.uint8).reshape(len(records), *shape)
    return {"image": image, "label": np.array(labels, np.int32)}


def open_user(name: str, data_dir: Path | None, split: str, image_size: int | None) -> Split:
    """Opens TFDS data that the user has prepared, streamed from its files.

    Args:
      name: The data set's name, with config and version if there are several (name/config:1.0.0).
      data_dir: TFDS's data_dir; None: TFDS's own default.
      split: Name of the split.
      image_size: Size to crop and resize to; None: the images are used as they are.

    Raises:
      InputError: There is no such data set or split, or it does not hold uint8 images.
    """
    builder = _user_builder(name, data_dir)
    info = builder.info
    if split not in info.splits:
        raise InputError(f"tfds:{name} has no split {split!r}; it has {', '.join(info.splits)}")
    if info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise InputError(
            f"tfds:{name} is stored as {info.file_format and info.file_format.value}; "
            "prepare it with file_format='array_record'"
        )
    shape = _image_shape(name, info, image_size)
    class_names = _class_names(name, info)

    # TFDS must not decode the images: it lets Pillow open any format, some by starting programs.
    encoded = isinstance(info.features["image"], tfds.features.Image)

    def parse(items: Sequence[Any]) -> Batch:
        images = [item["image"] for item in items]
        if encoded:
            images = [np.asarray(picture.decoded(image)) for image in images]
            images = [image.reshape(*image.shape[:2], shape[-1]) for image in images]
        if image_size is not None:
            images = [_resize(image, shape) for image in images]
        labels = [item["label"] if class_names else 0 for item in items]
        return {"image": np.stack(images), "label": np.array(labels, np.int32)}

    decoders = {"image": tfds.decode.SkipDecoding()} if encoded else None
    with _understood(name, str(builder.data_dir)):
        source = builder.as_data_source(split, decoders=decoders)
    return Split(
        *(len(source), shape, class_names, _reader(source, Path(builder.data_dir), parse)),
        sizes={key: part.num_examples for key, part in info.splits.items()},
    )


def _user_builder(name: str, data_dir: Path | None) -> Any:
    """Returns TFDS's builder of a user's data; raises an InputError if the data do not exist or cannot be read."""
    folder = str(data_dir or Path(constants.DATA_DIR).expanduser())
    with _understood(name, folder):
        first = re.match(r"\w*", name)
        if first and first[0] and (below := Path(folder, first[0])).is_dir():
            only_regular(below)
        return read_only_builder.builder_from_files(name, data_dir=folder)


@contextlib.contextmanager
def _understood(name: str, folder: str) -> Iterator[None]:
    """Converts TFDS's errors for damaged metadata, which can be nearly anything, to an InputError."""
    try:
        yield
    except tfds.core.DatasetNotFoundError as error:
        raise InputError(
            f"TFDS data {name!r} is not prepared in {folder!r}; prepare it there with "
            "file_format='array_record', or set source_dir to the data_dir that holds it"
        ) from error
    except Exception as error:
        raise InputError(
            f"TFDS data {name!r} in {folder!r} cannot be read: {reason(error)[:200]}; prepare it again"
        ) from error


def _class_names(name: str, info: Any) -> tuple[str, ...]:
    """Returns the class names of a user's data; empty if there are no labels."""
    label = info.features["label"] if "label" in info.features else None
    if not isinstance(label, tfds.features.ClassLabel):
        return ()
    names = tuple(label.names or ()) if label.num_classes else ()
    if len(names) != (label.num_classes or 0):
        raise InputError(
            f"tfds:{name} names {len(names)} classes, but has {label.num_classes}; prepare it again"
        )
    return names


def _image_shape(name: str, info: Any, image_size: int | None) -> tuple[int, int, int]:
    """Returns the shape of the images as they will be read, or raises an InputError."""
    features = info.features
    named = isinstance(features, tfds.features.FeaturesDict)
    image: Any = features["image"] if named and "image" in features else None
    if image is None or image.np_dtype != np.uint8 or len(image.shape) != 3:
        raise InputError(f"tfds:{name} has no feature 'image' of uint8 (H, W, C); it is needed")
    height, width, channels = image.shape
    if image_size is not None:
        if channels not in (1, 3):
            raise InputError(f"tfds:{name} has {channels} channels; only 1 or 3 can be resized")
        return image_size, image_size, channels
    if None in (height, width, channels):
        raise InputError(f"the images of tfds:{name} differ in size; set image_size")
    return height, width, channels


def _resize(image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    if image.shape == shape:
        return image
    picture = Image.fromarray(image[..., 0] if shape[-1] == 1 else image)
    return fit(picture, shape[0], "L" if shape[-1] == 1 else "RGB")
