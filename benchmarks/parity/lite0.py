"""Compares the features and logits of `lite0` with those of the port of EfficientNet-Lite0 to torch.

Both sides have the published weights, and prepare images of several sizes by themselves. Reported is
max|ours - theirs| / max|theirs| of each; the exit status is 1 if one is above 1e-4. torch and efficientnet_lite_pytorch
0.1.0 live in an environment of their own, with the interpreter --peer_python. --write_fixture writes the features and
logits of some images to the file that the tests compare with.

  PYTHONPATH=benchmarks python benchmarks/parity/lite0.py --peer_python=/path/to/venv/bin/python
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from random_inputs import SIZES, random_images
from sklearn.datasets import load_sample_images

from diffusion_jax.features.lite0 import lite0, package_file

FIXTURE = Path(__file__).parents[2] / "tests/features/fixtures/lite0_of_torch.npz"
KEPT = ("32x32", "300x200")
TOLERANCE = 1e-4


def images_by_name() -> dict[str, np.ndarray]:
    """Returns random images of several sizes, and scikit-learn's two photographs."""
    images = {f"{size[0]}x{size[1]}": random_images(size) for size in SIZES}
    return {**images, "photographs": np.stack(load_sample_images().images)}


def main() -> None:
    """Runs both sides."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer_python", required=True)
    parser.add_argument("--write_fixture", action="store_true")
    args = parser.parse_args()
    images, failed = images_by_name(), False
    with tempfile.TemporaryDirectory() as folder:
        given, output = Path(folder, "images.npz"), Path(folder, "out.npz")
        np.savez(given, **images)
        peer = Path(__file__).with_name("lite0_peer.py")
        command = [args.peer_python, str(peer), str(package_file()), str(given), str(output)]
        subprocess.run(command, check=True)
        theirs = dict(np.load(output))
        extractor = lite0(Path(folder))
    apply = jax.jit(extractor.apply)
    for name, batch in images.items():
        features = np.asarray(apply(extractor.params, batch))
        assert extractor.logits
        for kind, ours in {"features": features, "logits": extractor.logits(features)}.items():
            expected = theirs[f"{kind}/{name}"]
            error = float(np.abs(ours - expected).max() / np.abs(expected).max())
            failed |= not error <= TOLERANCE
            print(f"{name:12} {kind:9} {error:.2g}")
    if args.write_fixture:
        kept = {f"{kind}/{name}" for kind in ("features", "logits") for name in KEPT}
        np.savez_compressed(FIXTURE, **{name: theirs[name] for name in kept})
    sys.exit(failed)


if __name__ == "__main__":
    main()
