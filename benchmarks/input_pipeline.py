"""Measures the input pipeline: images a second from memory, from array_record and from image files.

Makes a set of random 32x32x3 images of CIFAR-10's size, prepares it in a temporary folder, and
reads shuffled batches of it in one process, as training does; the two ways take turns. With
--image_files it makes a folder of so many 256x256 JPEG files instead, and reads it as a folder
that is too large to copy is read.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_jax.data import Split, batches, in_memory, load
from diffusion_jax.data.prepare import prepared
from diffusion_jax.data.reader import open_prepared
from diffusion_jax.data.sources.base import Contents, Source, split_arrays


def make_split(root: Path, num_images: int) -> Split:
    """Prepares random images and returns their split, streamed."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_images, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, num_images)
    classes = tuple("0123456789")
    splits = {"train": split_arrays(images, labels)}
    contents = Contents((32, 32, 3), classes, num_images, splits)
    directory = prepared("random", Source("random", lambda: contents), root)
    return open_prepared(directory, "random", "train")[0]


def make_folder(root: Path, num_files: int, size: int = 256) -> Split:
    """Writes smooth random JPEG files and returns their split, decoded as they are read."""
    rng, folder = np.random.default_rng(0), root / "images"
    folder.mkdir()
    for i in range(num_files):
        coarse = Image.fromarray(rng.integers(0, 256, (size // 8, size // 8, 3), np.uint8))
        smooth = coarse.resize((size, size), Image.Resampling.BICUBIC)
        smooth.save(folder / f"{i:07}.jpg", quality=90)
    return load(
        "image_folder",
        "train",
        source_dir=folder,
        image_size=size,
        test_fraction=0.0,
        cache_dir=root / "cache",
        memory_limit=0,
    )


def images_per_second(split: Split, batch_size: int, num_batches: int, start: int) -> float:
    """Reads batches as fast as they come; the first ones, which start the threads, count too."""
    started = time.perf_counter()
    stop = start + num_batches
    for _ in batches(split, seed=0, batch_size=batch_size, start=start, stop=stop):
        pass
    return num_batches * batch_size / (time.perf_counter() - started)


def make_ways(
    root: Path, arguments: argparse.Namespace
) -> tuple[dict[str, tuple[Split, int]], dict[str, float]]:
    """Returns what to read and how many batches of it, and the seconds that it took to make."""
    if arguments.image_files:
        started = time.perf_counter()
        files = make_folder(root, arguments.image_files)
        seconds = {"write files and look at them": time.perf_counter() - started}
        return {"image files": (files, files.num_images // arguments.batch_size)}, seconds
    started = time.perf_counter()
    streamed = make_split(root, arguments.num_images)
    seconds = {"prepare": time.perf_counter() - started}
    started = time.perf_counter()
    held = in_memory(streamed)
    seconds["load into memory"] = time.perf_counter() - started
    # One epoch streamed, and ten from memory, take about as long.
    num_batches = arguments.num_images // arguments.batch_size
    return {"memory": (held, 10 * num_batches), "array_record": (streamed, num_batches)}, seconds


def main() -> None:
    """Prints a table, and writes the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_images", type=int, default=50_000)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--image_files", type=int, help="measure a folder of so many JPEG files")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        ways, seconds = make_ways(Path(root), arguments)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(arguments.repeats):
            for name, (split, count) in ways.items():
                rate = images_per_second(split, arguments.batch_size, count, repeat * count)
                rates[name].append(rate)
    print("| source | images/s, median | slowest | fastest |\n|---|---|---|---|")
    for name, values in rates.items():
        median = statistics.median(values)
        print(f"| {name} | {median:,.0f} | {min(values):,.0f} | {max(values):,.0f} |")
    print("\n" + ", ".join(f"{name}: {value:.1f} s" for name, value in seconds.items()))
    if arguments.out:
        machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "load": os.getloadavg()}
        names = ("num_images", "image_files", "batch_size")
        settings = {name: getattr(arguments, name) for name in names}
        figures = {**settings, "machine": machine, "seconds": seconds, "images_per_second": rates}
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
