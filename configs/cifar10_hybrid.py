"""CIFAR-10, unconditional, with learned variances, trained by L_hybrid (Nichol & Dhariwal, 2021).

Data: CIFAR-10, 50,000 training images 32x32x3, not mirrored; cifar-10-python.tar.gz in
  --config.data.source_dir, else downloaded.
Parameters: 49,066,246.
Steps: 500,000 of batch 128.
Expected: FID 3.19, 3.17 bits/dim, with all 4,000 steps.
Source: Nichol & Dhariwal (2021), Table 2 and Appendix A, and the flags in the README of their code. Not yet reproduced
  by this project.
Differs: our U-Net is that of Ho et al. (2020): attention has one head, not four; the time shifts what goes into the
  second norm of a block, where theirs scales and shifts what comes out; and it is not rescaled to 1,000 steps.
Device-hours: the paper states none.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "cifar10"

    config.model.channels = 128
    config.model.channel_mult = (1, 2, 2, 2)
    config.model.num_res_blocks = 3
    config.model.attention_resolutions = (16, 8)
    config.model.dropout = 0.3

    config.process.schedule = "cosine"
    config.process.num_timesteps = 4000
    config.process.variance = "learned"

    config.loss.name = "hybrid"
    config.loss.vlb_weight = 0.001

    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.grad_clip = 0.0
    config.optimizer.ema_decay = 0.9999
    config.optimizer.ema_warmup = False

    config.train.num_steps = 500_000
    config.train.batch_size = 128
    config.train.checkpoint_every = 5000
    config.train.keep_every = 100_000
    config.train.sample_every = 50_000
    config.train.eval_every = 10_000
    config.train.sample_steps = 0  # The chain of the paper.
    return config
