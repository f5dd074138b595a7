"""scikit-learn's handwritten digits, unconditional, predicting the noise as Ho et al. (2020) do.

Data: digits (Alpaydin & Kaynak, 1998; inside scikit-learn), 1,438 training and 359 held-out images, 8x8x1.
Parameters: 701,345.
Steps: 2,200 of batch 32 (49 epochs).
Expected: mostly readable digits; the class-conditional digits.py has better ones in the same time.
Source: measured by benchmarks/digits_quality.py; see benchmarks/README.md.
Device-hours: under 0.1 on two CPU cores (at most five minutes, compilation and sampling included).
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

    config.process.schedule = "cosine"

    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.ema_decay = 0.995

    config.train.num_steps = 2200
    config.train.batch_size = 32
    config.train.checkpoint_every = 550
    config.train.log_every = 50
    config.train.sample_steps = 0  # The chain of the paper.
    return config
