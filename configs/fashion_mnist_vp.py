"""Fashion-MNIST by class, as the variance-preserving SDE (Song et al., 2021).

Data: Fashion-MNIST (Xiao et al., 2017), 60,000 training and 10,000 test images, 28x28x1, MIT license.
Parameters: 1,114,209.
Steps: 6,000 of batch 64 (6.4 epochs); all but the process and the sampler as in fashion_mnist.py.
Expected: recognizable garments of all ten classes; no figure is published for a network this small.
Source: the process is the paper's.
Device-hours: 0.9 core-hours on two CPU cores, sampling included; minutes on a GPU.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_jax.config import load_file, select


def get_config() -> ConfigDict:
    config = load_file(str(Path(__file__).with_name("fashion_mnist.py")))
    select(config, "process.name", "vp")

    config.sampler.name = "euler_maruyama"
    return config
