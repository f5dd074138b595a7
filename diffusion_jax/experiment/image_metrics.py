"""Metrics of images in an experiment: the features, the reference and the metrics that the config names."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.addresses import expand
from diffusion_jax.data.image_source import open_images
from diffusion_jax.data.locked import locked
from diffusion_jax.errors import InputError
from diffusion_jax.experiment.build import Experiment, load_split
from diffusion_jax.features import FEATURES, Extractor
from diffusion_jax.metrics import IMAGE_METRICS, FeatureSet, ImageMetric, Measured, extract
from diffusion_jax.metrics.image_metric import result_name
from diffusion_jax.metrics.moments import Statistics
from diffusion_jax.metrics.statistics_file import read_statistics_or_images, write_statistics
from diffusion_jax.parallel.distributed import run_on_first

Done = Callable[[int], object]  # Called with the number of images of each batch.
# (what is computed, number of images) -> context with the function that counts them.
Watch = Callable[[str, int], contextlib.AbstractContextManager[Done]]
SPLITS = ("train", "test")
STATISTICS = "statistics.npz"  # Mean and covariance, beside the features of a reference.


@contextlib.contextmanager
def _unwatched(what: str, num_images: int) -> Iterator[Done]:
    del what, num_images
    yield lambda count: None


@dataclasses.dataclass(frozen=True)
class Judge:
    """All that images are measured with.

    Attributes:
      extractor: The network that makes their features.
      metrics: The metrics that the config names, and that measure images.
      reference: What they are compared with; None if no metric needs it.
      provenance: What the results depend on besides the images, as JSON holds it.
      mesh: Devices.
      batch_size: Images per batch.
    """

    extractor: Extractor
    metrics: Mapping[str, ImageMetric]
    reference: FeatureSet | None
    provenance: Mapping[str, Any]
    mesh: jax.sharding.Mesh
    batch_size: int

    def features_of(
        self, images: data.Split, name: str, folder: Path | None = None, watch: Watch = _unwatched
    ) -> FeatureSet:
        """Returns the features of images, which `watch` says are computed; see `metrics.extract`."""
        with watch(f"features of {name}", images.num_images) as done:
            rows = extract(
                self.extractor,
                images,
                self.mesh,
                batch_size=self.batch_size,
                folder=folder,
                done=done,
            )
        return FeatureSet(
            name,
            rows,
            logits=self.extractor.logits,
            read=lambda indices: images.read(indices)["image"],
        )

    def check_number(self, num_images: int, name: str) -> None:
        """Raises if images are too few for one of the metrics, before their features are computed.

        Raises:
          InputError: They are.
        """
        for metric_name, metric in self.metrics.items():
            least = metric.least(self.extractor.num_features)
            if num_images < least:
                raise InputError(
                    f"{name}: {num_images} images are too few for {metric_name}, which needs {least} with the "
                    f"{self.extractor.num_features} features of {self.extractor.name}; {metric.remedy}"
                )

    def measure(self, images: FeatureSet) -> dict[str, Measured]:
        """Returns what each metric says, by its name; process 0 calls this."""
        return {
            name: metric.measure(images, self.reference if metric.has_reference else None)
            for name, metric in self.metrics.items()
        }

    @property
    def figure_names(self) -> list[str]:
        """Names of all figures."""
        return [
            result_name(name, self.extractor)
            for metric in self.metrics.values()
            for name in metric.figures
        ]

    def figures(self, measured: Mapping[str, Measured]) -> dict[str, float]:
        """Returns all figures by the names that logs and tables have for them, with their errors as `NAME_stderr`."""
        figures = {}
        for result in measured.values():
            for name, figure in result.figures.items():
                full = result_name(name, self.extractor)
                figures |= {full: figure.value, f"{full}_stderr": figure.stderr}
        return figures


def summarize(result: Measured, extractor: Extractor) -> str:
    """Returns the figures in words, such as "kid_lite0 0.0012 ± 0.0003"."""
    return ", ".join(
        f"{result_name(name, extractor)} {figure.value:.5g}"
        + ("" if np.isnan(figure.stderr) else f" ± {figure.stderr:.2g}")
        for name, figure in result.figures.items()
    )


def image_metrics(config: ConfigDict) -> list[str]:
    """Returns the names in eval.metrics of metrics of images."""
    return [name for name in dict.fromkeys(config.eval.metrics) if name in IMAGE_METRICS]


def _metrics(config: ConfigDict) -> dict[str, ImageMetric]:
    fields = dict(config.eval)
    return {
        name: IMAGE_METRICS[name].from_fields(fields, seed=config.eval.seed)
        for name in image_metrics(config)
    }


def metric_options(config: ConfigDict, name: str) -> dict[str, Any]:
    """Returns the options of a metric of images that the config sets."""
    return {field: config.eval[field] for field in IMAGE_METRICS[name].options}


def drawn_classes(exp: Experiment, num_images: int) -> tuple[int, ...] | None:
    """Returns the classes of images that are drawn to be measured: at random, as often as in the training images.

    All classes in turn would be a stratified sample, whose kernel distance is biased and whose errors are wrong.

    Args:
      exp: The experiment.
      num_images: Number of images; more images have the same first classes.

    Returns:
      A class for each image; `sample.labels` if that is set; None for an unconditional model.
    """
    fields = exp.config.sample
    if not exp.label_classes or fields.labels is not None:
        return fields.labels
    try:  # Of a classifier's own classes there are no counts.
        split = load_split(exp.config, "train") if exp.conditional else None
        counts = np.array(split and split.class_counts or (), np.float64)
    except InputError as error:  # A reference of one's own needs no training images.
        warnings.warn(f"all classes are drawn equally often, since {error}", stacklevel=2)
        counts = np.zeros(0)
    shares = counts[: exp.label_classes]
    if len(shares) < exp.label_classes or not shares.any():  # They are not counted.
        shares = np.ones(exp.label_classes)
    rng = np.random.default_rng([fields.seed, 0])
    return tuple(rng.choice(exp.label_classes, num_images, p=shares / shares.sum()).tolist())


def make_extractor(config: ConfigDict, load_split: Callable[[str], data.Split]) -> Extractor:
    """Returns the features that the config names, with their weights.

    Raises:
      InputError: The weights are missing, or not what they claim to be; the data has no labels to train on.
    """
    return FEATURES[config.eval.features].from_fields(
        dict(config.eval), cache_dir=cache_dir(config), split=lambda: load_split("train")
    )


def cache_dir(config: ConfigDict) -> Path:
    """Returns the folder of weights and of features of references."""
    folder = config.data.cache_dir
    return data.default_cache_dir() if folder is None else Path(expand(folder)).absolute()


def make_judge(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    load_split: Callable[[str], data.Split],
    watch: Watch = _unwatched,
    *,
    num_drawn: int | None = None,
) -> Judge:
    """Returns what the config measures images with; the reference's features are computed once and kept.

    Args:
      config: A valid config.
      mesh: Devices.
      load_split: "train" or "test" -> the data.
      watch: Shows the progress of the reference's features.
      num_drawn: Number of images that will be drawn, if any: too few are refused before the reference is read.

    Raises:
      InputError: Weights, or a reference, that are missing or wrong.
    """
    extractor, metrics = make_extractor(config, load_split), _metrics(config)
    said: dict[str, Any] = {
        "features": {
            "name": extractor.name,
            "weights_sha256": extractor.weights_sha256,
            "preprocessing": extractor.preprocessing,
            "published": extractor.published,
        }
    }
    judge = Judge(extractor, metrics, None, said, mesh, config.eval.batch_size)
    if num_drawn is not None:
        judge.check_number(num_drawn, "eval.num_images")
    if not any(metric.has_reference for metric in metrics.values()):
        return judge
    reference, of_reference = _reference(judge, config, load_split, watch)
    said = {**said, "reference": of_reference}
    return dataclasses.replace(judge, reference=reference, provenance=said)


def _reference(
    judge: Judge, config: ConfigDict, load_split: Callable[[str], data.Split], watch: Watch
) -> tuple[FeatureSet, dict[str, Any]]:
    name = config.eval.reference
    if name in SPLITS:
        images = load_split(name)
    elif Path(expand(name)).suffix.lower() == ".npz":
        contents = read_statistics_or_images(Path(expand(name)), "eval.reference")
        if contents.images is None:
            assert contents.statistics is not None
            _check_made_by(
                contents.made_by, contents.statistics.num_features, judge.extractor, name
            )
            digest = hashlib.sha256(Path(expand(name)).read_bytes()).hexdigest()
            said = {"name": name, "num_images": contents.statistics.num_images, "sha256": digest}
            return FeatureSet(name, known_statistics=contents.statistics), said
        images = contents.images
    else:
        images = open_images(Path(expand(name)), "eval.reference")
    if images.num_images == 0:
        raise InputError(f"eval.reference is {name!r}, but there are no such images")
    judge.check_number(images.num_images, "eval.reference")
    fingerprint = data.content_digest(images)
    folder = _folder(judge.extractor, fingerprint, cache_dir(config))
    said = {
        "name": name,
        "num_images": images.num_images,
        "image_shape": images.image_shape,
        "fingerprint": fingerprint,
        "statistics": str(folder / STATISTICS),
    }
    return _kept_features(judge, images, name, folder, watch), said


def _folder(extractor: Extractor, fingerprint: str, cache: Path) -> Path:
    """Returns the folder of a reference's features."""
    decided = (fingerprint, extractor.name, extractor.weights_sha256, extractor.preprocessing)
    digest = hashlib.sha256(repr(decided).encode()).hexdigest()[:16]
    return cache / "features" / f"reference-{extractor.name}-{digest}"


