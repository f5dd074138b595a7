"""Names of what a training may be planned for: slices of TPUs, and machines with GPUs."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from diffusion_jax.errors import InputError, nearest
from diffusion_jax.planning.chips import CHIPS, TOPOLOGIES, Chip

_CORES = {
    "v4": 2,
    "v5p": 2,
}  # Google Cloud's names of their slices count cores, of which a chip has two.
_OTHER_NAMES = {"v5litepod": "v5e"}
_GPUS = {
    "h100": "NVIDIA H100 80GB HBM3",
    "h200": "NVIDIA H200",
    "a100": "NVIDIA A100-SXM4-40GB",
    "a100-80gb": "NVIDIA A100-SXM4-80GB",
}


class Gpus(NamedTuple):
    """Some GPUs of one kind.

    Attributes:
      device_kind: JAX's name of the kind, one of `CHIPS`.
      number: How many there are.
    """

    device_kind: str
    number: int

    @property
    def chip(self) -> Chip:
        """Their published figures."""
        return CHIPS[self.device_kind]


def slice_name(name: str) -> str:
    """Returns GENERATION:SHAPE of a slice of TPUs, which may be named so or as Google Cloud does.

    So v5e:4x4, v5e-16 and v5litepod-16 are one slice. The shape of a slice that is named by its number of chips (v4 and
    v5p: of cores, two a chip) is the one that is rented under this name.

    Args:
      name: Such as "v5e:4x4", "v5litepod-16" or "v5p-8".

    Raises:
      InputError: No slice is called so.
    """
    if found := re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", name):
        generation = _OTHER_NAMES.get(found[1], found[1])
        if generation in TOPOLOGIES:
            return f"{generation}:{found[2]}"
    if found := re.fullmatch(r"(\w+)-(\d+)", name):
        generation = _OTHER_NAMES.get(found[1], found[1])
        for shape in TOPOLOGIES.get(generation, ()):
            if cloud_size(generation, shape) == int(found[2]):
                return f"{generation}:{shape}"
    raise unknown(name)


def cloud_size(generation: str, shape: str) -> int:
    """Returns the number in Google Cloud's name of a slice.

    Args:
      generation: Such as "v5e".
      shape: Such as "4x4".
    """
    return math.prod(map(int, shape.split("x"))) * _CORES.get(generation, 1)


def gpus_of(name: str) -> Gpus | None:
    """Returns the GPUs of a name such as "h100:8"; None if it is not of GPUs.

    Args:
      name: Kind and number of GPUs.

    Raises:
      InputError: The kind is known, but what follows it is not a number of GPUs.
    """
    kind, _, count = name.lower().partition(":")
    if kind not in _GPUS:
        return None
    if not re.fullmatch(r"[1-9]\d{0,5}", count):
        raise InputError(f"--topology is {name!r}; GPUs are named with their number, as {kind}:8")
    return Gpus(_GPUS[kind], int(count))


def unknown(name: str) -> InputError:
    """Returns the error for a name that is of nothing known, with the nearest one.

    Args:
      name: The name.
    """
    shapes: dict[tuple[str, ...], list[str]] = {}
    for generation, known in TOPOLOGIES.items():
        shapes.setdefault(known, []).append(generation)
    parts = [f"{'/'.join(names)}: {', '.join(known)}" for known, names in shapes.items()]
    names = [f"{g}:{shape}" for g, known in TOPOLOGIES.items() for shape in known]
    clouds = [f"{g}-{cloud_size(g, shape)}" for g, known in TOPOLOGIES.items() for shape in known]
    near = nearest(name, [*names, *clouds, *(f"{kind}:8" for kind in _GPUS)])
    return InputError(
        f"unknown --topology {name!r}; choose GENERATION:SHAPE such as v5e:4x4 (or v5e-16, v5litepod-16), of "
        f"{'; '.join(parts)}; or GPUs such as h100:8, of {', '.join(_GPUS)}.{near}"
    )
