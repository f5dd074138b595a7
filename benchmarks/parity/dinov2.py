"""Compares the features of `dinov2` with those of transformers' torch `Dinov2Model`, with the same random weights.

Each side prepares images of several sizes by itself, and resizes the position embeddings as transformers does and as
the model of torch hub does. Reported is max|ours - theirs| / max|theirs| of each; the exit status is 1 if one is above
1e-4. torch and transformers live in an environment of their own, with the interpreter --peer_python. --write_fixture
also writes the features of a tiny network to the file that the tests compare with.

  PYTHONPATH=benchmarks python benchmarks/parity/dinov2.py --peer_python=/path/to/venv/bin/python
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from random_inputs import SIZES, TINY, random_images, random_weights

from diffusion_jax.features.dinov2 import SIZE, preprocess
from diffusion_jax.features.networks.vit import (
    LARGE,
    Size,
    VisionTransformer,
    from_transformers,
    tensors,
)

FIXTURE = Path(__file__).parents[2] / "tests/features/fixtures/dinov2_of_transformers.npz"
TOLERANCE = 1e-4
WAYS: tuple[Literal["hub", "transformers"], ...] = ("hub", "transformers")


def theirs(size: Size, python: str, output: Path) -> dict[str, np.ndarray]:
    """Returns the peer's features by name."""
    peer = Path(__file__).with_name("dinov2_peer.py")
    subprocess.run(
        [python, str(peer), json.dumps(dataclasses.asdict(size)), str(output)], check=True
    )
    return dict(np.load(output))


def ours(size: Size) -> dict[str, np.ndarray]:
    """Returns our features by name."""
    found = random_weights(tensors(size))
    apply = jax.jit(lambda params, x: VisionTransformer(size).apply({"params": params}, x))
    features = {}
    for way in WAYS:
        params = from_transformers(found, size, SIZE, way)
        for height, width in SIZES:
            inputs = preprocess(jax.numpy.asarray(random_images((height, width))))
            features[f"{way}/{height}x{width}"] = np.asarray(apply(params, inputs))
    return features


def main() -> None:
    """Runs both sides."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer_python", required=True)
    parser.add_argument("--write_fixture", action="store_true")
    args = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for label, size in {"tiny": Size(**TINY), "ViT-L/14": LARGE}.items():
            expected, got = theirs(size, args.peer_python, Path(folder, "out.npz")), ours(size)
            for name, value in expected.items():
                error = float(np.abs(got[name] - value).max() / np.abs(value).max())
                failed |= not error <= TOLERANCE
                print(f"{label} {name:22} {error:.2g}", flush=True)
            if label == "tiny" and args.write_fixture:
                FIXTURE.parent.mkdir(exist_ok=True)
                np.savez_compressed(FIXTURE, **expected)
    sys.exit(failed)


if __name__ == "__main__":
    main()
