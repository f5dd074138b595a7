"""Checkpoints of other libraries: read into our parameters and config, and written from them."""

from __future__ import annotations

from pathlib import Path

from diffusion_jax.errors import InputError
from diffusion_jax.interchange import diffusers, edm, openai, score_sde, single
from diffusion_jax.interchange.foreign import Foreign, Source
from diffusion_jax.options import Registry

__all__ = ["SOURCES", "Foreign", "Source", "source_of"]

SOURCES: Registry[Source] = Registry(
    "source",
    {
        "single": Source(single.read, "our own file, model.safetensors", fits=single.fits),
        "diffusers": Source(
            diffusers.read, "a folder of diffusers with a UNet2DModel", fits=diffusers.fits
        ),
        "guided_diffusion": Source(
            openai.read_guided,
            "a .pt file of guided-diffusion, with its flags",
            fits=openai.fits(of_guided=True),
            settings="the flags of its network and process",
        ),
        "improved_diffusion": Source(
            openai.read_improved,
            "a .pt file of improved-diffusion, with its flags",
            fits=openai.fits(of_guided=False),
            settings="the flags of its network and process",
        ),
        "score_sde": Source(
            score_sde.read,
            "a checkpoint of score_sde or score_sde_pytorch, with the name of its config",
            fits=score_sde.fits,
            settings="the name of its config",
        ),
        "edm": Source(
            edm.read,
            "a .safetensors file with the state_dict of a network of EDM",
            fits=edm.fits,
            settings="--precond and --sigma_data",
        ),
    },
    given=("path", "settings"),
)


def source_of(path: Path) -> str:
    """Returns the format of a checkpoint, by the names of its files.

    Args:
      path: A file or folder.

    Raises:
      InputError: There is nothing, or it is of no format that is read.
    """
    if not path.exists():
        raise InputError(f"there is no {path}")
    for name, source in SOURCES.items():
        if source.fits(path):
            return name
    known = "; ".join(f"{name}: {source.help}" for name, source in SOURCES.items())
    raise InputError(
        f"{path} looks like no checkpoint that is read ({known}); say what it is: --format"
    )
