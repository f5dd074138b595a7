"""Checkpoints of improved-diffusion and guided-diffusion (Nichol & Dhariwal, 2021; Dhariwal & Nichol, 2021).

Their files hold the tensors alone; what network and process they belong to is in the flags of the command that trained
them, as in "--image_size 64 --num_channels 192 ...", with the defaults of each of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.errors import InputError
from diffusion_jax.interchange.flags import flags_of, numbers_of
from diffusion_jax.interchange.foreign import Foreign
from diffusion_jax.interchange.places import Layout, Place, imported, torch_leaf
from diffusion_jax.models.networks import UNet
from diffusion_jax.reading.tensors import read_tensors

IMPROVED: dict[str, Any] = dict(
    image_size=64,
    num_channels=128,
    num_res_blocks=2,
    num_heads=4,
    num_heads_upsample=-1,
    attention_resolutions="16,8",
    dropout=0.0,
    learn_sigma=False,
    sigma_small=False,
    class_cond=False,
    diffusion_steps=1000,
    noise_schedule="linear",
    timestep_respacing="",
    use_kl=False,
    predict_xstart=False,
    rescale_timesteps=True,
    rescale_learned_sigmas=True,
    use_checkpoint=False,
    use_scale_shift_norm=True,
    use_ddim=False,
    clip_denoised=True,
)
GUIDED: dict[str, Any] = IMPROVED | dict(
    channel_mult="",
    num_head_channels=-1,
    resblock_updown=False,
    use_fp16=False,
    use_new_attention_order=False,
    rescale_timesteps=False,
    rescale_learned_sigmas=False,
)
del GUIDED["sigma_small"]
# Flags of sampling and training, which say nothing of network and process.
IGNORED = frozenset(
    "model_path batch_size num_samples lr data_dir microbatch log_interval save_interval "
    "ema_rate resume_checkpoint schedule_sampler fp16_scale_growth weight_decay lr_anneal_steps classifier_path "
    "classifier_scale classifier_depth".split()
)
NUM_CLASSES = 1000
MULTIPLIERS = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
BLOCK_LAYERS = {
    "res": {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "shortcut": "skip_connection",
    },
    "attention": {"out": "proj_out"},
    "resize": {"conv": ""},
}
_ONCE = {
    "time_dense_0": "time_embed.0",
    "time_dense_1": "time_embed.2",
    "class": "label_emb",
    "conv_in": "input_blocks.0.0",
    "norm_out": "out.0",
    "conv_out": "out.2",
}


def layout(
    unet: UNet,
    height: int,
    *,
    new_order: bool = False,
    once: Mapping[str, str] | None = None,
) -> Layout:
    """Returns their names of the parameters of a U-Net.

    Args:
      unet: The network.
      height: Of its images.
      new_order: Whether queries, keys and values of all heads lie together, rather than those of each head.
      once: Kinds of modules that there are once -> their names, where these are not a diffusion model's.
    """
    last, blocks = len(unet.channel_mult) - 1, unet.num_res_blocks

    def module(place: Place) -> str:
        if not place.side:
            return {**_ONCE, **(once or {})}[place.kind]
        part = 1 if place.kind == "attention" else 0
        if place.side == "middle":
            return f"middle_block.{2 * place.block + part}"
        if place.side == "down":
            number = 1 + place.level * (blocks + 1) + (blocks if place.resize else place.block)
            return f"input_blocks.{number}.{part}{'.op' * (place.kind == 'resize')}"
        if place.resize:  # The last part of the last block.
            attends = height >> place.level in unet.attention_resolutions
            number = (last - place.level) * (blocks + 1) + blocks
            return f"output_blocks.{number}.{1 + attends}{'.conv' * (place.kind == 'resize')}"
        return f"output_blocks.{(last - place.level) * (blocks + 1) + place.block}.{part}"

    order = "3hd" if new_order else "h3d"
    return Layout(module, BLOCK_LAYERS, torch_leaf, qkv=order, cos_first=True)


def read_improved(path: Path, settings: str = "") -> Foreign:
    """Reads a checkpoint of improved-diffusion; see `read_guided`."""
    return _read(path, flags_of(settings, IMPROVED, ignored=IGNORED))


def read_guided(path: Path, settings: str = "") -> Foreign:
    """Reads a checkpoint of guided-diffusion.

    Args:
      path: A .pt file, such as 64x64_diffusion.pt.
      settings: The flags of its network and process.

    Raises:
      InputError: A flag is unknown, or the file is not of the network that they say.
      OSError: The file cannot be read.
    """
    return _read(path, flags_of(settings, GUIDED, ignored=IGNORED))


def fits(of_guided: bool) -> Callable[[Path], bool]:
    """Returns whether a path is a checkpoint of one of the two: by its suffix, it is of guided-diffusion.

    Args:
      of_guided: Which of the two is asked for.
    """
    return lambda path: of_guided and path.suffix == ".pt" and path.is_file()


def _read(path: Path, flags: Mapping[str, Any]) -> Foreign:
    fields = {**network_fields(flags), **process_fields(flags)}
    size = flags["image_size"]
    shape = (size, size, 3)
    unet = UNet(
        **{
            name.removeprefix("model."): v
            for name, v in fields.items()
            if name.startswith("model.")
        },
        out_channels=6 if flags["learn_sigma"] else 3,
    )
    names = layout(unet, size, new_order=flags.get("use_new_attention_order", False))
    params = imported(unet, shape, names, read_tensors(path))
    return Foreign(fields, shape, params, files=(path,))


def network_fields(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns our config fields of their network.

    Args:
      flags: Values of all their flags.

    Raises:
      InputError: A value that no network of theirs has.
    """
    if flags["num_heads_upsample"] not in (-1, flags["num_heads"]):
        raise InputError("--num_heads_upsample differs from --num_heads, which is not read")
    head = flags.get("num_head_channels", -1)
    fields = encoder_options(flags) | {
        "dropout": flags["dropout"],
        "num_classes": NUM_CLASSES if flags["class_cond"] else 0,
        "num_heads": flags["num_heads"] if head == -1 else None,
        "head_channels": None if head == -1 else head,
    }
    if flags["rescale_timesteps"] and flags["diffusion_steps"] != 1000:
        fields["time_scale"] = 1000 / flags["diffusion_steps"]
    return {f"model.{name}": value for name, value in fields.items()}


