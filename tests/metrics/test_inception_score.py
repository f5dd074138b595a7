"""The Inception score."""

import numpy as np
import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.metrics.inception_score import inception_score


def test_sure_and_evenly_spread_classes_score_their_number():
    logits = np.tile(np.eye(4) * 1e3, (100, 1))
    assert inception_score(logits, num_splits=1).value == pytest.approx(4, rel=1e-12)


def test_unsure_classes_or_a_single_one_score_one():
    assert inception_score(np.zeros((50, 6)), num_splits=5).value == pytest.approx(1, rel=1e-12)
    one = np.tile([1e4, 0.0], (50, 1))
    assert inception_score(one, num_splits=5).value == pytest.approx(1, rel=1e-12)


def test_fewer_images_than_parts_are_refused():
    with pytest.raises(InputError, match="each of 10 parts, not 9"):
        inception_score(np.zeros((9, 3)))
