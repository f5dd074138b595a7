"""The variational bound of the images of a split: totals with standard errors, and the terms step by step.

Sums are kept by part, a batch of images each, on the host in float64. A part that has been measured is written to a
file, so that a killed job goes on where it was, and a larger one of the same kind starts from a smaller one.
"""

import contextlib
import dataclasses
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax import data
from diffusion_jax.data.transforms import to_model_range
from diffusion_jax.errors import InputError
from diffusion_jax.keys import indexed
from diffusion_jax.likelihood.bound import Bound
from diffusion_jax.likelihood.progressive import GREY_LEVELS
from diffusion_jax.parallel import sharding

NAMED_STEPS = 10


@dataclasses.dataclass(frozen=True)
class Part:
    """What some images contribute; float64. Sums over the images are by step of the grid, noise first.

    Attributes:
      indices: Which images.
      prior: L_T of each image, in bits per dimension.
      rate: L_T + ... + L_1 of each image.
      distortion: L_0 of each image.
      x0_mse: Mean squared error of each image's x_0 as predicted at the last point before the data.
      count: Number of finite terms of each step.
      terms: Sum of these.
      squares: Sum of their squares.
      x0_errors: Sum of the squared errors of x_0 as predicted where the step begins.
      eps_errors: The same of eps.
      not_finite: Number of terms of each step that are not finite.
      scale: Number of steps that each term but L_0 stands for, as in `Bound`.
    """

    indices: Int[np.ndarray, " b"]
    prior: Float[np.ndarray, " b"]
    rate: Float[np.ndarray, " b"]
    distortion: Float[np.ndarray, " b"]
    x0_mse: Float[np.ndarray, " b"]
    count: Int[np.ndarray, " n"]
    terms: Float[np.ndarray, " n"]
    squares: Float[np.ndarray, " n"]
    x0_errors: Float[np.ndarray, " n"]
    eps_errors: Float[np.ndarray, " n"]
    not_finite: Int[np.ndarray, " n"]
    scale: Float[np.ndarray, ""] | np.float64


class Estimate(NamedTuple):
    """A mean over images and its standard error, NaN for one image; both NaN if that of any image is not finite."""

    value: float
    stderr: float


@dataclasses.dataclass(frozen=True)
class BitsPerDim:
    """The bound of the images of a split, in bits per dimension.

    Attributes:
      total: The bound on -log2 p(x_0): rate + distortion.
      rate: L_T + ... + L_1.
      prior: L_T.
      distortion: L_0.
      rmse: Root of the mean squared error of x_0 as predicted at the last point before the data, in grey levels.
      num_images: Number of images.
      terms: Mean of each step's L_{t-1}, from noise to data, the last L_0; NaN for a step of which a term is not
        finite, or none was drawn.
      terms_stderr: Its standard error over the images.
      contributions: What each step adds to the bound: its mean term, or, of a sample of the terms, an unbiased
        estimate of that, 0 for a step that was not drawn. All but the last add up to rate - prior.
      x0_mse: Mean squared error of x_0 as predicted where the step begins, in the model's range [-1, 1].
      eps_mse: The same of eps.
      count: Number of finite terms of each step.
      not_finite: Number of terms of each step that are not finite.
    """

    total: Estimate
    rate: Estimate
    prior: Estimate
    distortion: Estimate
    rmse: Estimate
    num_images: int
    terms: Float[np.ndarray, " n"]
    terms_stderr: Float[np.ndarray, " n"]
    contributions: Float[np.ndarray, " n"]
    x0_mse: Float[np.ndarray, " n"]
    eps_mse: Float[np.ndarray, " n"]
    count: Int[np.ndarray, " n"]
    not_finite: Int[np.ndarray, " n"]


