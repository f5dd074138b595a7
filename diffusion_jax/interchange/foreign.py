"""What a checkpoint of another library is in our terms, and the formats that are read and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from diffusion_jax.options import Component


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A checkpoint of another library.

    Attributes:
      fields: What it says of our config, by name, such as {"model.channels": 128}.
      image_shape: (H, W, C) of its images.
      params: The parameters that its authors sample with, averaged if there is an average.
      trained: The parameters that the average is of; None: there are none.
      step: Number of training steps; 0: it does not say.
      notes: What was left out or assumed, a line each.
      files: The files that were read.
      class_names: Names of the classes; empty: it has none.
    """

    fields: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    params: PyTree
    trained: PyTree = None
    step: int = 0
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    class_names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Source(Component[Foreign]):
    """A format that is read: `make(path, settings)` returns the `Foreign`, or raises an InputError.

    Attributes:
      fits: path -> whether it looks like this format, without reading the tensors.
      settings: What the text of `--source_settings` is for; "": it takes none.
    """

    fits: Callable[[Path], bool] = lambda path: False
    settings: str = ""
