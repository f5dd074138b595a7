"""The configs of score_sde and score_sde_pytorch in our terms, by their names in the two projects' `configs/`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from diffusion_jax.errors import InputError, nearest
from diffusion_jax.interchange.flags import flags_of, numbers_of


@dataclasses.dataclass(frozen=True)
class Config:
    """What a config says of network and process.

    Attributes:
      sde: "vp", "subvp" or "ve".
      continuous: Whether it is trained at all times rather than at `num_scales` levels.
      network: "ddpm" of Ho et al., or "ncsnpp", of which DDPM++ is the one without `fir` and pyramids.
      image_size: Height and width of the images.
      nf: Channels of the first level.
      ch_mult: Channels of each level in units of these.
      num_res_blocks: Residual blocks of each level.
      attn_resolutions: Heights of the feature maps with attention.
      dropout: Rate.
      fourier: Whether the time is embedded by random frequencies.
      fir: Whether the resolution is changed by the filter (1, 3, 3, 1).
      input_pyramid: As the field of our U-Net.
      output_pyramid: Likewise.
      sigma_max: Largest noise, of pixels in [0, 1]; the least is 0.01.
      num_scales: Steps of the process.
      predictor: Of the sampler.
      snr: Of its corrector.
    """

    sde: str
    continuous: bool
    network: str = "ncsnpp"
    image_size: int = 32
    nf: int = 128
    ch_mult: str = "1,2,2,2"
    num_res_blocks: int = 4
    attn_resolutions: str = "16"
    dropout: float = 0.1
    fourier: bool = False
    fir: bool = True
    input_pyramid: str = "residual"
    output_pyramid: str = "none"
    sigma_max: float = 50.0
    num_scales: int = 1000
    predictor: str = "reverse_diffusion"
    snr: float = 0.16


SIGMA_MIN = 0.01
FLAGS = ("image_size", "nf", "ch_mult", "num_res_blocks", "attn_resolutions", "dropout")
_DDPM: dict[str, Any] = dict(
    network="ddpm", num_res_blocks=2, fir=False, input_pyramid="none", predictor="ancestral"
)
_DDPMPP: dict[str, Any] = dict(fir=False, input_pyramid="none")
_DDPM_256: dict[str, Any] = _DDPM | dict(image_size=256, ch_mult="1,1,2,2,4,4", dropout=0.0)
_DEEP: dict[str, Any] = dict(num_res_blocks=8)
_VE: dict[str, Any] = dict(sde="ve", continuous=True, fourier=True)
_SKIP: dict[str, Any] = _VE | dict(
    image_size=256,
    ch_mult="1,1,2,2,2,2,2",
    num_res_blocks=2,
    dropout=0.0,
    input_pyramid="skip",
    output_pyramid="skip",
    num_scales=2000,
    snr=0.075,
)
_SKIP_1024: dict[str, Any] = _SKIP | dict(
    image_size=1024,
    nf=16,
    ch_mult="1,2,4,8,16,32,32,32",
    num_res_blocks=1,
    sigma_max=1348.0,
    snr=0.15,
)


def _config(base: Mapping[str, Any], **more: Any) -> Config:
    return Config(**{**base, **more})


def _continuous(sde: str) -> dict[str, Config]:
    """The configs of CIFAR-10 that VP and sub-VP have in common."""
    given: dict[str, Any] = dict(sde=sde, continuous=True, predictor="euler_maruyama")
    return {
        f"{sde}/cifar10_ddpmpp_continuous": _config(_DDPMPP, **given),
        f"{sde}/cifar10_ddpmpp_deep_continuous": _config(_DDPMPP, **_DEEP, **given),
        f"{sde}/cifar10_ncsnpp_continuous": _config(given),
        f"{sde}/cifar10_ncsnpp_deep_continuous": _config(_DEEP, **given),
    }


_VP: dict[str, Any] = dict(sde="vp", continuous=False)
_EULER: dict[str, Any] = dict(continuous=True, predictor="euler_maruyama")
_LEVELS: dict[str, Any] = dict(sde="ve", continuous=False)
CONFIGS: dict[str, Config] = {
    "vp/ddpm/cifar10": _config(_DDPM, **_VP),
    "vp/ddpm/cifar10_continuous": _config({**_DDPM, **_VP, **_EULER}),
    "vp/ddpm/bedroom": _config(_DDPM_256, **_VP),
    "vp/ddpm/celebahq": _config(_DDPM_256, **_VP),
    "vp/ddpm/church": _config(_DDPM_256, **_VP),
    "vp/cifar10_ddpmpp": _config(_DDPMPP, **_VP, predictor="ancestral"),
    "vp/cifar10_ncsnpp": _config(_VP),
    **_continuous("vp"),
    "subvp/cifar10_ddpm_continuous": _config({**_DDPM, **_EULER}, sde="subvp"),
    **_continuous("subvp"),
    "ve/cifar10_ddpm": _config({**_DDPM, **_LEVELS}, predictor="reverse_diffusion"),
    "ve/cifar10_ncsnpp": _config(_LEVELS),
    "ve/cifar10_ncsnpp_continuous": _config(_VE),
    "ve/cifar10_ncsnpp_deep_continuous": _config(_VE, **_DEEP),
    "ve/celeba_ncsnpp": _config(_LEVELS, image_size=64, sigma_max=90.0, snr=0.17),
    "ve/celebahq_256_ncsnpp_continuous": _config(_SKIP, sigma_max=348.0),
    "ve/ffhq_256_ncsnpp_continuous": _config(_SKIP, sigma_max=348.0),
    "ve/church_ncsnpp_continuous": _config(_SKIP, sigma_max=380.0),
    "ve/bedroom_ncsnpp_continuous": _config(_SKIP, sigma_max=378.0),
    "ve/celebahq_ncsnpp_continuous": _config(_SKIP_1024),
    "ve/ffhq_ncsnpp_continuous": _config(_SKIP_1024),
}


def config_of(settings: str) -> Config:
    """Returns the config of this name, changed by the flags after it.

    Args:
      settings: Such as "ve/cifar10_ncsnpp_continuous --nf 64".

    Raises:
      InputError: No such config is read, or a flag is unknown.
    """
    name, *rest = settings.split(maxsplit=1) or [""]
    if re.match(r"ve/ncsn(v2)?/", name):
        raise InputError(f"{name} is a RefineNet of NCSN, which is not read")
    if name == "vp/ddpm/cifar10_unconditional":
        raise InputError(f"the network of {name} is not given the time, which is not read")
    if name not in CONFIGS:
        given = f"no config {name!r} of score_sde" if name else "--source_settings names no config"
        raise InputError(f"{given}; there are {', '.join(CONFIGS)}.{nearest(name, list(CONFIGS))}")
    theirs = CONFIGS[name]
    defaults = {flag: getattr(theirs, flag) for flag in FLAGS}
    return dataclasses.replace(theirs, **flags_of(rest[0] if rest else "", defaults))


def fields_of(theirs: Config) -> dict[str, Any]:
    """Returns our config fields.

    Args:
      theirs: One of their configs.
    """
    is_ddpm = theirs.network == "ddpm"
    model = {
        "channels": theirs.nf,
        "channel_mult": numbers_of("ch_mult", theirs.ch_mult),
        "num_res_blocks": theirs.num_res_blocks,
        "attention_resolutions": numbers_of("attn_resolutions", theirs.attn_resolutions),
        "dropout": theirs.dropout,
        "norm_groups": 32 if is_ddpm else None,
        "norm_eps": 1e-6,
        "time_embedding": "fourier" if theirs.fourier else "ddpm",
        "time_features": 2 * theirs.nf if theirs.fourier else theirs.nf,
        "decoder_attention": "level",
    }
    if not is_ddpm:
        model |= {
            "resample": "block",
            "project_resampled": True,
            "skip_rescale": True,
            "fir": (1.0, 3.0, 3.0, 1.0) if theirs.fir else (),
            "input_pyramid": theirs.input_pyramid,
            "output_pyramid": theirs.output_pyramid,
        }
    fields = {f"model.{name}": value for name, value in model.items()}
    process = _exploding(theirs) if theirs.sde == "ve" else _preserving(theirs)
    return {**fields, **process, "sampler.clip": False}


def _exploding(theirs: Config) -> dict[str, Any]:
    """Their pixels are in [0, 1], so that our noise is twice theirs; the network returns sigma times the score."""
    return {
        "process.name": "ve" if theirs.continuous else "ncsn",
        "process.sigma_min": 2 * SIGMA_MIN,
        "process.sigma_max": 2 * theirs.sigma_max,
        "process.num_timesteps": theirs.num_scales,
        "process.prediction": "score",
        "process.inputs": "ve" if theirs.continuous else "level",
        "sampler.name": "predictor_corrector",
        "sampler.predictor": theirs.predictor,
        "sampler.snr": theirs.snr,
    }


def _preserving(theirs: Config) -> dict[str, Any]:
    """The network returns the noise, -std times the score; in continuous time its time is 999 u, as ours."""
    fields: dict[str, Any] = {
        "process.name": theirs.sde if theirs.continuous else "ddpm",
        "process.num_timesteps": theirs.num_scales,
        "process.prediction": "eps",
    }
    if theirs.continuous:
        return fields | {
            "process.beta_min": 0.1,
            "process.beta_max": 20.0,
            **_sampler(theirs),
        }
    return fields | {"process.schedule": "linear", **_sampler(theirs)}


def _sampler(theirs: Config) -> dict[str, Any]:
    if theirs.predictor == "reverse_diffusion":
        return {
            "sampler.name": "predictor_corrector",
            "sampler.predictor": "reverse_diffusion",
            "sampler.corrector_steps": 0,
        }
    return {"sampler.name": theirs.predictor}
