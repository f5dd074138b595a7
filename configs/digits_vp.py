"""scikit-learn's handwritten digits by class, as the variance-preserving SDE (Song et al., 2021).

Data: digits (Alpaydin & Kaynak, 1998; inside scikit-learn), 1,438 training and 359 held-out images, 8x8x1.
Parameters: 702,753.
Steps: 2,200 of batch 32 (49 epochs); all but the process and the sampler as in digits.py.
Expected: readable digits of all ten classes; figures in docs/score_models.md.
Source: measured by benchmarks/score_models.py. The process is the paper's.
Device-hours: 0.04 on two CPU cores.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_jax.config import load_file, select


def get_config() -> ConfigDict:
    config = load_file(str(Path(__file__).with_name("digits.py")))
    select(config, "process.name", "vp")

    config.sampler.name = "euler_maruyama"
    return config
