"""Options with which the U-Net is a published network."""

from __future__ import annotations

from typing import Any

from diffusion_jax.errors import InputError, nearest

# improved- and guided-diffusion: torch's norms, convolutions and sinusoids.
_OPENAI = dict(
    time_embedding="adm",
    scale_shift=True,
    norm_groups=32,
    norm_eps=1e-5,
)
_IDDPM = _OPENAI | dict(
    channels=128,
    num_res_blocks=3,
    attention_resolutions=(16, 8),
    num_heads=4,
    symmetric_padding=True,
)
_ADM = _OPENAI | dict(attention_resolutions=(32, 16, 8), resample="block")
# Song et al. (2021), Appendix H.
_DDPMPP = dict(
    channels=128,
    channel_mult=(1, 2, 2, 2),
    num_res_blocks=4,
    attention_resolutions=(16,),
    dropout=0.1,
    decoder_attention="level",
    resample="block",
    project_resampled=True,
    skip_rescale=True,
)
_NCSNPP = _DDPMPP | dict(
    time_embedding="fourier",
    time_features=256,
    fir=(1.0, 3.0, 3.0, 1.0),
    input_pyramid="residual",
)
_DEEP = dict(num_res_blocks=8)
_EDM = dict(channel_mult=(2, 2, 2), dropout=0.13)

PRESETS: dict[str, dict[str, Any]] = {
    # Ho et al. (2020): CIFAR-10; 256x256.
    "ddpm": dict(channels=128, dropout=0.1),
    "ddpm_256": dict(channels=128, channel_mult=(1, 1, 2, 2, 4, 4)),
    # Nichol & Dhariwal (2021): CIFAR-10; ImageNet 64x64.
    "iddpm": _IDDPM | dict(channel_mult=(1, 2, 2, 2), dropout=0.3),
    "iddpm_64": _IDDPM | dict(channel_mult=(1, 2, 3, 4)),
    # Dhariwal & Nichol (2021): ImageNet.
    "adm_64": _ADM
    | dict(
        channels=192, channel_mult=(1, 2, 3, 4), num_res_blocks=3, head_channels=64, dropout=0.1
    ),
    "adm_128": _ADM | dict(channels=256, channel_mult=(1, 1, 2, 3, 4), num_heads=4),
    "adm_256": _ADM | dict(channels=256, channel_mult=(1, 1, 2, 2, 4, 4), head_channels=64),
    # Song et al. (2021): CIFAR-10; 256x256.
    "ddpmpp": _DDPMPP,
    "ddpmpp_deep": _DDPMPP | _DEEP,
    "ncsnpp": _NCSNPP,
    "ncsnpp_deep": _NCSNPP | _DEEP,
    "ncsnpp_256": _NCSNPP
    | dict(
        channel_mult=(1, 1, 2, 2, 2, 2, 2),
        num_res_blocks=2,
        dropout=0.0,
        input_pyramid="skip",
        output_pyramid="skip",
    ),
    # Karras et al. (2022), in the form of EDM: CIFAR-10; ImageNet 64x64.
    "edm_ddpmpp": _DDPMPP | _EDM,
    "edm_ncsnpp": _NCSNPP | _EDM,
    "edm_adm": _ADM
    | dict(
        channels=192,
        channel_mult=(1, 2, 3, 4),
        num_res_blocks=3,
        head_channels=64,
        norm_groups=None,
        dropout=0.1,
    ),
}


def preset(name: str) -> dict[str, Any]:
    """Returns the options with which `UNet` is a published network: `UNet(**preset("adm_64"))`.

    Images, classes and learned variances are not among them. In a config file, they are fields of `model`:
    `config.model.update(preset("ddpmpp"))`.

    Args:
      name: A key of `PRESETS`.

    Raises:
      InputError: There is no such network.
    """
    if name not in PRESETS:
        raise InputError(
            f"no preset {name!r}; there are {', '.join(PRESETS)}.{nearest(name, list(PRESETS))}"
        )
    return dict(PRESETS[name])
