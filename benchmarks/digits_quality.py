"""Judges samples of a finished digits run: are they digits, the ones asked for, as varied as real ones, no copies?

Draws --num_images images with the command (or takes --npz). Each measure is held against the same of the
held-out real digits:

- confident: share of which a classifier, trained on the real training digits, is at least 90% sure;
- agreement: share that the classifier gives the label that was asked for (of real digits: that they have);
  of a model without classes there is none, and the share of each class is printed instead;
- spread: trace of the pixels' covariance within a class, divided by that of the training digits of the
  class, mean over the classes. Samples are grouped by the label asked for, or else by the classifier's;
- nearest: median distance (L2) to the nearest training digit;
- copies: share that differs from its nearest training digit by less than half a gray level in every pixel.

Writes a picture of samples beside their nearest training digits.

  python benchmarks/digits_quality.py --workdir=runs/digits --out=quality.json --picture=nearest.png
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import report
from command import Command
from jaxtyping import Float, Int, UInt8
from sklearn.metrics import pairwise_distances
from sklearn.svm import SVC

from diffusion_jax import data
from diffusion_jax.reporting import pictures

Images = UInt8[np.ndarray, "n h w c"]
CONFIDENT = 0.9
LEVELS = 16  # The digits' gray levels; a copy differs by less than half of one in every pixel.
QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
ROWS, PAIRS = 10, 8


def draw(workdir: Path, num_images: int, cache: Path) -> Path:
    """Draws images from the newest checkpoint; returns the .npz that holds them."""
    flags = ["--mode=sample", f"--workdir={workdir}", f"--config.sample.num_images={num_images}"]
    command = Command([*flags, "--config.sample.batch_size=250"], cache)
    command.finish(0)
    result = json.loads((workdir / "results" / "sample.json").read_text())
    return workdir / "samples" / result["job"] / "images.npz"


def real_digits(split: str) -> tuple[Images, Int[np.ndarray, " n"]]:
    """Returns all images and labels of a split."""
    opened = data.load("digits", split)
    batch = opened.read(np.arange(opened.num_images))
    return batch["image"], batch["label"]


def pixels(images: Images) -> Float[np.ndarray, "n d"]:
    """Returns rows of pixels in [0, 1]."""
    return images.reshape(len(images), -1) / 255


def train_classifier(images: Images, labels: Int[np.ndarray, " n"]) -> SVC:
    """Returns a support vector machine with probabilities by pairwise coupling (Wu et al., 2004).

    The same machine calibrated one class against the rest (sigmoid, isotonic, temperature) is about
    as accurate, but sure of 20% and more of digits with shuffled pixels; this one of hardly any.
    """
    arguments: dict[str, Any] = {"C": 10, "probability": True, "random_state": 0}
    with warnings.catch_warnings():
        # `probability` is deprecated from scikit-learn 1.9 on.
        warnings.simplefilter("ignore", FutureWarning)
        return SVC(**arguments).fit(pixels(images), labels)


def judge(
    classifier: SVC, samples: Images, held_out: Images
) -> tuple[dict[str, Any], Int[np.ndarray, " n"]]:
    """Returns how sure the classifier is of samples and real digits, and the samples' classes."""
    shuffled = np.random.default_rng(0).permuted(held_out.reshape(len(held_out), -1), axis=1)
    sets = {"samples": samples, "held_out": held_out, "shuffled_pixels": shuffled}
    probabilities = {
        name: classifier.predict_proba(pixels(images)) for name, images in sets.items()
    }
    sure = {name: float((p.max(1) >= CONFIDENT).mean()) for name, p in probabilities.items()}
    classes = probabilities["samples"].argmax(1)
    share = np.bincount(classes, minlength=10) / len(samples)
    figures = {"confident": sure, "ratio": sure["samples"] / sure["held_out"]}
    return {**figures, "share": share.tolist()}, classes


def spread(images: Images, labels: Int[np.ndarray, " n"]) -> dict[int, float]:
    """Returns the trace of the covariance of the pixels of each class that has two images or more.

    That is the mean squared distance (L2, pixels in [0, 1]) to the class's mean, times n / (n - 1).
    """
    classes, counts = np.unique(labels, return_counts=True)
    return {
        int(c): float(pixels(images[labels == c]).var(axis=0, ddof=1).sum())
        for c in classes[counts > 1]
    }


def relative_spread(of: dict[int, float], train: dict[int, float]) -> dict[str, Any]:
    """Returns each class's spread relative to the training digits', and the mean over the classes."""
    by_class = {c: value / train[c] for c, value in of.items()}
    return {"mean": float(np.mean(list(by_class.values()))), "by_class": by_class}