def part_of(indices: Int[np.ndarray, " b"], bound: Bound, num_steps: int) -> Part:
    """Returns what these images contribute.

    Args:
      indices: Indices of the images.
      bound: Their bound, on the host.
      num_steps: Number of steps of the grid.
    """
    terms, x0_mse, eps_mse = (
        np.asarray(values, np.float64) for values in (bound.terms, bound.x0_mse, bound.eps_mse)
    )
    prior = np.asarray(bound.prior, np.float64)
    finite = np.isfinite(terms)
    steps = np.asarray(bound.steps)

    def by_step(values: np.ndarray, where: np.ndarray) -> np.ndarray:
        return np.bincount(steps[where], weights=values[where], minlength=num_steps)

    return Part(
        indices=np.asarray(indices),
        prior=prior,
        rate=prior + float(bound.scale) * terms[:-1].sum(0),
        distortion=terms[-1],
        x0_mse=x0_mse[-1],
        count=np.bincount(steps[finite], minlength=num_steps),
        terms=by_step(terms, finite),
        squares=by_step(np.square(terms), finite),
        x0_errors=by_step(x0_mse, finite),
        eps_errors=by_step(eps_mse, finite),
        not_finite=np.bincount(steps[~finite], minlength=num_steps),
        scale=np.float64(bound.scale),
    )


def combine(parts: list[Part]) -> BitsPerDim:
    """Returns the means over all images of some parts."""
    prior, rate, distortion, x0_mse = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("prior", "rate", "distortion", "x0_mse")
    )
    count, terms, squares, x0_errors, eps_errors, not_finite = (
        np.sum([getattr(part, name) for part in parts], axis=0)
        for name in ("count", "terms", "squares", "x0_errors", "eps_errors", "not_finite")
    )
    # L_0 is among the terms of every image.
    scales = np.append(np.full(len(terms) - 1, parts[0].scale), 1.0)
    mse = _estimate(x0_mse)
    rmse = np.sqrt(mse.value)
    with np.errstate(divide="ignore", invalid="ignore"):
        known = np.where((count > 0) & (not_finite == 0), count, np.nan)
        mean = terms / known
        variance = np.maximum(squares / known - np.square(mean), 0) * known / (known - 1)
        return BitsPerDim(
            total=_estimate(rate + distortion),
            rate=_estimate(rate),
            prior=_estimate(prior),
            distortion=_estimate(distortion),
            # The root's slope at the mean: d sqrt(m) = dm / (2 sqrt(m)).
            rmse=Estimate(
                float(GREY_LEVELS * rmse), float(GREY_LEVELS * mse.stderr / np.float64(2 * rmse))
            ),
            num_images=len(prior),
            terms=mean,
            terms_stderr=np.sqrt(variance / known),
            contributions=np.where(not_finite > 0, np.nan, scales * terms / len(prior)),
            x0_mse=x0_errors / known,
            eps_mse=eps_errors / known,
            count=count,
            not_finite=not_finite,
        )


def _estimate(values: Float[np.ndarray, " n"]) -> Estimate:
    stderr = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    value = float(values.mean())
    return Estimate(value, float(stderr)) if np.isfinite(value) else Estimate(np.nan, np.nan)


def not_finite_terms(result: BitsPerDim, time: Float[np.ndarray, " points"]) -> str | None:
    """Says how many terms are not finite and at which times, those of the grid's points; None if all are."""
    wrong = np.flatnonzero(result.not_finite)
    if not len(wrong):
        return None
    times = [f"{t:g}" for t in time[wrong][::-1]]
    named = ", ".join(times[:NAMED_STEPS]) + (", …" if len(times) > NAMED_STEPS else "")
    return f"{result.not_finite.sum()} terms of the bound are not finite, at t = {named}: its mean is not either"


