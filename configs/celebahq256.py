"""CelebA-HQ 256x256, unconditional, with the hyper-parameters of Ho et al. (2020).

Data: the 30,000 CelebA-HQ images as PNG or JPEG below --config.data.source_dir, resized to
  256x256x3 if they are not, mirrored at random; nothing is held out.
Parameters: 113,673,219.
Steps: 500,000 of batch 64.
Expected: samples like the paper's Figure 3; it reports no FID for this set.
Source: Ho et al. (2020), Appendix B. Not yet reproduced by this project.
Differs: gradients are clipped as a whole; in the paper's code each TPU core clips its own.
Device-hours: 505 TPU v3 core-hours, from the paper's 2.2 steps/s on a TPU v3-8.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "image_folder"
    config.data.image_size = 256
    config.data.test_fraction = 0.0
    config.data.random_flip = True

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

    config.train.num_steps = 500_000
    config.train.batch_size = 64
    config.train.checkpoint_every = 5000
    config.train.keep_every = 100_000
    config.train.sample_every = 50_000
    config.train.sample_images = 16
    config.sample.batch_size = 16
    config.train.sample_steps = 0  # The chain of the paper.
    return config
