"""`--mode=evaluate --config.eval.selfcheck=true`: the metrics prove themselves on the reference's own images."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.commands.environment import own
from diffusion_jax.commands.measured_images import judge_of, watch
from diffusion_jax.errors import InputError, RunError
from diffusion_jax.experiment.image_metrics import SPLITS, Judge, metric_options
from diffusion_jax.lifecycle import stopping
from diffusion_jax.metrics.feature_set import FeatureSet
from diffusion_jax.metrics.image_metric import result_name
from diffusion_jax.metrics.published import Reproduction, reproduce
from diffusion_jax.metrics.self_check import (
    Degradation,
    Level,
    SelfCheck,
    is_distance,
    make_ladders,
    random_halves,
    self_check,
    table_row,
)
from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.distributed import run_on_first
from diffusion_jax.reporting import results
from diffusion_jax.reporting.ladder_plot import Curve, save_ladders
from diffusion_jax.writing.writable import check_writable

AXES = {"noise": "noise (standard deviation; white is 255)", "blur": "blur (pixels)"}


def check(config: ConfigDict, workdir: Path) -> int:
    """Checks the metrics that the config names; returns the exit status.

    Raises:
      InputError: No metric is a distance, the reference has no images, or too few.
      RunError: A figure contradicts its metric; disk full.
    """
    started = time.monotonic()
    check_writable(workdir)
    judge = judge_of(config, sharding.make_mesh(config.mesh.data, config.mesh.fsdp), workdir)
    images, seed = _images(judge), config.eval.seed
    halves = random_halves(images.num_images, seed, config.eval.num_images)
    _check_possible(judge, len(halves[0]))
    full = result_name("selfcheck", judge.extractor)
    folder = workdir / "results" / full / _digest(judge, seed, 2 * len(halves[0]))
    own(folder, "evaluate")

    def degraded(worse: Degradation) -> FeatureSet:
        place = folder / worse.name.replace(" ", "-")
        return judge.features_of(worse.of(images, halves[0]), worse.name, place, watch(config))

    ladders = [
        [(worse, degraded(worse)) for worse in ladder]
        for ladder in make_ladders(images.image_shape, seed)
    ]
    run_on_first(
        "self-check", lambda: _check(judge, config, halves, ladders, workdir, folder, started)
    )
    return 0


def _check(
    judge: Judge,
    config: ConfigDict,
    halves: Sequence[Int64[np.ndarray, " n"]],
    ladders: Sequence[Sequence[tuple[Degradation, FeatureSet]]],
    workdir: Path,
    folder: Path,
    started: float,
) -> None:
    """Compares the features, writes and says what was found, and raises if it is wrong."""
    one, other = (_rows(judge, half) for half in halves)
    found = self_check(one, other, ladders, judge.metrics, _teller(judge, len(halves[0])))
    reproduced = _reproduce(judge, config, judge.provenance["reference"]["num_images"])
    record = {"num_images": len(halves[0]), **_record(found, reproduced, judge, config)}
    picture = folder / "ladder.png"
    save_ladders(picture, _curves(found))
    record["files"] = [str(picture.relative_to(workdir / "results"))]
    record["seconds_this_start"] = round(time.monotonic() - started, 1)
    path = results.add_metric(
        workdir, "evaluate", result_name("selfcheck", judge.extractor), record
    )
    print(*_verdict(reproduced, record), sep="\n", file=sys.stderr)
    print(f"results {path}", f"picture {picture}", sep="\n", file=sys.stderr)
    if record["failures"]:
        raise RunError(f"self-check of {judge.extractor.name}: {'; '.join(record['failures'])}")


def _images(judge: Judge) -> data.Split:
    """Returns the images of the reference."""
    reference = judge.reference
    if reference is None or not any(map(is_distance, judge.metrics.values())):
        raise InputError(
            f"eval.selfcheck is for distances, but eval.metrics is {', '.join(judge.metrics)}; add fd, kid or fd_inf"
        )
    read = reference.read
    if read is None:
        raise InputError(
            f"eval.selfcheck needs images, but eval.reference is {reference.name}, statistics alone; name the images"
        )

    def batch(indices: Int64[np.ndarray, " b"]) -> data.Batch:
        return {"image": read(indices), "label": np.zeros(len(indices), np.int32)}

    height, width, channels = read(np.zeros(1, np.int64)).shape[1:]
    count = judge.provenance["reference"]["num_images"]
    return data.Split(count, (height, width, channels), (), batch)


def _check_possible(judge: Judge, size: int) -> None:
    """Raises before anything is computed if the Fréchet distance would refuse the halves."""
    needed = judge.extractor.num_features
    if size < needed and any(
        getattr(m, "allow_few", True) is False for m in judge.metrics.values()
    ):
        raise InputError(
            f"eval.selfcheck: halves of {size} images are fewer than the {needed} features of {judge.extractor.name}; "
            "take more images, kid, or eval.allow_few=true"
        )


def _digest(judge: Judge, seed: int, num_images: int) -> str:
    extractor, reference = judge.extractor, judge.provenance["reference"]["fingerprint"]
    decided = (reference, extractor.weights_sha256, extractor.preprocessing, seed, num_images)
    return hashlib.sha256(repr(decided).encode()).hexdigest()[:10]


def _rows(judge: Judge, indices: Int64[np.ndarray, " n"]) -> FeatureSet:
    """Returns the features of some images of the reference."""
    reference = judge.reference
    assert reference is not None and reference.read is not None
    rows, read = reference.rows("eval.selfcheck"), reference.read
    return FeatureSet(
        reference.name,
        np.asarray(rows[indices]),
        logits=reference.logits,
        read=lambda chosen: read(indices[chosen]),
    )


def _reproduce(judge: Judge, config: ConfigDict, num_images: int) -> list[Reproduction]:
    """Returns what is published of the whole reference, and here."""
    assert judge.reference is not None
    fields, split = config.data, config.eval.reference
    as_published = split in SPLITS and fields.sha256 is None and fields.image_size is None
    name = f"{fields.name} {split}" if as_published else None
    return reproduce(name, judge.reference, num_images, judge.extractor)


def _record(
    found: SelfCheck, reproduced: list[Reproduction], judge: Judge, config: ConfigDict
) -> dict[str, Any]:
    """Returns all figures, and all that they depend on."""
    failures = [*found.failures, *(r.failure for r in reproduced if r.failure)]
    options = {name: metric_options(config, name) for name in judge.metrics}
    return {
        "passed": not failures,
        "failures": failures,
        **found.record(),
        "published": [r.record() for r in reproduced],
        "options": {"seed": config.eval.seed, **options},
        **judge.provenance,
    }


def _curves(found: SelfCheck) -> dict[str, dict[str, Curve]]:
    curves = {}
    for ladder in found.ladders:
        levels = [found.halves, *ladder]
        amounts = [level.degradation.amount if level.degradation else 0.0 for level in levels]
        figures = {name: [level.figures[name] for level in levels] for name in found.distances}
        kind = ladder[0].name.partition(" ")[0]
        curves[AXES[kind]] = {
            name: Curve(amounts, [f.value for f in fs], [f.stderr for f in fs])
            for name, fs in figures.items()
        }
    return curves


def _teller(judge: Judge, size: int) -> Callable[[Level], None]:
    """Prints the heading of the table; returns what prints a level's line."""
    compared = [metric for metric in judge.metrics.values() if metric.has_reference]
    figures = [name for metric in compared for name in metric.figures]
    reference = judge.provenance["reference"]["name"]
    of = f"halves of {size} images each of {reference}"
    print(
        f"self-check of {judge.extractor.name}: {of}",
        table_row("", figures),
        sep="\n",
        file=sys.stderr,
    )

    def tell(level: Level) -> None:
        print(level.row(figures), file=sys.stderr)
        stopping.check()

    return tell


def _verdict(reproduced: list[Reproduction], record: dict[str, Any]) -> list[str]:
    """Returns what is published, and whether all is well, in lines."""
    lines = []
    for known, found in reproduced:
        published = f"published {known.value} ± {known.within} ({known.source})"
        lines.append(f"{known.figure} of {known.reference} {found.value:.4g}, {published}")
    if not reproduced:
        lines.append(f"no published value of {record['reference']['name']} in these features")
    return [*lines, "passed" if record["passed"] else "failed"]
