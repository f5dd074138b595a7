"""scikit-learn's handwritten digits by class: the demo. Nothing is downloaded.

Data: digits (Alpaydin & Kaynak, 1998; inside scikit-learn), 1,438 training and 359 held-out images, 8x8x1.
Parameters: 702,753.
Steps: 2,200 of batch 32 (49 epochs).
Expected: readable digits of all ten classes, none a copy of a training image.
Source: measured by benchmarks/digits_quality.py; see benchmarks/README.md.
Device-hours: 0.04 on two CPU cores (a minute and a quarter, compilation and sampling included).
"""

from ml_collections import ConfigDict

from diffusion_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "digits"

    config.model.channels = 32
    config.model.channel_mult = (1, 2)
    config.model.num_res_blocks = 1
    config.model.attention_resolutions = (4,)
    config.model.num_classes = 10

    config.process.schedule = "cosine"
    # If it predicts eps, so small a network is worse than the mean image at the highest noise levels.
    config.process.prediction = "v"
    config.process.variance = "fixed_small"

    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.ema_decay = 0.995

    config.train.num_steps = 2200
    config.train.batch_size = 32
    config.train.label_dropout = 0.1  # Allows classifier-free guidance.
    config.train.checkpoint_every = 550
    config.train.log_every = 50
    config.train.sample_images = 100
    return config
