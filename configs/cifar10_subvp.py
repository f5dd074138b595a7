"""CIFAR-10, unconditional, as the sub-VP SDE (Song et al., 2021).

Data: CIFAR-10, 50,000 training images 32x32x3, mirrored at random; cifar-10-python.tar.gz in
  --config.data.source_dir, else downloaded.
Parameters: 35,746,307.
Steps: 950,000 of batch 128.
Expected: 3.05 bits/dim and FID 3.56, both by the ODE, for the paper's DDPM (cont.), which has a similar network.
Source: Song et al. (2021), Table 2, and Appendices C, D and H; steps as in their configs for continuous time. Not yet
  reproduced by this project.
Differs: our U-Net is that of Ho et al. (2020), not that of their code; networks are given
  x_t / (signal^2 + std^2)^(1/2); samplers limit each prediction of x_0 to [-1, 1] (sampler.clip), theirs do not.
Device-hours: the paper states none.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_jax.config import load_file


def get_config() -> ConfigDict:
    config = load_file(str(Path(__file__).with_name("cifar10_vp.py")))
    config.process.name = "subvp"
    return config
