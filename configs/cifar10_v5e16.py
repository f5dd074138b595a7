"""CIFAR-10 on sixteen chips of TPU v5e: `cifar10.py` in bfloat16, 128 images a chip.

Data: as in cifar10.py.
Parameters: 35,746,307.
Steps: 50,000 of batch 2048: as many images as the paper's 800,000 of 128.
Expected: not known: it has not been trained. With small batches, those of cifar10.py.
Source: cifar10.py. The batch is 16 times as large, so the learning rate is sqrt(16) = 4 times, 8e-4: the square-root
  rule of Malladi et al. (2022), "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", for Adam. Its update
  divides by the gradients' root mean square, which is noise for the most part and falls with the root of the batch; the
  linear rule (Goyal et al., 2017) is for SGD. That paper also scales Adam's betas, which for a factor of 16 would be
  negative, so these stay. Warm-up and average last as many images as there: 640,000, so 313 steps; 0.9999^16 a step.
Differs: bfloat16; larger batches; gradients are clipped as a whole.
Device-hours: 13.5 chip-hours (50 minutes) as the TPU's compiler expects, 6.8 at best (docs/scaling.md); not measured.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import load_file

TIMES = 16  # The paper's batch.


def get_config() -> ConfigDict:
    config = load_file("cifar10")
    config.model.dtype = "bfloat16"

    config.train.batch_size *= TIMES
    config.train.num_steps //= TIMES
    config.optimizer.learning_rate *= TIMES**0.5
    config.optimizer.warmup_steps = -(-config.optimizer.warmup_steps // TIMES)
    config.optimizer.ema_decay **= TIMES

    config.train.checkpoint_every = 500
    config.train.keep_every = 5000
    config.train.sample_every = 2500
    config.train.eval_every = 500
    return config
