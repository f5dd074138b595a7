"""scikit-learn's handwritten digits by class, as the variance-exploding SDE (Song et al., 2021).

Data: digits (Alpaydin & Kaynak, 1998; inside scikit-learn), 1,438 training and 359 held-out images, 8x8x1.
Parameters: 702,753.
Steps: 2,200 of batch 32 (49 epochs); all but the process and the sampler as in digits.py.
Expected: readable digits of all ten classes; figures in docs/score_models.md.
Source: measured by benchmarks/score_models.py. sigma_max is by Technique 1 of Song & Ermon (2020).
Device-hours: 0.04 on two CPU cores.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_jax.config import load_file, select


def get_config() -> ConfigDict:
    config = load_file(str(Path(__file__).with_name("digits.py")))
    select(config, "process.name", "ve")
    config.process.sigma_min = 0.02
    config.process.sigma_max = 10.0  # The largest distance between two digits is 9.6.

    config.sampler.name = "pc"
    return config