def encoder_options(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that a U-Net's encoder has too, but for its heads.

    Args:
      flags: Values of their flags; improved-diffusion's lack channel_mult and resblock_updown.

    Raises:
      InputError: A value that no network of theirs has.
    """
    width, updown = flags["num_channels"], flags.get("resblock_updown", False)
    multipliers = _multipliers(flags)
    # Of 512x512 images, the first level has half the channels that the others count in.
    channels = width * multipliers[0]
    if channels % 1 or any(mult % multipliers[0] for mult in multipliers):
        raise InputError(f"channel_mult is {multipliers}; they must be multiples of the first")
    resolutions = numbers_of("attention_resolutions", flags["attention_resolutions"])
    if min(resolutions, default=1) < 1:
        raise InputError(
            "--attention_resolutions must be the heights of feature maps, such as 16,8"
        )
    return {
        "channels": int(channels),
        "channel_mult": tuple(int(mult / multipliers[0]) for mult in multipliers),
        "num_res_blocks": flags["num_res_blocks"],
        "attention_resolutions": resolutions,
        "norm_groups": 32,
        "norm_eps": 1e-5,
        "time_embedding": "adm",
        "time_features": width,
        "embedding_width": 4 * width,
        "scale_shift": flags["use_scale_shift_norm"],
        "resample": "block" if updown else "conv",
        "symmetric_padding": not updown,
    }


def _multipliers(flags: Mapping[str, Any]) -> tuple[float, ...]:
    if flags.get("channel_mult"):
        return tuple(map(float, numbers_of("channel_mult", flags["channel_mult"])))
    if flags["image_size"] not in MULTIPLIERS:
        sizes = ", ".join(map(str, MULTIPLIERS))
        raise InputError(f"--image_size is {flags['image_size']}; it must be one of {sizes}")
    return tuple(map(float, MULTIPLIERS[flags["image_size"]]))


def process_fields(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns our config fields of their process and sampler.

    Args:
      flags: Values of all their flags.

    Raises:
      InputError: The schedule is none of theirs, or the respacing does not fit it.
    """
    if flags["noise_schedule"] not in ("linear", "cosine"):
        raise InputError(
            f"--noise_schedule is {flags['noise_schedule']!r}; it must be linear or cosine"
        )
    fixed = "fixed_small" if flags.get("sigma_small") else "fixed_large"
    fields = {
        "process.name": "ddpm",
        "process.schedule": flags["noise_schedule"],
        "process.num_timesteps": flags["diffusion_steps"],
        "process.prediction": "x0" if flags["predict_xstart"] else "eps",
        "process.variance": "learned" if flags["learn_sigma"] else fixed,
        "sampler.name": "ddim" if flags["use_ddim"] else "ancestral",
        "sampler.clip": flags["clip_denoised"],
    }
    if flags["learn_sigma"]:
        fields["loss.name"] = "hybrid"
    if flags["timestep_respacing"]:
        times = respaced(flags["diffusion_steps"], flags["timestep_respacing"])
        fields["sampler.spacing"] = tuple(map(float, times))
    return fields


def respaced(num_steps: int, respacing: str) -> list[int]:
    """Returns the steps that their `timestep_respacing` keeps of a chain, ascending.

    Args:
      num_steps: Of the whole chain.
      respacing: "ddimN", every n-th of the steps such that there are N; or numbers of steps in equal sections of the
        chain, such as "250" or "10,15,20", from the first to the last of each section.

    Raises:
      InputError: There are no such steps.
    """
    if respacing.startswith("ddim"):
        (wanted,) = numbers_of("timestep_respacing", respacing.removeprefix("ddim"))
        for stride in range(1, num_steps):
            if len(range(0, num_steps, stride)) == wanted:
                return list(range(0, num_steps, stride))
        raise InputError(
            f"--timestep_respacing is {respacing!r}: no stride takes so many of {num_steps}"
        )
    counts, kept, start = numbers_of("timestep_respacing", respacing), [], 0
    for section, count in enumerate(counts):
        size = num_steps // len(counts) + (section < num_steps % len(counts))
        if not 1 <= count <= size:
            raise InputError(f"--timestep_respacing is {respacing!r}: a section has {size} steps")
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        kept += [start + round(i * stride) for i in range(count)]
        start += size
    return sorted(set(kept))
