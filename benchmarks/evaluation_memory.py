"""Peak memory of the statistics of many images, beside the network that gives their features.

  python benchmarks/evaluation_memory.py --num_images=50000

The network is a projection of 32×32 images to 2,048 features, as many as Inception's, and images are made when they
are read, so that what is left is the features on disk, their moments, and the Fréchet distance with its standard error.
Anonymous memory is sampled every 10 ms: pages of the mapped file of features can be dropped by the system at any time.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion_jax.data import Split
from diffusion_jax.features import Extractor
from diffusion_jax.metrics import FeatureSet, FrechetDistance, extract

NUM_FEATURES = 2048


def anonymous() -> int:
    """Returns the anonymous resident memory of this process, in bytes (Linux)."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text[text.index("RssAnon:") :].split()[1])


class Peak:
    """Samples the memory until it is left."""

    def __enter__(self) -> "Peak":
        self.before = self.highest = anonymous()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(0.01):
            self.highest = max(self.highest, anonymous())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def megabytes(self) -> float:
        """Growth since the start."""
        return (self.highest - self.before) / 1e6


def made(num_images: int) -> Split:
    """Returns images of noise, made when they are read."""

    def read(indices: np.ndarray) -> Any:
        rng = np.random.default_rng(int(indices[0]))
        pixels = rng.integers(0, 256, (len(indices), 32, 32, 3), dtype=np.uint8)
        return {"image": pixels, "label": np.zeros(len(indices), np.int32)}

    return Split(num_images, (32, 32, 3), (), read)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--num_images", type=int, default=50_000)
    parser.add_argument("--batch_size", type=int, default=64)
    count = (arguments := parser.parse_args()).num_images
    weights = np.random.default_rng(0).normal(size=(3072, NUM_FEATURES)).astype(np.float32)

    def apply(params: Any, images: Any) -> Any:
        return images.reshape(len(images), -1).astype(jnp.float32) @ params / 255

    extractor = Extractor("projection", weights, apply, NUM_FEATURES, "none", "")
    with tempfile.TemporaryDirectory() as scratch:
        size = arguments.batch_size
        extract(extractor, made(4 * size), batch_size=size)  # The network is compiled.
        started = time.perf_counter()
        with Peak() as of_features:
            rows = extract(extractor, made(count), batch_size=size, folder=Path(scratch) / "all")
        seconds = time.perf_counter() - started
        images, reference = FeatureSet("images", rows), FeatureSet("reference", rows[: count // 2])
        started = time.perf_counter()
        with Peak() as of_statistics:
            found = FrechetDistance().measure(images, reference)
        print(f"features of {count} images: {of_features.megabytes:.0f} MB, {seconds:.0f} s")
        print(
            f"moments of two sets, distance and its error: {of_statistics.megabytes:.0f} MB, "
            f"{time.perf_counter() - started:.0f} s; {found.record()}"
        )


if __name__ == "__main__":
    main()
