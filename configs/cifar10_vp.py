"""CIFAR-10, unconditional, as the variance-preserving SDE (Song et al., 2021).

Data: CIFAR-10, 50,000 training images 32x32x3, mirrored at random; cifar-10-python.tar.gz in
  --config.data.source_dir, else downloaded.
Parameters: 35,746,307.
Steps: 950,000 of batch 128.
Expected: 3.21 bits/dim and FID 3.69, both by the ODE, for the paper's DDPM (cont.), which has a similar network.
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
    config = load_file(str(Path(__file__).with_name("cifar10.py")))
    config.process.name = "vp"
    config.process.beta_min = 0.1
    config.process.beta_max = 20.0

    config.sampler.name = "euler_maruyama"
    config.sampler.num_steps = 1000
    config.sampler.u_min = 1e-3

    config.train.num_steps = 950_000
    return config
