"""x"""
from ml_collections import ConfigDict

from diffusion_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "fashion_mnist"
    config.model.channels = 32
    config.model.channel_mult = (1, 2, 2)
    config.model.attention_resolutions = (7,)
    config.train.batch_size = 64
    return config
