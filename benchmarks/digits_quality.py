"""Judges samples of a finished digits run: are they digits, of all classes, and not copies?

Draws --num_images images with the command (or takes --npz). A classifier trained on the real training
digits says how sure it is of each sample and of each held-out real digit, and of which class a sample
is. The distance of each sample to its nearest training digit is held against the held-out digits'.
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
LEVELS = 16  # The digits' grey levels; a copy differs by less than half of one in every pixel.
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


def judge(classifier: SVC, samples: Images, held_out: Images) -> dict[str, Any]:
    """Returns how sure the classifier is of samples and real digits, and the samples' classes."""
    shuffled = np.random.default_rng(0).permuted(held_out.reshape(len(held_out), -1), axis=1)
    sets = {"samples": samples, "held_out": held_out, "shuffled_pixels": shuffled}
    probabilities = {
        name: classifier.predict_proba(pixels(images)) for name, images in sets.items()
    }
    sure = {name: float((p.max(1) >= CONFIDENT).mean()) for name, p in probabilities.items()}
    classes = probabilities["samples"].argmax(1)
    share = np.bincount(classes, minlength=10) / len(samples)
    return {"confident": sure, "ratio": sure["samples"] / sure["held_out"], "share": share.tolist()}


def nearest(images: Images, train: Images) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Returns the distance to the nearest training digit (L2, pixels in [0, 1]), and which it is."""
    distances = pairwise_distances(pixels(images), pixels(train))
    return distances.min(1), distances.argmin(1)


def compare_distances(samples: Images, held_out: Images, train: Images) -> dict[str, Any]:
    """Returns the nearest-neighbour distances of samples and held-out digits, and the copies."""
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


def draw_neighbours(path: Path, samples: Images, train: Images) -> None:
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
    samples = np.load(path)["images"]
    (train, labels), (held_out, held_out_labels) = real_digits("train"), real_digits("test")
    classifier = train_classifier(train, labels)
    accuracy = float(classifier.score(pixels(held_out), held_out_labels))
    judged = judge(classifier, samples, held_out)
    distances = compare_distances(samples, held_out, train)
    draw_neighbours(arguments.picture, samples, train)
    sure, of_samples, of_real = judged["confident"], distances["samples"], distances["held_out"]
    rows = [
        [f"confidence >= {CONFIDENT}", sure["samples"], sure["held_out"]],
        ["nearest training digit, median L2", of_samples["median"], of_real["median"]],
        ["copies of training digits", of_samples["copies"], of_real["copies"]],
    ]
    report.print_table(["what", f"{len(samples)} samples", f"{len(held_out)} held-out"], rows)
    print(f"\nclassifier: {accuracy:.2%} of held-out digits right; ratio {judged['ratio']:.3f}")
    print(f"confident of held-out digits with shuffled pixels: {sure['shuffled_pixels']:.1%}")
    print("share of each class: " + ", ".join(f"{share:.1%}" for share in judged["share"]))
    figures = {"num_images": len(samples), "accuracy": accuracy, **judged, "distances": distances}
    report.write(arguments.out, figures)


if __name__ == "__main__":
    main()
