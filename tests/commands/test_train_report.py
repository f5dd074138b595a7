"""What is said of the data that a run trains on."""

import dataclasses

import numpy as np

from diffusion_jax.commands.train_report import best_steps, images_in_words
from diffusion_jax.data import from_arrays

LABELS = np.array([0, 1, 1])
SPLIT = from_arrays(np.zeros((3, 8, 4, 1), np.uint8), LABELS, ("cat", "dog"))


def test_the_data_are_named_with_their_number_shape_and_classes() -> None:
    both = dataclasses.replace(SPLIT, sizes={"train": 3, "test": 1200})
    assert images_in_words(both, 2) == (
        "3 training and 1,200 test images 8x4x1; 2 classes (training images): 0: cat (1), 1: dog (2)"
    )
    assert images_in_words(SPLIT, 2).startswith("3 training images 8x4x1; ")
    uncounted = dataclasses.replace(SPLIT, class_counts=None)
    assert images_in_words(uncounted, 2).endswith("; 2 classes: 0: cat, 1: dog")


def test_it_is_said_that_classes_are_not_used_or_that_there_are_none() -> None:
    assert "2 classes, unused since model.num_classes is 0 (training" in images_in_words(SPLIT, 0)
    assert images_in_words(from_arrays(np.zeros((3, 8, 8, 1), np.uint8)), 0) == (
        "3 training images 8x8x1; no classes, so the model is unconditional"
    )


def test_the_best_step_is_the_least_distance_or_the_greatest_precision() -> None:
    rows = [
        {"step": 1, "loss": 3.0, "eval_fid": 9.0, "eval_precision_lite0": 0.5, "eval_bpd": 4.0},
        {"step": 2, "loss": 2.0, "eval_fid": 7.0, "eval_fid_stderr": 0.1, "eval_bpd": None},
        {"step": 3, "loss": 1.0, "eval_fid": 7.0, "eval_precision_lite0": 0.6, "eval_bpd": 5.0},
        {"step": 4, "eval_is_inception": 3.0, "eval_recall_lite0_stderr": 0.2, "eval_rate": 1.0},
        {"step": 5, "eval_is_inception": 2.0},
    ]
    assert best_steps(rows) == {
        "eval_fid": {"step": 2, "value": 7.0},
        "eval_precision_lite0": {"step": 3, "value": 0.6},
        "eval_bpd": {"step": 1, "value": 4.0},
        "eval_is_inception": {"step": 4, "value": 3.0},
    }
