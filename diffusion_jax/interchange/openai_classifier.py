"""Classifiers of noisy images from guided-diffusion (Dhariwal & Nichol, 2021), for classifier guidance."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from diffusion_jax.errors import InputError
from diffusion_jax.interchange.flags import flags_of
from diffusion_jax.interchange.openai import GUIDED, IGNORED, encoder_options, layout
from diffusion_jax.interchange.places import Layout, imported, torch_leaf
from diffusion_jax.models.networks import ClassifierUNet
from diffusion_jax.models.networks.classifier_unet import POOLS
from diffusion_jax.models.networks.unet_options import misfit
from diffusion_jax.reading.tensors import read_tensors

PREFIX = "classifier_"
FLAGS: dict[str, Any] = dict(
    image_size=64,
    classifier_use_fp16=False,
    classifier_width=128,
    classifier_depth=2,
    classifier_attention_resolutions="32,16,8",
    classifier_use_scale_shift_norm=True,
    classifier_resblock_updown=True,
    classifier_pool="attention",
)
# Of theirs these are constants, by the image's size.
OURS: dict[str, Any] = dict(classifier_channel_mult="", classifier_head_channels=64)
# The flags of the diffusion model may stand beside them, as in their README.
OTHERS = (IGNORED | GUIDED.keys()) - FLAGS.keys()
_ONCE = {
    "adaptive": {"norm_out": "out.0", "logits": "out.3"},
    "attention": {"norm_out": "out.0", "pool": "out.2"},
    "spatial": {"hidden": "out.0", "logits": "out.2"},
    "spatial_v2": {"hidden": "out.0", "norm_hidden": "out.1", "logits": "out.3"},
}
_LAST = {
    "adaptive": "out.3",
    "attention": "out.2.c_proj",
    "spatial": "out.2",
    "spatial_v2": "out.3",
}
_POOL = {"qkv": "qkv_proj", "out": "c_proj"}


@dataclasses.dataclass(frozen=True)
class ForeignClassifier:
    """A classifier of noisy images that another library has trained.

    Attributes:
      network: (x_t, t) -> logits.
      image_shape: (H, W, C) of its images.
      params: Its parameters.
    """

    network: ClassifierUNet
    image_shape: tuple[int, int, int]
    params: PyTree


def read_classifier(path: Path, settings: str = "", owner: str = "settings") -> ForeignClassifier:
    """Reads a classifier of guided-diffusion.

    Args:
      path: A file of its tensors, such as 64x64_classifier.pt.
      settings: Its flags, such as "--classifier_depth 4".
      owner: What holds them, for messages.

    Raises:
      InputError: A flag is unknown, or the file is not of the network that they say.
      OSError: The file cannot be read.
    """
    flags = flags_of(settings, FLAGS | OURS, owner, OTHERS)
    tensors = read_tensors(path)
    pool, size = flags["classifier_pool"], flags["image_size"]
    if pool not in POOLS:
        raise InputError(f"--classifier_pool is {pool!r}; it must be one of {', '.join(POOLS)}")
    last = f"{_LAST[pool]}.bias"
    if last not in tensors or tensors[last].ndim != 1:
        raise InputError(f"it is of another network than its settings say: it has not {last}")
    network, shape = _network(flags, len(tensors[last])), (size, size, 3)
    if problem := misfit(network, shape):
        raise InputError(f"{owner}: {problem.replace('model.', '')}")
    return ForeignClassifier(
        network, shape, imported(network, shape, _layout(network, size), tensors)
    )


def _network(flags: dict[str, Any], num_classes: int) -> ClassifierUNet:
    of_classifier = {name.removeprefix(PREFIX): value for name, value in flags.items()}
    named = {"num_channels": flags["classifier_width"], "num_res_blocks": flags["classifier_depth"]}
    return ClassifierUNet(
        **encoder_options(of_classifier | named),
        head_channels=flags["classifier_head_channels"],
        out_channels=num_classes,
        pool=flags["classifier_pool"],
    )


def _layout(network: ClassifierUNet, height: int) -> Layout:
    def leaf(module: str, name: str) -> str:
        return "positional_embedding" if name == "positions" else torch_leaf(module, name)

    of_unet = layout(network, height, once=_ONCE[network.pool])
    return of_unet._replace(layers={**of_unet.layers, "pool": _POOL}, leaf=leaf)