def make_bound_measure(
    bound: Callable[..., Bound],
    num_steps: int,
    split: data.Split,
    mesh: jax.sharding.Mesh,
    key: Key[Array, ""],
    *,
    conditional: bool,
    num_images: int,
    batch_size: int,
) -> Callable[..., BitsPerDim]:
    """Returns (params, folder=None, done=None) -> the bound of the first `num_images` of a split, the same every time.

    Neither the devices nor `batch_size` change it beyond float rounding. With a folder, each part is written there, and
    what is there already is not measured again. `done` is called with the number of images of each part.

    Args:
      bound: (params, x0, labels, keys) -> Bound, to be compiled; x0 in [-1, 1], labels may be None.
      num_steps: Number of steps of its grid.
      split: Images, uint8: the 256 levels that a discretised decoder knows.
      mesh: Devices.
      key: Decides noise and times.
      conditional: Whether `bound` is given labels.
      num_images: Number of images, at most; fewer if the split is smaller.
      batch_size: Images at once, rounded up to a multiple of the devices.

    Raises:
      InputError: The split has no images.
    """
    total = min(num_images, split.num_images)
    if total == 0:
        raise InputError("this split of the data has no images")
    size = -(-min(batch_size, total) // mesh.size) * mesh.size
    batched = sharding.batch_sharding(mesh)
    rows = sharding.local_rows(batched, size)

    def of_rows(params: Any, batch: dict[str, Any], indices: Any) -> tuple:
        x0 = to_model_range(batch["image"])
        labels = batch["label"] if conditional else None
        return tuple(bound(params, x0, labels, indexed(key, indices)))

    # Of prior, terms, steps, x0_mse, eps_mse and scale.
    out_axes = (0, 1, 1, 1, 1, None)
    compiled = jax.jit(sharding.over_batch(of_rows, mesh, out_axes=out_axes))

    def measure(
        params: Any, folder: Path | None = None, done: Callable[[int], object] | None = None
    ) -> BitsPerDim:
        parts = [] if folder is None else list(_read_parts(folder, total, num_steps))
        missing = np.setdiff1d(np.arange(total), [i for part in parts for i in part.indices])
        for part in parts:
            _tell(done, part)
        for first in range(0, len(missing), size):
            indices = missing[first : first + size]
            padded = np.resize(indices, size)[rows]
            inputs = sharding.put(batched, (split.read(padded), padded.astype(np.int32)))
            whole = Bound(*sharding.fetch(compiled(params, *inputs)))
            count = len(indices)
            kept = jax.tree.map(lambda a, n=count: a[..., :n] if np.ndim(a) else a, whole)
            part = part_of(indices, kept, num_steps)
            parts.append(part)
            if folder is not None and jax.process_index() == 0:
                _write_part(folder, part)
            _tell(done, part)
        return combine(parts)

    return measure


def _tell(done: Callable[[int], object] | None, part: Part) -> None:
    if done is not None:
        done(len(part.indices))


def _write_part(folder: Path, part: Part) -> None:
    """Writes one part; a kill leaves either the whole file or none."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{part.indices[0]:08}-{part.indices[-1]:08}.npz"
    unfinished = path.with_suffix(f".{os.getpid()}.part")  # Another command may measure the same.
    with unfinished.open("wb") as file:
        np.savez(file, **vars(part))
    unfinished.replace(path)


def _read_parts(folder: Path, total: int, num_steps: int) -> Iterator[Part]:
    """Yields the parts that an earlier start has left, of the first `total` images, none of which twice."""
    if jax.process_count() > 1:
        return  # Each process must measure the same batches.
    seen: set[int] = set()
    for path in sorted(folder.glob("*.npz")):
        part = _read_part(path)
        indices = set(part.indices.tolist()) if part else set()
        if part and len(part.count) == num_steps and max(indices) < total and not indices & seen:
            seen |= indices
            yield part


def _read_part(path: Path) -> Part | None:
    """Returns what `_write_part` wrote, or None if the file is damaged or of another version."""
    # Of an empty file NumPy says EOFError.
    with contextlib.suppress(OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        with np.load(path, allow_pickle=False) as arrays:
            return Part(**{f.name: arrays[f.name] for f in dataclasses.fields(Part)})
    return None
