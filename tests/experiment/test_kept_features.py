"""Features of a reference that several commands and processes may want at once."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from second_process import follow
from tiny_features import mixed

from diffusion_jax.data import from_arrays
from diffusion_jax.experiment import image_metrics
from diffusion_jax.experiment.image_metrics import Judge
from diffusion_jax.metrics import FeatureSet
from diffusion_jax.parallel import sharding


def test_all_processes_wait_while_the_first_waits_for_another_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = follow(monkeypatch, {})

    class Recording(Judge):
        def features_of(
            self, images: Any, name: str, folder: Any = None, watch: Any = None
        ) -> FeatureSet:
            first.waits.append(("features", 0.0))
            return FeatureSet(name, np.zeros((0, 6), np.float32))

    judge = Recording(mixed(), {}, None, {}, sharding.make_mesh(1, 1), 8)
    images = from_arrays(np.zeros((3, 4, 4, 1), np.uint8))
    folder = tmp_path / "reference"
    image_metrics._kept_features(judge, images, "test", folder, image_metrics._unwatched)
    assert first.waits == [
        ("lock of a reference", math.inf),
        ("features", 0.0),
        ("statistics of a reference", math.inf),
    ]
    assert not folder.exists()
