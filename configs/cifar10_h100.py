"""CIFAR-10 on one H100: `cifar10.py` in bfloat16.

Data: as in cifar10.py.
Parameters: 35,746,307.
Steps: 800,000 of batch 128, the paper's: one GPU holds it, so nothing else changes.
Expected: as cifar10.py; not yet trained in bfloat16.
Source: cifar10.py. Parameters, average, loss and sampler stay float32.
Differs: bfloat16; gradients are clipped as a whole.
Device-hours: 5.1 by the measured 23 ms a step (benchmarks/README.md), without pictures and checkpoints.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import load_file


def get_config() -> ConfigDict:
    config = load_file("cifar10")
    config.model.dtype = "bfloat16"
    return config
