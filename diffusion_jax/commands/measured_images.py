"""Images that `--mode=evaluate` measures: drawn from a checkpoint, as by `--mode=sample`, or given ones."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import hashlib
import math
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.addresses import expand
from diffusion_jax.commands.environment import own
from diffusion_jax.commands.images_bar import ImagesBar
from diffusion_jax.commands.run_config import has_run
from diffusion_jax.commands.sample import MakeBatches, draw_job
from diffusion_jax.data.image_source import open_images
from diffusion_jax.data.loading import MEMORY_LIMIT
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import build
from diffusion_jax.experiment.image_metrics import (
    STATISTICS,
    Done,
    Judge,
    Watch,
    drawn_classes,
    make_judge,
    metric_options,
    summarize,
)
from diffusion_jax.metrics import FeatureSet, Measured
from diffusion_jax.metrics.image_metric import result_name
from diffusion_jax.metrics.statistics_file import write_statistics
from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.distributed import broadcast_from_first, run_on_first
from diffusion_jax.reading import json_text
from diffusion_jax.reading.regular import read_regular
from diffusion_jax.reporting import results
from diffusion_jax.runs import Run
from diffusion_jax.writing.writable import check_writable


class Measurable(NamedTuple):
    """Images to measure.

    Attributes:
      images: The images.
      name: Folder name of what is made of them.
      record: What results say of them.
    """

    images: data.Split
    name: str
    record: dict[str, Any]


def measure_given(config: ConfigDict, workdir: Path) -> int:
    """Measures the images that config.eval.images names; returns the exit status.

    Raises:
      InputError: The images or the reference cannot be read, have several sizes, or are too few.
      RunError: Disk full.
    """
    check_writable(workdir)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    path = Path(expand(config.eval.images))
    images = open_images(path, "eval.images")
    if images.num_images == 0:
        raise InputError(f"eval.images: {path} has no images")
    count, of = config.eval.num_images or images.num_images, images.num_images
    if count < of:  # At random: folders are in the order of their classes.
        chosen = np.random.default_rng(config.eval.seed).choice(of, count, replace=False)
        images = data.subset(images, np.sort(chosen))
    fingerprint = data.content_digest(images)
    record = {
        **_job_of(path),
        "path": str(path.absolute()),
        "num_images": images.num_images,
        "of": of,
        "image_shape": images.image_shape,
        "fingerprint": fingerprint,
    }
    judge = judge_of(config, mesh, workdir)
    judge.check_number(images.num_images, "eval.images")
    measure(judge, Measurable(images, fingerprint, record), config, workdir)
    return 0


def _job_of(path: Path) -> dict[str, Any]:
    """Returns what the job of a folder says of its images; nothing of other folders."""
    try:
        said = json_text.parse_object(read_regular(path / "job.json"), finite=False)
    except (OSError, ValueError):
        return {}
    left_out = ("files", "shared_t", "drawn_this_start", "seconds_this_start")
    return {name: value for name, value in said.items() if name not in left_out}


def _warn_of_reference(measured: Measurable, reference: Mapping[str, Any]) -> None:
    """Warns of a reference that is the images themselves, or of another shape."""
    if reference and reference.get("fingerprint") == measured.record.get("fingerprint", ""):
        warnings.warn("eval.images and eval.reference are the same images", stacklevel=1)
    own = measured.images.image_shape
    shape = reference.get("image_shape", own)
    if tuple(shape) != tuple(own):
        warnings.warn(
            f"eval.images are {'x'.join(map(str, own))} (height, width, channels), but the reference "
            f"is {'x'.join(map(str, shape))}; the features see both resized, and gray as RGB",
            stacklevel=1,
        )


def measure_drawn(run: Run, mesh: jax.sharding.Mesh, workdir: Path) -> None:
    """Draws the images of the job that the run's config describes, and measures them.

    Raises:
      InputError: Another command owns the job; weights or the reference are wrong; too few images.
      RunError: Images that are not finite; disk full.
    """
    # First, since it may be refused.
    judge = judge_of(run.config, mesh, workdir, num_drawn=run.config.sample.num_images)
    measure(judge, draw(run, mesh, workdir), run.config, workdir)


def judge_of(
    config: ConfigDict, mesh: jax.sharding.Mesh, workdir: Path, *, num_drawn: int | None = None
) -> Judge:
    """Returns what the config measures images with; see `make_judge`."""

    def load_split(name: str) -> data.Split:
        if not has_run(workdir):
            raise InputError(
                f"eval.features={config.eval.features} and eval.reference={config.eval.reference} need the {name} "
                f"images of a run, but there is none in {workdir}; name a --workdir, or other features and a reference"
            )
        return build.load_split(config, name)

    return make_judge(config, mesh, load_split, watch(config), num_drawn=num_drawn)


def watch(config: ConfigDict) -> Watch:
    """Returns what shows the progress of features."""

    @contextlib.contextmanager
    def watched(what: str, num_images: int) -> Iterator[Done]:
        if jax.process_index() == 0:
            print(f"{what}: {num_images} images", file=sys.stderr)
        with ImagesBar(num_images, 1, config.eval.batch_size) as bar:
            yield bar.done

    return watched


def draw(
    run: Run, mesh: jax.sharding.Mesh, workdir: Path, make_batches: MakeBatches | None = None
) -> Measurable:
    """Draws the images of the job that the run's config describes, unless they are there; see `sample.draw_job`.

    Their classes are random, with the shares of the training images, unless `sample.labels` is set.
    """
    config = copy.deepcopy(run.config)
    config.sample.labels = drawn_classes(run, config.sample.num_images)
    run = dataclasses.replace(run, config=config)
    drawn = draw_job(run, mesh, workdir, "evaluate", make_batches)
    num_bytes = drawn.files.num_bytes
    write = functools.partial(
        drawn.files.write,
        ("npz",) if num_bytes <= MEMORY_LIMIT else ("array_record",),
        drawn.labels,
        run.names_to_draw,
    )
    broadcast_from_first("files of the images", lambda: len(write()))
    record = {
        "job": drawn.folder.name,
        **drawn.record,
        "ema_decay": config.optimizer.ema_decay if config.sample.ema is True else None,
        "image_shape": run.image_shape,
    }
    return Measurable(open_images(drawn.folder, "the job"), drawn.folder.name, record)


def measure(judge: Judge, images: Measurable, config: ConfigDict, workdir: Path) -> None:
    """Measures images, and writes and says the results.

    Raises:
      InputError: Too few images, or another command owns the folder of their features.
      RunError: Disk full.
    """
    started = time.monotonic()
    _warn_of_reference(images, judge.provenance.get("reference", {}))
    extractor = judge.extractor
    decided = (images.name, extractor.weights_sha256, extractor.preprocessing)
    digest = hashlib.sha256(repr(decided).encode()).hexdigest()[:10]
    folder = workdir / "results" / "features" / f"{extractor.name}-{digest}"
    own(folder, "evaluate")
    features = judge.features_of(images.images, "eval.images", folder, watch(config))

    def write() -> None:
        write_statistics(folder / STATISTICS, features.statistics, judge.extractor)
        for name, result in judge.measure(features).items():
            _write(name, result, judge, features, images.record, config, workdir, started)

    run_on_first("metrics of images", write)


def figures_of(
    judge: Judge, images: Measurable, config: ConfigDict, folder: Path
) -> dict[str, float]:
    """Returns all figures of images by name, on every process; see `Judge.figures`."""
    features = judge.features_of(images.images, "eval.images", folder, watch(config))
    return broadcast_from_first(
        "metrics of images", lambda: judge.figures(judge.measure(features)), timeout=math.inf
    )


def _digest(name: str, judge: Judge, images: Mapping[str, Any], config: ConfigDict) -> str:
    """Names a metric's files by all that decides them."""
    decided = (
        images.get("job"),
        images.get("fingerprint"),
        judge.extractor.weights_sha256,
        judge.extractor.preprocessing,
        judge.provenance.get("reference", {}).get("fingerprint"),
        sorted(metric_options(config, name).items()),
    )
    return hashlib.sha256(repr(decided).encode()).hexdigest()[:16]