def nearest(images: Images, train: Images) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Returns the distance to the nearest training digit (L2, pixels in [0, 1]), and which it is."""
    distances = pairwise_distances(pixels(images), pixels(train))
    return distances.min(1), distances.argmin(1)


def compare_distances(samples: Images, held_out: Images, train: Images) -> dict[str, Any]:
    """Returns the nearest-neighbor distances of samples and held-out digits, and the copies."""
    figures: dict[str, Any] = {}
    real, _ = nearest(held_out, train)
    for name, images in {"samples": samples, "held_out": held_out}.items():
        distance, index = nearest(images, train)
        worst = np.abs(pixels(images) - pixels(train[index])).max(1)
        figures[name] = {
            "median": float(np.median(distance)),
            "quantiles": dict(
                zip(map(str, QUANTILES), np.quantile(distance, QUANTILES).tolist(), strict=True)
            ),
            "copies": float((worst < 0.5 / LEVELS).mean()),
            # By definition 1% of the held-out digits.
            "nearer_than_1%_of_held_out": float((distance < np.quantile(real, 0.01)).mean()),
        }
    return figures


def draw_neighbors(path: Path, samples: Images, train: Images) -> None:
    """Draws pairs: a sample, and right of it its nearest training digit, columns apart."""
    shown = samples[: ROWS * PAIRS]
    pairs = np.stack([shown, train[nearest(shown, train)[1]], np.full_like(shown, 255)], axis=1)
    tiles = pairs.reshape(-1, *shown.shape[1:])
    pictures.save_png(path, pictures.grid(pictures.magnified(tiles), columns=3 * PAIRS))


def main() -> None:
    """Prints a table, writes the picture, and the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=Path, help="a finished run of configs/digits.py")
    source.add_argument("--npz", type=Path, help="file with uint8 `images`, instead of a run")
    parser.add_argument("--num_images", type=int, default=500)
    parser.add_argument("--picture", type=Path, default=Path("nearest.png"))
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments = parser.parse_args()
    path = arguments.npz or draw(
        arguments.workdir.absolute(), arguments.num_images, data.default_cache_dir()
    )
    drawn = np.load(path)
    samples, asked_for = drawn["images"], drawn.get("labels")
    if len(samples) <= 10:
        parser.error("more than ten images are needed, so that a class has two")
    (train, labels), (held_out, held_out_labels) = real_digits("train"), real_digits("test")
    classifier = train_classifier(train, labels)
    accuracy = float(classifier.score(pixels(held_out), held_out_labels))
    judged, classes = judge(classifier, samples, held_out)
    agreement = None if asked_for is None else float((classes == asked_for).mean())
    of_train = spread(train, labels)
    of_samples = spread(samples, classes if asked_for is None else asked_for)
    spreads = {
        "samples": relative_spread(of_samples, of_train),
        "held_out": relative_spread(spread(held_out, held_out_labels), of_train),
    }
    distances = compare_distances(samples, held_out, train)
    draw_neighbors(arguments.picture, samples, train)
    figures = {
        "num_images": len(samples),
        "accuracy": accuracy,
        "agreement": agreement,
        **judged,
        "spread": spreads,
        "distances": distances,
    }
    print_figures(figures, len(held_out))
    report.write(arguments.out, figures)


def print_figures(figures: dict[str, Any], num_held_out: int) -> None:
    """Prints the table and what does not fit into it."""
    sure, spreads, agreement = figures["confident"], figures["spread"], figures["agreement"]
    ours, theirs = figures["distances"]["samples"], figures["distances"]["held_out"]
    rows = [
        [f"confidence >= {CONFIDENT}", sure["samples"], sure["held_out"]],
        ["classified as the label says", agreement, figures["accuracy"]],
        ["spread within a class", spreads["samples"]["mean"], spreads["held_out"]["mean"]],
        ["nearest training digit, median L2", ours["median"], theirs["median"]],
    ]
    rows = [[*row, row[1] / row[2]] for row in rows if row[1] is not None]
    rows.append(["copies of training digits", ours["copies"], theirs["copies"], ""])
    header = ["what", f"{figures['num_images']} samples", f"{num_held_out} held-out", "ratio"]
    report.print_table(header, rows)
    by_class = spreads["samples"]["by_class"]
    print("\nspread of each class: " + ", ".join(f"{c}: {by_class[c]:.2f}" for c in by_class))
    print(f"confident of held-out digits with shuffled pixels: {sure['shuffled_pixels']:.1%}")
    shares = ", ".join(f"{share:.1%}" for share in figures["share"])
    if agreement is None:
        print(f"no agreement: no labels were asked for; share of each class: {shares}")


if __name__ == "__main__":
    main()
