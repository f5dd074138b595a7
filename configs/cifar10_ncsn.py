"""CIFAR-10, unconditional, as NCSNv2, a noise-conditional score network (Song & Ermon, 2020).

Data: CIFAR-10, 50,000 training images 32x32x3, mirrored at random; cifar-10-python.tar.gz in
  --config.data.source_dir, else downloaded.
Parameters: 35,746,307.
Steps: 300,000 of batch 128.
Expected: FID 10.87 after a denoising step and Inception score 8.40, for the paper's NCSNv2.
Source: Song & Ermon (2020), Table 1 and Appendix B. Not yet reproduced by this project.
Differs: our U-Net is that of Ho et al. (2020), not a RefineNet; networks are given x_t / (signal^2 + std^2)^(1/2), and
  sigma is twice the paper's, as pixels are in [-1, 1]; samplers limit each prediction of x_0 to [-1, 1]
  (sampler.clip), the paper's do not.
Device-hours: the paper states none.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_jax.config import load_file


def get_config() -> ConfigDict:
    config = load_file(str(Path(__file__).with_name("cifar10.py")))
    config.process.name = "ncsn"
    config.process.prediction = "score"
    config.process.sigma_min = 0.02
    config.process.sigma_max = 100.0
    config.process.num_timesteps = 232

    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.grad_clip = 0.0
    config.optimizer.ema_decay = 0.999

    config.sampler.name = "langevin"
    config.sampler.langevin_steps = 5

    config.train.num_steps = 300_000
    return config
