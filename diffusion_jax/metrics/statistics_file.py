"""The field's files of statistics and images: mu and sigma of pytorch-fid and EDM, reference batches of ADM."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax.data.image_source import ARRAYS, images_of
from diffusion_jax.data.split import Split
from diffusion_jax.errors import InputError, reason
from diffusion_jax.features import Extractor
from diffusion_jax.metrics.moments import Statistics
from diffusion_jax.reading.npz import read_npz
from diffusion_jax.reporting import results


class NpzContents(NamedTuple):
    """What a file holds; at least one is there.

    Attributes:
      images: Images.
      statistics: Mean and covariance of features.
      made_by: Features, checksum of their weights and preprocessing, where the file says; "" where it does not.
    """

    images: Split | None
    statistics: Statistics | None
    made_by: tuple[str, str, str] = ("", "", "")


def read_statistics_or_images(path: Path, field: str) -> NpzContents:
    """Reads an .npz file.

    It may hold `mu` and `sigma` (pytorch-fid, EDM), images as `arr_0`, with or without statistics (ADM), or as `images`
    (ours).

    Args:
      path: The file.
      field: The setting that names it, for messages.

    Raises:
      InputError: The file holds nothing of this kind, or something else under these names.
    """
    try:
        arrays = read_npz(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{field}: cannot read {path}: {reason(error)}") from error
    statistics = _statistics(arrays, path, field) if {"mu", "sigma"} <= arrays.keys() else None
    has_images = not arrays.keys().isdisjoint(ARRAYS)
    if statistics is None and not has_images:
        raise InputError(
            f"{field}: {path} holds {', '.join(sorted(arrays)) or 'nothing'}; it must hold mu and sigma, or images "
            f"as {' or '.join(ARRAYS)}"
        )
    images = images_of(arrays, path, field) if has_images else None
    made_by = (
        str(arrays.get(name, "")) for name in ("features", "weights_sha256", "preprocessing")
    )
    return NpzContents(images, statistics, tuple(made_by))  # pyright: ignore[reportArgumentType]


def _statistics(arrays: dict[str, np.ndarray], path: Path, field: str) -> Statistics:
    mean, cov = arrays["mu"], arrays["sigma"]
    floats = all(np.issubdtype(a.dtype, np.floating) for a in (mean, cov))
    if not floats or mean.ndim != 1 or cov.shape != (len(mean), len(mean)) or not len(mean):
        raise InputError(
            f"{field}: in {path} mu is {mean.dtype} of shape {mean.shape} and sigma {cov.dtype} of shape {cov.shape}; "
            "they must be the mean and the covariance matrix of features, floats"
        )
    mean, cov = mean.astype(np.float64), cov.astype(np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise InputError(f"{field}: not all numbers in {path} are finite")
    asymmetry = np.abs(cov - cov.T).max()
    if asymmetry > 1e-4 * np.abs(cov).max():
        raise InputError(
            f"{field}: sigma in {path} is not symmetric, so it is no covariance matrix"
        )
    smallest, largest = np.linalg.eigvalsh(cov / 2 + cov.T / 2)[[0, -1]]
    if not smallest >= -1e-4 * largest:
        raise InputError(
            f"{field}: sigma in {path} has eigenvalues from {smallest:.3g} to {largest:.3g}, so it is no covariance "
            "matrix, which has none below 0"
        )
    count = arrays.get("num_images")
    whole = count is not None and count.ndim == 0 and np.issubdtype(count.dtype, np.integer)
    return Statistics(mean, (cov + cov.T) / 2, int(count) if whole else None)  # pyright: ignore


def write_statistics(path: Path, statistics: Statistics, extractor: Extractor) -> None:
    """Writes mu and sigma, which pytorch-fid and EDM read too, and what they were made with."""
    count = statistics.num_images
    results.write_npz(
        path,
        mu=statistics.mean,
        sigma=statistics.cov,
        num_images=None if count is None else np.int64(count),
        features=np.str_(extractor.name),
        weights_sha256=np.str_(extractor.weights_sha256),
        preprocessing=np.str_(extractor.preprocessing),
    )
