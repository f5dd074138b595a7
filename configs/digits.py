"""scikit-learn's handwritten digits: the demo, no network needed."""

from ml_collections import ConfigDict

from diffusion_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "digits"
    config.model.channels = 32
    config.model.channel_mult = (1, 2)
    config.model.num_res_blocks = 1
    config.model.attention_resolutions = (4,)
    config.process.schedule = "cosine"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.ema_decay = 0.99
    config.train.num_steps = 1000
    config.train.batch_size = 64
    config.train.checkpoint_every = 250
    config.train.log_every = 50
    return config
