"""Modules of a U-Net in the order of the forward pass, and the tensors of another library that they are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from diffusion_jax.errors import InputError
from diffusion_jax.models.networks import ClassifierUNet, UNet, as_functions

MOST_NAMED = 5  # Tensors that an error lists.
MATRICES = ("kernel", "positions")  # Parameters that other libraries have transposed.
HEADS = {  # Modules of a classifier's head, by its pool.
    "adaptive": ("norm_out", "logits"),
    "attention": ("norm_out", "pool"),
    "spatial": ("hidden", "logits"),
    "spatial_v2": ("hidden", "norm_hidden", "logits"),
}
Order = Literal["3hd", "h3d", "hd3"]
QKV = ("query", "key", "value")


class Place(NamedTuple):
    """A module of the U-Net.

    Attributes:
      name: Its name among our parameters, such as "down_0_1_res".
      kind: "res", "attention", or the name itself of what there is once.
      side: "down", "middle", "up", or "" of the ends.
      level: Of the resolution, from 0, the input's.
      block: Its number in that level.
      resize: Whether it changes the resolution.
    """

    name: str
    kind: str
    side: str = ""
    level: int = 0
    block: int = 0
    resize: bool = False


def places(unet: UNet, height: int) -> Iterator[Place]:
    """Yields the modules that have parameters, in the order in which the network applies them.

    Args:
      unet: The network.
      height: Of its images.
    """
    last = len(unet.channel_mult) - 1
    if unet.time_embedding == "fourier":
        yield Place("fourier", "fourier")
    if unet.num_classes:
        yield Place("class", "class")
    yield from (Place(name, name) for name in ("time_dense_0", "time_dense_1", "conv_in"))
    for level in range(last + 1):
        for index in range(unet.num_res_blocks):
            yield from _block(unet, height, "down", level, index)
        if level < last:
            yield from _resize(unet, "down", level)
            if unet.input_pyramid != "none":
                yield Place(f"down_{level}_input", "input", "down", level)
    yield Place("middle_0_res", "res", "middle", last, 0)
    yield Place("middle_0_attention", "attention", "middle", last, 0)
    yield Place("middle_1_res", "res", "middle", last, 1)
    if isinstance(unet, ClassifierUNet):
        yield from (Place(name, name) for name in HEADS[unet.pool])
    else:
        yield from _decoder(unet, height, last)


def _decoder(unet: UNet, height: int, last: int) -> Iterator[Place]:
    for level in range(last, -1, -1):
        for index in range(unet.num_res_blocks + 1):
            yield from _block(unet, height, "up", level, index)
        if level and unet.output_pyramid == "skip":
            for part in ("norm", "conv"):
                yield Place(f"{part}_up_{level}_out", f"{part}_out", "up", level)
        if level:
            yield from _resize(unet, "up", level)
    yield from (Place(name, name) for name in ("norm_out", "conv_out"))


def _block(unet: UNet, height: int, side: str, level: int, index: int) -> Iterator[Place]:
    yield Place(f"{side}_{level}_{index}_res", "res", side, level, index)
    has_attention = height >> level in unet.attention_resolutions
    if side == "up" and unet.decoder_attention == "level":
        has_attention &= index == unet.num_res_blocks
    if has_attention:
        yield Place(f"{side}_{level}_{index}_attention", "attention", side, level, index)


def _resize(unet: UNet, side: str, level: int) -> Iterator[Place]:
    if unet.resample != "pool":
        kind = "res" if unet.resample == "block" else "resize"
        yield Place(f"{side}_{level}_resize", kind, side, level, resize=True)


class Layout(NamedTuple):
    """How another library names and stores the parameters of a U-Net.

    Attributes:
      module: Place -> its name of the module.
      layers: Kind of place -> our layer within it -> its name; "" is the module itself.
      leaf: (its name of a module, our name of a parameter) -> its name of that.
      qkv: Order of the rows of queries, keys and values that are one tensor, (3, heads, channels) in some order; None:
        they are three.
      cos_first: Whether the sinusoids of the time are cosines, then sines; ours are the other way around.
      transposed: Its name of a kernel -> whether that has its outputs first, as torch's have.
    """

    module: Callable[[Place], str]
    layers: Mapping[str, Mapping[str, str]]
    leaf: Callable[[str, str], str]
    qkv: Order | None = None
    cos_first: bool = False
    transposed: Callable[[str], bool] = lambda name: True


def torch_leaf(module: str, leaf: str) -> str:
    """Returns torch's name of a parameter.

    Args:
      module: Its name of the module, which does not matter.
      leaf: Our name.
    """
    del module
    return "bias" if leaf == "bias" else "weight"


class Source(NamedTuple):
    """Where a parameter of ours comes from: a tensor, or of one of queries, keys and values a third."""

    tensor: str
    third: int | None = None


def template(unet: UNet, image_shape: tuple[int, int, int]) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and types of a U-Net's parameters, by names that slashes join.

    Args:
      unet: The network.
      image_shape: (H, W, C) of its images.
    """
    return by_path(jax.eval_shape(as_functions(unet, image_shape).init, jax.random.key(0)))


