"""CIFAR-10, unconditional, with the hyper-parameters of Ho et al. (2020).

Data: CIFAR-10, 50,000 training images 32x32x3, mirrored at random; cifar-10-python.tar.gz in
  --config.data.source_dir, else downloaded.
Parameters: 35,746,307.
Steps: 800,000 of batch 128.
Expected: FID 3.17, Inception score 9.46, at most 3.75 bits/dim with fixed_large variance.
Source: Ho et al. (2020), Tables 1 and 2 and Appendix B. Not yet reproduced by this project.
Differs: gradients are clipped as a whole; in the paper's code each TPU core clips its own.
Device-hours: 85 TPU v3 core-hours in the paper (10.6 hours on a TPU v3-8).
"""

from ml_collections import ConfigDict

from diffusion_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "cifar10"
    config.data.random_flip = True

    config.model.channels = 128
    config.model.channel_mult = (1, 2, 2, 2)
    config.model.num_res_blocks = 2
    config.model.attention_resolutions = (16,)
    config.model.dropout = 0.1

    config.process.schedule = "linear"
    config.process.num_timesteps = 1000
    config.process.variance = "fixed_large"

    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 5000
    config.optimizer.grad_clip = 1.0
    config.optimizer.ema_decay = 0.9999
    config.optimizer.ema_warmup = False

    config.train.num_steps = 800_000
    config.train.batch_size = 128
    config.train.checkpoint_every = 5000
    config.train.keep_every = 100_000
    config.train.sample_every = 50_000
    config.train.eval_every = 10_000
    config.train.sample_steps = 0  # The chain of the paper.
    return config
