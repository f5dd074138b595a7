"""LSUN 256x256 (bedroom by default), unconditional, with the hyper-parameters of Ho et al. (2020).

Data: one LSUN category exported as PNG, JPEG or WebP below --config.data.source_dir, center-cropped
  and resized to 256x256x3; not mirrored for bedroom (for church and cat set data.random_flip).
Parameters: 113,673,219.
Steps: bedroom 2,400,000, church 1,200,000, cat 1,800,000, of batch 64.
Expected: FID bedroom 6.36, church 7.89, cat 19.75.
Source: Ho et al. (2020), Table 3 and Appendix B. Not yet reproduced by this project.
Differs: gradients are clipped as a whole; in the paper's code each TPU core clips its own.
Device-hours: about 2,420 TPU v3 core-hours (bedroom), from the paper's 2.2 steps/s on a TPU v3-8.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "image_folder"
    config.data.image_size = 256
    config.data.test_fraction = 0.0

    config.model.channels = 128
    config.model.channel_mult = (1, 1, 2, 2, 4, 4)
    config.model.num_res_blocks = 2
    config.model.attention_resolutions = (16,)
    config.model.dropout = 0.0

    config.optimizer.learning_rate = 2e-5
    config.optimizer.warmup_steps = 5000
    config.optimizer.grad_clip = 1.0
    config.optimizer.ema_decay = 0.9999
    config.optimizer.ema_warmup = False

    config.train.num_steps = 2_400_000
    config.train.batch_size = 64
    config.train.checkpoint_every = 5000
    config.train.keep_every = 200_000
    config.train.sample_every = 100_000
    config.train.sample_images = 16
    config.sample.batch_size = 16
    config.train.sample_steps = 0  # The chain of the paper.
    return config
