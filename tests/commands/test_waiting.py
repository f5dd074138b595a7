"""Other processes wait for what the first one computes alone, as long as it takes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from second_process import follow
from tiny_features import mixed

from diffusion_jax.commands import measured_images, self_check
from diffusion_jax.config import default_config
from diffusion_jax.data import from_arrays
from diffusion_jax.errors import RunError
from diffusion_jax.experiment.image_metrics import Judge
from diffusion_jax.metrics import FeatureSet
from diffusion_jax.parallel import sharding

IMAGES = from_arrays(np.zeros((8, 4, 4, 1), np.uint8))


class Idle(Judge):
    """Measures nothing: process 0 does."""

    def features_of(
        self, images: Any, name: str, folder: Any = None, watch: Any = None
    ) -> FeatureSet:
        return FeatureSet(name, np.zeros((0, 6), np.float32))

    def measure(self, images: FeatureSet) -> Any:
        raise AssertionError("another process than the first measures")


JUDGE = Idle(mixed(), {}, None, {}, sharding.make_mesh(1, 1), 8)
DRAWN = measured_images.Measurable(IMAGES, "drawn", {})


def test_statistics_are_waited_for_and_their_failure_is_everyones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        first = follow(patch, {"own a folder": None})
        measured_images.measure(JUDGE, DRAWN, default_config(), tmp_path)
        assert first.waits[-1] == ("metrics of images", math.inf)
    with monkeypatch.context() as patch:
        first = follow(patch, {"metrics of images": {"fd": 1.0}})
        figures = measured_images.figures_of(JUDGE, DRAWN, default_config(), tmp_path)
        assert figures == {"fd": 1.0} and first.waits[0][1] == math.inf
    follow(monkeypatch, {"own a folder": None}, {"metrics of images": "disk full"})
    with pytest.raises(RunError, match="process 0: disk full"):
        measured_images.measure(JUDGE, DRAWN, default_config(), tmp_path)


def test_a_self_check_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "judge_of": JUDGE,
        "_images": IMAGES,
        "_check_possible": None,
        "_digest": "digest",
    }.items():
        monkeypatch.setattr(self_check, name, lambda *_, value=value: value)
    first = follow(monkeypatch, {"own a folder": None})
    assert self_check.check(default_config(), tmp_path) == 0
    assert first.waits[-1] == ("self-check", math.inf)