def _write(
    name: str,
    result: Measured,
    judge: Judge,
    features: FeatureSet,
    images: Mapping[str, Any],
    config: ConfigDict,
    workdir: Path,
    started: float,
) -> None:
    """Writes one metric to results/evaluate.json, with all that it depends on, and says it."""
    full, metric = result_name(name, judge.extractor), judge.metrics[name]
    folder = workdir / "results" / full / _digest(name, judge, images, config)
    files = metric.save(folder, result, features, judge.reference)
    provenance = dict(judge.provenance)
    if not metric.has_reference:
        provenance.pop("reference", None)
    record = {
        **result.record(),
        "options": {"seed": config.eval.seed, **metric_options(config, name)},
        "images": dict(images),
        **provenance,
        "files": [str(path.relative_to(workdir / "results")) for path in files],
        "seconds_this_start": round(time.monotonic() - started, 1),
    }
    path = results.add_metric(workdir, "evaluate", full, record)
    of = f"of {images['num_images']} images"
    if metric.has_reference:
        against = record["reference"]
        of += (
            f" against {against['name']} ({against['num_images'] or 'an unknown number of'} images)"
        )
    where = "".join(f"\npicture {file}" for file in files if file.suffix == ".png")
    print(f"{summarize(result, judge.extractor)} {of}\nresults {path}{where}", file=sys.stderr)
