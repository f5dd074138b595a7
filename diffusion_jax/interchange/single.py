"""Our own single file: the parameters as safetensors, with the config and the shape of the images in its metadata."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from diffusion_jax.errors import InputError
from diffusion_jax.interchange.foreign import Foreign
from diffusion_jax.interchange.places import by_path, nested
from diffusion_jax.reading.tensors import read_metadata, read_tensors

FORMAT = "diffusion_jax"
NAME = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Description:
    """What a run is besides its parameters, as text of JSON.

    Attributes:
      groups: The fields of its config, in groups.
      image_shape: (H, W, C) of its images.
      class_names: Names of the classes; empty: they are not known.
      step: Number of training steps.
      source: What made it.
    """

    groups: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...] = ()
    step: int = 0
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """Returns the fields of the config by name, such as "train.num_steps"."""

        def flat(group: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
            for name, value in group.items():
                if isinstance(value, Mapping):
                    yield from flat(value, f"{prefix}{name}.")
                else:
                    yield f"{prefix}{name}", tuple(value) if isinstance(value, list) else value

        return dict(flat(self.groups, ""))

    def as_json(self) -> dict[str, Any]:
        """Returns what `described` reads."""
        others = dataclasses.asdict(self)
        return {"config": others.pop("groups"), **others}


def write(path: Path, params: PyTree, description: Description) -> None:
    """Writes the file.

    Args:
      path: Of the file.
      params: Parameters, nested dicts.
      description: What they belong to.

    Raises:
      OSError: It cannot be written.
    """
    from safetensors.numpy import save_file

    metadata = {"format": FORMAT, FORMAT: json.dumps(description.as_json())}
    arrays = {name: np.ascontiguousarray(array) for name, array in by_path(params).items()}
    save_file(arrays, path, metadata)


def read(path: Path, settings: str = "") -> Foreign:
    """Reads the file, or a folder that holds it.

    Args:
      path: Of the file or the folder.
      settings: None.

    Raises:
      InputError: It is damaged, or has no config of ours.
      OSError: It cannot be read.
    """
    del settings
    path = path / NAME if path.is_dir() else path
    description = described(read_metadata(path).get(FORMAT, ""), str(path))
    params = nested(read_tensors(path))
    return Foreign(
        description.fields(),
        description.image_shape,
        params,
        step=description.step,
        files=(path,),
        class_names=description.class_names,
    )


def described(text: str, where: str) -> Description:
    """Returns the description that a text of JSON holds.

    Args:
      text: The text.
      where: Names it in errors.

    Raises:
      InputError: It is no such text.
    """
    try:
        found = json.loads(text)
        height, width, channels = found["image_shape"]
        return Description(
            found["config"],
            (int(height), int(width), int(channels)),
            tuple(map(str, found["class_names"])),
            int(found["step"]),
            dict(found["source"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{where} has no config of {FORMAT} in its metadata") from error


def fits(path: Path) -> bool:
    """Returns whether a path is such a file, or a folder that holds it.

    Args:
      path: A file or folder.
    """
    path = path / NAME if path.is_dir() else path
    try:
        return path.suffix == ".safetensors" and FORMAT in read_metadata(path)
    except (InputError, OSError):
        return False
