"""How far samples are from real digits: the Fréchet distance between the features of a small classifier.

Heusel et al. (2017) take the features of a network trained on ImageNet; 8x8 digits need their own. So this is no FID,
and comparable with nothing else than itself: the same classifier, on digits. What it says is which of two sets of
samples looks more like the real digits to a network that tells digits apart.
"""

from collections.abc import Callable

import numpy as np
from digits_quality import Images, pixels, real_digits
from jaxtyping import Float, Int
from sklearn.neural_network import MLPClassifier

from diffusion_jax.metrics import Statistics, frechet_distance, statistics_of

NAME = "classifier-feature Fréchet distance on 8x8 digits, not FID, comparable with nothing else"
HIDDEN = (64, 32)  # Widths of the layers; the features are the last one's.
HALVINGS = 20

Features = Float[np.ndarray, "n d"]


def train_classifier(images: Images, labels: Int[np.ndarray, " n"]) -> MLPClassifier:
    """Returns a perceptron with two hidden layers, the same one each time (on one kind of machine)."""
    classifier = MLPClassifier(HIDDEN, alpha=0.01, max_iter=500, random_state=0)
    return classifier.fit(pixels(images), labels)


def features(classifier: MLPClassifier, images: Images) -> Features:
    """Returns the activations of the last hidden layer."""
    x = pixels(images)
    for weights, bias in zip(classifier.coefs_[:-1], classifier.intercepts_[:-1], strict=True):
        x = np.maximum(x @ weights + bias, 0)
    return x


def make_judge() -> tuple[Callable[[Images], float], dict[str, float]]:
    """Returns images -> their distance to all real digits, and figures of the real digits alone.

    Those are the classifier's `accuracy` on the held-out ones, and distances: `test and train`, and `halves` (disjoint,
    each with the classes of the whole; mean over some halvings, with its standard deviation `halves_std`). A distance
    is larger the fewer images it is measured on, so these are no lower bound for samples that are more.
    """
    (train, labels), (test, test_labels) = real_digits("train"), real_digits("test")
    classifier = train_classifier(train, labels)
    real = np.concatenate([train, test])

    def of(images: Images) -> Statistics:
        return statistics_of(features(classifier, images))

    halves = halvings(np.concatenate([labels, test_labels]))
    distances = [frechet_distance(of(real[a]), of(real[b])) for a, b in halves]
    of_real = of(real)
    return lambda images: frechet_distance(of(images), of_real), {
        "accuracy": float(classifier.score(pixels(test), test_labels)),
        "test and train": frechet_distance(of(test), of(train)),
        "halves": float(np.mean(distances)),
        "halves_std": float(np.std(distances)),
    }


def halvings(
    labels: Int[np.ndarray, " n"],
) -> list[tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]]:
    """Returns indices of disjoint halves of each class, drawn anew each time."""
    pairs = []
    for seed in range(HALVINGS):
        order = np.random.default_rng(seed).permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]
        pairs.append((order[::2], order[1::2]))
    return pairs
