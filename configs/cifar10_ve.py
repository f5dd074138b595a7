"""CIFAR-10, unconditional, as the variance-exploding SDE (Song et al., 2021).

Data: CIFAR-10, 50,000 training images 32x32x3, mirrored at random; cifar-10-python.tar.gz in
  --config.data.source_dir, else downloaded.
Parameters: 35,746,307.
Steps: 950,000 of batch 128.
Expected: FID 2.38 (PC), for the paper's NCSN++ (cont.).
Source: Song et al. (2021), Table 3, and Appendices C, D and H. Not yet reproduced by this project.
Differs: our U-Net is that of Ho et al. (2020), not NCSN++; networks are given x_t / (signal^2 + std^2)^(1/2), and
  sigma is twice the paper's, as pixels are in [-1, 1]; samplers limit each prediction of x_0 to [-1, 1]
  (sampler.clip), the paper's do not.
Device-hours: the paper states none.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_jax.config import load_file


def get_config() -> ConfigDict:
    config = load_file(str(Path(__file__).with_name("cifar10.py")))
    config.process.name = "ve"
    config.process.prediction = "score"
    config.process.sigma_min = 0.02
    config.process.sigma_max = 100.0

    config.optimizer.ema_decay = 0.999

    config.sampler.name = "pc"
    config.sampler.num_steps = 1000
    config.sampler.snr = 0.16
    config.sampler.corrector_steps = 1

    config.train.num_steps = 950_000
    return config