def _check_made_by(
    made_by: tuple[str, str, str], num_features: int, extractor: Extractor, name: str
) -> None:
    """Raises if statistics in a file are those of other features; warns if it does not say."""
    ours = (extractor.name, extractor.weights_sha256, extractor.preprocessing)
    for what, theirs, own in zip(
        ("features", "weights", "preprocessing"), made_by, ours, strict=True
    ):
        if theirs and theirs != own:
            raise InputError(
                f"eval.reference: the statistics in {name} have the {what} {theirs!r}, not {own!r}; compute them anew "
                "from the images, or set eval.features and its options"
            )
    if num_features != extractor.num_features:
        raise InputError(
            f"eval.reference: the statistics in {name} are of {num_features} features, but {extractor.name} has "
            f"{extractor.num_features}"
        )
    if not all(made_by):
        warnings.warn(
            f"eval.reference: {name} does not say which features, weights and resize its statistics are of; they are "
            f"taken to be those of {extractor.name} ({extractor.preprocessing})",
            stacklevel=1,
        )


def _kept_features(
    judge: Judge, images: data.Split, name: str, folder: Path, watch: Watch
) -> FeatureSet:
    """Returns the features of a reference, computed unless they are in the cache."""
    with contextlib.ExitStack() as stack:

        def lock() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / "lock"))

        run_on_first("lock of a reference", lock)  # Another command may be computing them.
        kept = judge.features_of(images, name, folder, watch)
        known = run_on_first(
            "statistics of a reference", lambda: _kept_statistics(kept, folder, judge.extractor)
        )
    return dataclasses.replace(kept, known_statistics=known)


def _kept_statistics(kept: FeatureSet, folder: Path, extractor: Extractor) -> Statistics:
    """Returns the statistics of a reference, computed unless they are beside its features."""
    path = folder / STATISTICS
    if path.exists():
        with contextlib.suppress(InputError):
            known = read_statistics_or_images(path, "").statistics
            if known is not None and known.num_images == len(kept.rows("fd")):
                return known
    write_statistics(path, kept.statistics, extractor)
    return kept.statistics