def by_path(params: PyTree) -> dict[str, Any]:
    """Returns the leaves of nested dicts, by their keys joined by slashes.

    Args:
      params: Parameters, or their shapes.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(part.key for part in path): leaf for path, leaf in leaves}


def nested(flat: Mapping[str, Any]) -> PyTree:
    """Returns nested dicts: the inverse of `by_path`.

    Args:
      flat: Leaves by their keys joined by slashes.
    """
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, name = path.split("/")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[name] = leaf
    return tree


def sources(unet: UNet, image_shape: tuple[int, int, int], layout: Layout) -> dict[str, Source]:
    """Returns for each of our parameters the tensor that holds it.

    Args:
      unet: The network.
      image_shape: (H, W, C) of its images.
      layout: The other library's names.
    """
    found, of_place = {}, {place.name: place for place in places(unet, image_shape[0])}
    for path in template(unet, image_shape):
        module, *layer, leaf = path.split("/")
        place, inner = of_place[module], "/".join(layer)
        third = None
        if layout.qkv is not None and place.kind == "attention" and inner in QKV:
            third, inner = QKV.index(inner), "qkv"
        names = layout.layers.get(place.kind, {})
        owner = ".".join(part for part in (layout.module(place), names.get(inner, inner)) if part)
        found[path] = Source(f"{owner}.{layout.leaf(owner, leaf)}", third)
    return found


def imported(
    unet: UNet,
    image_shape: tuple[int, int, int],
    layout: Layout,
    tensors: Mapping[str, np.ndarray],
    *,
    unused: Collection[str] = (),
) -> PyTree:
    """Returns the parameters of a U-Net from the tensors of another library, in float32.

    Args:
      unet: The network.
      image_shape: (H, W, C) of its images.
      layout: The other library's names.
      tensors: Its tensors by name.
      unused: Names of tensors that the network does without.

    Raises:
      InputError: Tensors are missing, have other shapes, or there are more; they are named.
    """
    shapes, made = template(unet, image_shape), {}
    wanted = sources(unet, image_shape, layout)
    check_names({source.tensor for source in wanted.values()}, tensors, unused)
    for path, source in wanted.items():
        array = np.asarray(tensors[source.tensor], np.float32)
        made[path] = _ours(unet, layout, path, source, array, shapes[path].shape)
    return nested(made)


def check_names(
    wanted: Collection[str], tensors: Mapping[str, np.ndarray], unused: Collection[str] = ()
) -> None:
    """Raises an InputError that names tensors that are missing, and those that belong to no part of the network.

    Args:
      wanted: Names of the tensors that the network has.
      tensors: What there is, by name.
      unused: Names of tensors that the network does without.
    """
    missing = [name for name in wanted if name not in tensors]
    more = [name for name in tensors if name not in wanted and name not in unused]
    if not missing and not more:
        return
    told = []
    if missing:
        told.append(f"has not {_listed(sorted(missing))}")
    if more:
        told.append(
            f"has {_listed([f'{name} {tensors[name].shape}' for name in sorted(more)])} besides"
        )
    raise InputError(f"it is of another network than its settings say: it {' and '.join(told)}")


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:MOST_NAMED])
    rest = len(names) - MOST_NAMED
    return f"{shown} and {rest} more tensors" if rest > 0 else shown


def _ours(
    unet: UNet,
    layout: Layout,
    path: str,
    source: Source,
    array: np.ndarray,
    shape: tuple[int, ...],
) -> np.ndarray:
    """Returns the parameter that a tensor holds."""
    found = array.shape
    if source.third is not None:
        array = _third(array, source.third, heads_of(unet, shape[-1]), layout.qkv or "3hd")
    if path.endswith(MATRICES):
        if layout.transposed(source.tensor) and array.ndim > 1:
            array = np.moveaxis(array, (0, 1), (-1, -2))
        if len(shape) == 2:  # A linear map of pixels may be a convolution of one pixel.
            array = array.reshape(array.shape[-2:]) if math.prod(array.shape[:-2]) == 1 else array
    if path == "class/embedding" and array.shape[0] + 1 == shape[0]:
        array = np.concatenate([array, np.zeros_like(array[:1])])  # Of none, which adds nothing.
    if array.shape != shape:
        raise InputError(
            f"{source.tensor} has the shape {found}, which does not fit {path} of shape {shape}: the settings are of "
            "another network"
        )
    if path == "time_dense_0/kernel" and layout.cos_first:
        array = np.roll(array, len(array) // 2, axis=0)
    return np.ascontiguousarray(array)


def heads_of(unet: UNet, channels: int) -> int:
    """Returns the number of heads of an attention over this many channels.

    Args:
      unet: The network.
      channels: Of the feature map.
    """
    return unet.num_heads or (channels // unet.head_channels if unet.head_channels else 1)


def exported(
    unet: UNet,
    image_shape: tuple[int, int, int],
    layout: Layout,
    params: PyTree,
    pointwise: Callable[[str], bool],
) -> dict[str, np.ndarray]:
    """Returns the tensors of another library, one for each parameter of a U-Net: the inverse of `imported`.

    Args:
      unet: The network.
      image_shape: (H, W, C) of its images.
      layout: The other library's names; queries, keys and values are three tensors.
      params: The parameters.
      pointwise: Our name of a parameter -> whether this linear map is a convolution of one pixel there.
    """
    assert layout.qkv is None and not layout.cos_first
    flat, made = by_path(params), {}
    for path, source in sources(unet, image_shape, layout).items():
        array = np.asarray(flat[path], np.float32)
        if path.endswith("kernel"):
            array = np.moveaxis(array, (-1, -2), (0, 1))
            array = array[:, :, None, None] if pointwise(path) else array
        made[source.tensor] = np.ascontiguousarray(array)
    return made


def _third(array: np.ndarray, third: int, heads: int, order: Order) -> np.ndarray:
    sizes = {"3": 3, "h": heads, "d": -1}
    split = array.reshape(*(sizes[axis] for axis in order), *array.shape[1:])
    return np.take(split, third, order.index("3")).reshape(-1, *array.shape[1:])
