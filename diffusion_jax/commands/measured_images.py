"""Images that `--mode=evaluate` measures: drawn from a checkpoint, as by `--mode=sample`, or given ones."""

import contextlib
import dataclasses
import functools
import hashlib
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
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
    make_judge,
    metric_options,
    summarize,
)
from diffusion_jax.metrics import FeatureSet, Measured
from diffusion_jax.metrics.image_metric import result_name
from diffusion_jax.metrics.statistics_file import write_statistics
from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.distributed import broadcast_from_first, run_on_first
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
    if config.eval.num_images is not None:
        count = min(config.eval.num_images, images.num_images)
        images = dataclasses.replace(images, num_images=count)
    if images.num_images == 0:
        raise InputError(f"eval.images: {path} has no images")
    fingerprint = data.fingerprint(images)
    record = {"path": str(path), "num_images": images.num_images, "fingerprint": fingerprint}
    judge = judge_of(config, mesh, workdir)
    measure(judge, Measurable(images, fingerprint, record), config, workdir)
    return 0


def measure_drawn(run: Run, mesh: jax.sharding.Mesh, workdir: Path) -> None:
    """Draws the images of the job that the run's config describes, and measures them.

    Raises:
      InputError: Another command owns the job; weights or the reference are wrong; too few images.
      RunError: Images that are not finite; disk full.
    """
    judge = judge_of(run.config, mesh, workdir)  # First, since it may be refused.
    measure(judge, draw(run, mesh, workdir), run.config, workdir)


def judge_of(config: ConfigDict, mesh: jax.sharding.Mesh, workdir: Path) -> Judge:
    """Returns what the config measures images with."""

    def load_split(name: str) -> data.Split:
        if not has_run(workdir):
            raise InputError(
                f"eval.features={config.eval.features} and eval.reference={config.eval.reference} need the {name} "
                f"images of a run, but there is none in {workdir}; name a --workdir, or other features and a reference"
            )
        return build.load_split(config, name)

    return make_judge(config, mesh, load_split, watch(config))


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
    """Draws the images of the job that the run's config describes, unless they are there; see `sample.draw_job`."""
    drawn = draw_job(run, mesh, workdir, "evaluate", make_batches)
    num_bytes = drawn.files.num_bytes
    write = functools.partial(
        drawn.files.write,
        ("npz",) if num_bytes <= MEMORY_LIMIT else ("array_record",),
        drawn.labels,
        run.names_to_draw,
    )
    broadcast_from_first("files of the images", lambda: len(write()))
    record = {"job": drawn.folder.name, **drawn.record}
    return Measurable(open_images(drawn.folder, "the job"), drawn.folder.name, record)


def measure(judge: Judge, images: Measurable, config: ConfigDict, workdir: Path) -> None:
    """Measures images, and writes and says the results.

    Raises:
      InputError: Too few images, or another command owns the folder of their features.
      RunError: Disk full.
    """
    started = time.monotonic()
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
    folder = workdir / "results" / full / str(images.get("job", images.get("fingerprint")))
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
        of += f" against {record['reference']['name']} ({record['reference']['num_images']} images)"
    where = "".join(f"\npicture {file}" for file in files if file.suffix == ".png")
    print(f"{summarize(result, judge.extractor)} {of}\nresults {path}{where}", file=sys.stderr)
