"""Data sets by name: finding the source, preparing it once, and reading it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from diffusion_jax.addresses import expand, is_local
from diffusion_jax.data.bucket import local_copy
from diffusion_jax.data.folder import some
from diffusion_jax.data.picture import DAMAGED
from diffusion_jax.data.sources.base import IMAGE_SIZE, SOURCE_DIR, Source, Storage
from diffusion_jax.data.sources.cifar10 import cifar10
from diffusion_jax.data.sources.digits import digits
from diffusion_jax.data.sources.fashion_mnist import fashion_mnist
from diffusion_jax.data.sources.image_folder import image_folder
from diffusion_jax.data.split import Split, in_memory
from diffusion_jax.errors import InputError, choose
from diffusion_jax.options import Component, Registry

TFDS_PREFIX = "tfds:"
MEMORY_LIMIT = 2 * 2**30
NAMED_FILES = 10


def prepared_by_tfds(
    name: str,
    split: str,
    *,
    source_dir: Annotated[Path | None, SOURCE_DIR] = None,
    image_size: Annotated[int | None, IMAGE_SIZE] = None,
) -> Split:
    """Opens data that the user has prepared with TFDS in the data_dir source_dir; see `reader.open_user`."""
    from diffusion_jax.data import reader  # TFDS is slow to import.

    return reader.open_user(name, source_dir, split, image_size)


# A `Source` is prepared once, a `Split` is used as is; "tfds:NAME" names the component `tfds`.
SOURCES: Registry[Component[Any]] = Registry(
    "data set",
    {
        "digits": Component(digits, "8x8 digits, embedded"),
        "fashion_mnist": Component(fashion_mnist, "28x28 clothes"),
        "cifar10": Component(cifar10, "32x32 photos"),
        "image_folder": Component(image_folder, "pictures in source_dir"),
        "tfds": Component(prepared_by_tfds, "NAME as TFDS has prepared it in source_dir"),
    },
    given=("storage", "name", "split"),
    prefixed=("tfds",),
)


def default_cache_dir() -> Path:
    """Returns $DIFFUSION_JAX_CACHE, else diffusion_jax in $XDG_CACHE_HOME, else in ~/.cache."""
    if folder := os.environ.get("DIFFUSION_JAX_CACHE"):
        return Path(expand(folder))
    return Path(expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "diffusion_jax"


def load(
    name: str,
    split: str,
    *,
    source_dir: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
    image_size: int | None = None,
    test_fraction: float | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    memory_limit: int = MEMORY_LIMIT,
    **options: Any,
) -> Split:
    """Opens a split of a data set, which is prepared in cache_dir at the first call.

    Args:
      name: A key of SOURCES, or "tfds:<name>" for TFDS data that the user has prepared.
      split: "train" or "test".
      source_dir: Folder (for cifar10 also the file) that holds the images; for "tfds:<name>",
        TFDS's data_dir. A gs:// address is copied into cache_dir once. None: the source's own search or download.
      sha256: Checksum in place of cifar10's published one, to use a repacked file.
      image_size: Size to crop and resize to; needed by image_folder.
      test_fraction: Held-out fraction of digits and image_folder, in [0, 1); None: 0.2.
      cache_dir: Folder for prepared data and downloads; None: default_cache_dir().
      memory_limit: Largest split, in bytes, that is held in memory; a larger one is streamed from its files. An
        image_folder that is larger is not copied either, but decoded from the user's own files when read.
      **options: Options declared by a user's own registered source.

    Raises:
      InputError: An argument, or a file that it names, is wrong.
      RunError: The disk is full, or prepared data is damaged.

    Example:
      >>> digits = dj.data.load("digits", "train")
      >>> digits.image_shape, digits.num_classes
      ((8, 8, 1), 10)
    """
    choose("split", split, dict.fromkeys(("train", "test")))
    cache = default_cache_dir() if cache_dir is None else Path(expand(cache_dir))
    cache = cache.absolute()
    if source_dir is not None and not is_local(source_dir):
        only = name.removeprefix(TFDS_PREFIX) if name.startswith(TFDS_PREFIX) else ""
        source_dir = local_copy(str(source_dir), cache / "buckets", only.partition("/")[0])
    folder = None if source_dir is None else Path(expand(source_dir)).absolute()
    if image_size is not None and image_size < 1:
        raise InputError(f"image_size is {image_size}; it must be at least 1")
    component = SOURCES.choose(name)
    options = {
        "source_dir": folder,
        "sha256": sha256,
        "image_size": image_size,
        "test_fraction": test_fraction,
        **options,
    }
    options = {option: value for option, value in options.items() if value is not None}
    known = {option.parameter for option in component.options.values()}
    for option, value in options.items():
        if option not in known:
            raise InputError(f"{option} is {value!r}, but {name} takes none; leave it unset")
    storage = Storage(cache / "downloads", cache / "index")
    offered = {"storage": storage, "name": name.removeprefix(TFDS_PREFIX), "split": split}
    source = component.bind(**offered)(**options)
    if isinstance(source, Split):
        return _held(source, memory_limit)
    return _open(name, source, split, cache / "data", memory_limit)


def _held(split: Split, memory_limit: int) -> Split:
    return in_memory(split) if split.num_bytes <= memory_limit else split


def _open(name: str, source: Source, split: str, root: Path, memory_limit: int) -> Split:
    from diffusion_jax.data import prepare, reader  # TFDS is slow to import.

    opened, left_out = None, {}
    if source.in_place is not None and not prepare.directory_of(name, source, root).exists():
        with prepare.explained(name, root):
            whole = source.in_place()
        if sum(part.num_bytes for part in whole.splits.values()) > memory_limit:
            if split not in whole.splits:
                raise InputError(f"{name} has no {split} images; it has {', '.join(whole.splits)}")
            opened, left_out = whole.splits[split], whole.left_out
    if opened is None:
        directory = prepare.prepared(name, source, root)
        opened, left_out = reader.open_prepared(directory, name, split)
        opened = _held(opened, memory_limit)
    notes = [source.note, None if opened.class_names else source.no_classes, *_notes(left_out)]
    for note in filter(None, notes):
        warnings.warn(f"{name}: {note}", stacklevel=3)
    return opened


def _notes(left_out: Mapping[str, str]) -> Iterator[str]:
    """Yields one line for each kind of reason why files are left out."""
    kinds: dict[str, list[str]] = {}
    for file in sorted(left_out):
        kinds.setdefault(left_out[file].partition(":")[0], []).append(file)
    for kind, files in kinds.items():
        if kind == DAMAGED:
            yield f"{len(files)} damaged files are left out: {some(files, NAMED_FILES)}"
        else:
            yield f"{len(files)} files are left out: {some(files, NAMED_FILES)} ({left_out[files[0]]})"
