"""Fashion-MNIST by class: a U-Net small enough to train on two CPU cores in half an hour.

Data: Fashion-MNIST (Xiao et al., 2017), 60,000 training and 10,000 test images, 28x28x1, MIT license.
Parameters: 1,114,209.
Steps: 6,000 of batch 64 (6.4 epochs).
Expected: recognizable garments of all ten classes, prints and patterns still coarse; held-out loss of v 0.1296
  (docs/results/fashion_mnist).
Source: this project's own run; no published figure exists for a network this small.
Device-hours: 0.9 core-hours on two CPU cores (28 minutes), sampling included; minutes on a GPU.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "fashion_mnist"

    config.model.channels = 32
    config.model.channel_mult = (1, 2, 2)
    config.model.num_res_blocks = 1
    config.model.attention_resolutions = (7,)
    config.model.num_classes = 10

    config.process.schedule = "cosine"
    config.process.prediction = "v"
    config.process.variance = "fixed_small"

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 200
    config.optimizer.decay = "linear"
    config.optimizer.ema_decay = 0.999

    config.train.num_steps = 6000
    config.train.batch_size = 64
    config.train.log_every = 50
    config.train.checkpoint_every = 500
    config.train.eval_every = 1000
    config.train.sample_images = 100
    return config
