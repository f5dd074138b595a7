"""scikit-learn's handwritten digits by class, as a noise-conditional score network (Song & Ermon, 2020).

Data: digits (Alpaydin & Kaynak, 1998; inside scikit-learn), 1,438 training and 359 held-out images, 8x8x1.
Parameters: 702,753.
Steps: 2,200 of batch 32 (49 epochs); all but the process and the sampler as in digits.py.
Expected: readable digits of all ten classes; figures in docs/score_models.md.
Source: measured by benchmarks/score_models.py. sigma_max and the number of levels are by Techniques 1 and 2 of the
  paper (`largest_distance`, `num_levels`): digits are at most 9.6 apart, neighboring levels 1.36 times.
Device-hours: 0.04 on two CPU cores.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_jax.config import load_file, select


def get_config() -> ConfigDict:
    config = load_file(str(Path(__file__).with_name("digits.py")))
    select(config, "process.name", "ncsn")
    config.process.prediction = "score"
    config.process.sigma_min = 0.02
    config.process.sigma_max = 10.0
    config.process.num_timesteps = 21

    config.sampler.name = "langevin"
    config.sampler.langevin_steps = 5
    return config
