"""Compares the extractor `inception` with pytorch-fid, clean-fid and torch-fidelity, with the same random weights.

Each side resizes images of several sizes by itself. Reported are the largest difference of an image's features over its
largest feature, for each size and preprocessing (pytorch-fid's network and resize; clean-fid's resize; torch-fidelity's
network and resize, and its logits), and the difference of the FID of two sets of images by pytorch-fid and from our
features. The exit status is 1 if one is above its bound.

The peers are installed in an environment of their own (benchmarks/parity/requirements.txt).

  PYTHONPATH=benchmarks python benchmarks/parity/inception.py --peer_python=/path/to/venv/bin/python
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import report
from random_inception import SIZES, pictures, projected, random_weights

from diffusion_jax.features.inception import inception
from diffusion_jax.features.networks.inception import tensors

TOLERANCE, FID_TOLERANCE = 1e-4, 1e-4
PREPROCESSED = ("pytorch", "clean", "tensorflow")
BATCH = 16


def extractors(folder: Path) -> dict:
    """Returns our extractors with random weights, by preprocessing."""
    shapes = {**tensors(), "fc.weight": (1008, 2048)}
    np.savez(folder / "random.npz", **random_weights(shapes))  # pyright: ignore[reportArgumentType]
    weights = str(folder / "random.npz")
    return {how: inception(folder, weights=weights, resize=how) for how in PREPROCESSED}


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the distance of the features' Gaussians, from singular values in float64."""
    a, b = (x.astype(np.float64) for x in (first, second))
    (mean_a, a), (mean_b, b) = ((x.mean(0), (x - x.mean(0)) / (len(x) - 1) ** 0.5) for x in (a, b))
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return ((mean_a - mean_b) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * cross


def main() -> None:
    """Runs both sides."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer_python", required=True)
    parser.add_argument("--images", type=int, default=2, help="of each size")
    parser.add_argument("--fid_images", type=int, default=0, help="of each of two sets; 0: no FID")
    parser.add_argument("--fixture", type=Path, help="write projections of the peers' features")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    images = {f"{h}x{w}": pictures((h, w), args.images) for h, w in SIZES}
    if args.fid_images:
        images["first"] = pictures((32, 32), args.fid_images, seed=1)
        images["second"] = pictures((32, 32), args.fid_images, seed=2) // 2 + 40
    with tempfile.TemporaryDirectory() as folder:
        given, output = Path(folder, "images.npz"), Path(folder, "features.npz")
        np.savez(given, **images)  # pyright: ignore[reportArgumentType]
        peer = Path(__file__).with_name("inception_peer.py")
        subprocess.run([args.peer_python, str(peer), str(given), str(output)], check=True)
        theirs = dict(np.load(output))
        ours, rows = {}, {}
        for how, extractor in extractors(Path(folder)).items():
            apply = jax.jit(extractor.apply)
            for name in [name for name in images if f"{how}/{name}" in theirs]:
                batches = np.array_split(images[name], -(-len(images[name]) // BATCH))
                found = np.concatenate([apply(extractor.params, batch) for batch in batches])
                ours[f"{how}/{name}"] = found
                if f"logits/{name}" in theirs and how == "tensorflow" and extractor.logits:
                    ours[f"logits/{name}"] = extractor.logits(found)
    for name, found in ours.items():
        largest = np.abs(theirs[name]).max(axis=1)
        rows[name] = float((np.abs(found - theirs[name]).max(axis=1) / largest).max())
    failed = any(row > TOLERANCE for row in rows.values())
    if args.fid_images:
        fid = frechet(ours["pytorch/first"], ours["pytorch/second"])
        rows["fid"], rows["fid of pytorch-fid"] = fid, float(theirs["fid"])
        rows["fid, relative difference"] = abs(fid / rows["fid of pytorch-fid"] - 1)
        same = frechet(theirs["pytorch/first"], theirs["pytorch/second"])
        rows["the same without pytorch-fid's square root"] = abs(fid / same - 1)
        failed |= rows["fid, relative difference"] > FID_TOLERANCE
    if args.fixture:
        kept = {k: projected(v) for k, v in theirs.items() if k.split("/")[0] in PREPROCESSED}
        np.savez_compressed(args.fixture, **kept)  # pyright: ignore[reportArgumentType]
    for name, value in rows.items():
        print(f"{name:44} {value:.3g}")
    report.write(args.out, rows)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
