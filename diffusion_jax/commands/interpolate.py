"""`--mode=interpolate`: images between two, mixed at several times (Ho et al., 2020, Figure 8) or as latents."""

import time
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int32, UInt8
from ml_collections import ConfigDict

from diffusion_jax.commands import job
from diffusion_jax.commands.edit_inputs import Inputs, load_inputs
from diffusion_jax.commands.environment import own
from diffusion_jax.commands.images_bar import ImagesBar
from diffusion_jax.commands.trained import TrainedRun
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import editing, sampling
from diffusion_jax.experiment.checks import check_invertible, check_temperature, warn_of_times
from diffusion_jax.lifecycle import stopping
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.reporting import pictures, results
from diffusion_jax.samplers import Sampler, Solve, nearest_point
from diffusion_jax.samplers.batches import make_program

SHOWN = 4  # Pairs.
EIGHTHS = 8


class _Rows(NamedTuple):
    """What is between all pairs, image by image, as a program takes them: pair after pair, fraction by fraction.

    Attributes:
      pair: Number of the pair, from which the noise comes.
      labels: Class of the pair, or, of two classes, that of the nearer end; None without classes.
      first: Which image lies at fraction 0.
      second: Which one at fraction 1.
      fraction: How far it is on the way.
    """

    pair: Int32[np.ndarray, " n"]
    labels: Int32[np.ndarray, " n"] | None
    first: Int32[np.ndarray, " n"]
    second: Int32[np.ndarray, " n"]
    fraction: Float32[np.ndarray, " n"]


class _Latents(NamedTuple):
    """Images between latents, and what an adaptive sampler has spent on each.

    Attributes:
      images: The images, row by row.
      encodings: Evaluations of each encoding; none of DDIM.
      decodings: Evaluations of each decoding; none of DDIM.
    """

    images: UInt8[np.ndarray, "n h w c"]
    encodings: list[int]
    decodings: list[int]


def interpolate(config: ConfigDict, workdir: Path) -> int:
    """Draws what lies between the images of `edit.images`, or test images, taken in pairs; returns the exit status.

    Writes edits/<job>/: interpolation.npz (uint8 `images`, pairs × rows × images × H × W × C, `rows`, `given` pairs and
    their `fraction`), interpolation.png (a block a pair: a row a time, and one of the latents), job.json, and
    results/interpolate.json.

    Raises:
      InputError: No checkpoint, an image that cannot be used, or fewer than two.
      RunError: No sound checkpoint; disk full.
    """
    started = time.monotonic()
    check_invertible(config)
    check_temperature(config, config.edit.latents, "edit.latents=false")
    run, mesh = job.open_run(config, workdir)
    fields = run.config.edit
    inputs = load_inputs(run)
    if len(inputs.images) < 2:
        raise InputError("edit.images holds one image; interpolation needs two or more, in pairs")
    sampler = sampling.make_sampler(run)
    if fields.latents and sampler.grid.num_steps < 2:
        raise InputError("edit.latents needs two steps or more; the sampler has one")
    points = _points(run, sampler)
    inputs = _labelled(run, inputs)
    rows, fraction = _between(inputs, fields.num_between + 2)
    names = [f"t = {time:.4g}" for time in sampler.grid.time[points]] + ["latents"] * fields.latents
    folder = workdir / "edits" / _job_name(run, inputs, names)
    own(folder, "interpolate")  # Before hours of drawing.
    num_rows = len(points) + fields.latents
    batch_size = min(run.config.sample.batch_size, len(rows.pair))
    with ImagesBar(num_rows * len(rows.pair), 1, batch_size) as bar:
        # First, since an adaptive sampler that is cut short here can say how far it came.
        latents = _latents(run, mesh, inputs, rows, batch_size, bar) if fields.latents else None
        drawn = [_mixed_at(run, mesh, inputs, rows, points, batch_size, bar)]
    nfe = _nfe(run, sampler, points, names)
    if latents is not None:
        drawn.append(latents.images)
        nfe["latents"] = editing.latents_nfe(run, sampler, *latents[1:])
    if jax.process_index() != 0:
        return 0
    between = np.concatenate(drawn).reshape(num_rows, -1, len(fraction), *run.image_shape)
    between = between.swapaxes(0, 1)
    _save(folder, inputs, between, names, fraction)
    result = {
        "num_pairs": len(between),
        **job.record(run, nfe, inputs.known_labels(run.config.model.num_classes)),
        "edit": fields.to_dict(),
        "seconds_this_start": round(time.monotonic() - started, 1),
    }
    done = f"{num_rows * len(fraction)} images for each of {len(between)} pair(s)"
    job.save_result(workdir, "interpolate", folder, result, done)
    return 0


def _save(
    folder: Path,
    inputs: Inputs,
    between: UInt8[np.ndarray, "p r k h w c"],
    names: list[str],
    fraction: Float32[np.ndarray, " k"],
) -> None:
    """Writes the picture of the first pairs, and the arrays of all."""
    given = inputs.images.reshape(-1, 2, *inputs.images.shape[1:])
    picture = pictures.interpolation(given[:SHOWN], between[:SHOWN], names)
    pictures.save_png(folder / "interpolation.png", picture)
    arrays = {"images": between, "rows": names, "given": given, "fraction": fraction}
    results.write_npz(folder / "interpolation.npz", **arrays)


def _nfe(
    run: TrainedRun, sampler: Sampler, points: list[int], names: list[str]
) -> dict[str, int | float | None]:
    """Returns the network evaluations of an image mixed at each point; None of an adaptive sampler."""
    evaluations, last = sampling.evaluations(run.config), sampler.grid.num_steps
    costs = (sampler.cost(point, last) for point in points)
    return {
        name: None if cost is None else cost * evaluations
        for name, cost in zip(names, costs, strict=False)
    }


def _points(run: TrainedRun, sampler: Sampler) -> list[int]:
    """Returns the points of the grid to mix at, noise first: those nearest to `edit.times`, or to eighths of all."""
    times = run.config.edit.times
    if times is None:
        last, data = make_grid(run.process).time[[0, -1]]
        times = [data + (last - data) * k / EIGHTHS for k in range(1, EIGHTHS + 1)]
    points = sorted({nearest_point(sampler.grid, t) for t in times})
    warn_of_times(sampler.grid, run.config.edit.times or (), points, "edit.times")
    return points


def _labelled(run: TrainedRun, inputs: Inputs) -> Inputs:
    """Returns whole pairs; two of different classes get none, if the model was trained to do without."""
    count = len(inputs.images) // 2 * 2
    if count < len(inputs.images):
        warnings.warn(
            f"interpolation takes images in pairs; the last of {len(inputs.images)} is left out",
            stacklevel=1,
        )
    images, labels = inputs.images[:count], inputs.labels
    if labels is None:
        return Inputs(images, None)
    pairs = labels[:count].reshape(-1, 2).copy()
    if run.config.train.label_dropout > 0:
        pairs[pairs[:, 0] != pairs[:, 1]] = run.config.model.num_classes
    return Inputs(images, pairs.ravel())


def _between(inputs: Inputs, columns: int) -> tuple[_Rows, Float32[np.ndarray, " k"]]:
    """Returns the rows of all pairs and fractions, and the fractions."""
    num_pairs = len(inputs.images) // 2
    fraction = np.linspace(0, 1, columns, dtype=np.float32)
    pair = np.arange(num_pairs, dtype=np.int32).repeat(columns)
    each = np.tile(fraction, num_pairs)
    first, second = 2 * pair, 2 * pair + 1
    labels = inputs.labels
    nearer = None if labels is None else np.where(each <= 0.5, labels[first], labels[second])
    return _Rows(pair, nearer, first, second, each), fraction


def _mixed_at(
    run: TrainedRun,
    mesh: jax.sharding.Mesh,
    inputs: Inputs,
    rows: _Rows,
    points: list[int],
    batch_size: int,
    bar: ImagesBar,
) -> UInt8[np.ndarray, "n h w c"]:
    """Returns the images of all rows, point after point; one program draws them all."""
    settings = sampling.settings(run.config)
    program = make_program(editing.make_interpolate(run), mesh, batch_size, out_axes=(0, 0))
    drawn = []
    for point in points:
        for part in _parts(rows, batch_size):
            ends = inputs.images[part.first], inputs.images[part.second]
            whole = run.params, settings, np.int32(point)
            images, finished = program(whole, (part.pair, part.labels, *ends, part.fraction))
            sampling.check_finished(run.config, run.params, finished)
            drawn.append(images)
            bar.done(len(part.pair))
    return np.concatenate(drawn)


def _latents(
    run: TrainedRun,
    mesh: jax.sharding.Mesh,
    inputs: Inputs,
    rows: _Rows,
    batch_size: int,
    bar: ImagesBar,
) -> _Latents:
    """Returns the images of all rows on the arcs between the x_T of the pairs."""
    whole = run.params, sampling.settings(run.config)
    encode = make_program(editing.make_encode(run), mesh, batch_size, out_axes=(0, 0))
    latents, encodings, decodings = [], [], []
    for first in range(0, len(inputs.images), batch_size):
        indices = np.arange(first, min(first + batch_size, len(inputs.images)), dtype=np.int32)
        labels = None if inputs.labels is None else inputs.labels[indices]
        encoded, solve = encode(whole, (indices, labels, inputs.images[indices]))
        encodings += _costs(run, solve)
        latents.append(encoded)
        stopping.check()
    encoded = np.concatenate(latents)
    decode = make_program(editing.make_decode(run), mesh, batch_size, out_axes=(0, 0, 0))
    drawn = []
    for part in _parts(rows, batch_size):
        ends = encoded[part.first], encoded[part.second]
        images, finite, solve = decode(whole, (part.pair, part.labels, *ends, part.fraction))
        if solve is None:
            sampling.check_finished(run.config, run.params, finite)
        decodings += _costs(run, solve)
        drawn.append(images)
        bar.done(len(part.pair))
    return _Latents(np.concatenate(drawn), encodings, decodings)


def _costs(run: TrainedRun, solve: Solve | None) -> list[int]:
    """Returns the evaluations of each image by an adaptive sampler, none by another; refuses unfinished ones."""
    if solve is None:
        return []
    sampling.check_finished(run.config, run.params, np.asarray(solve.finished), solve)
    return np.asarray(solve.evaluations).tolist()


def _parts(rows: _Rows, batch_size: int) -> list[_Rows]:
    firsts = range(0, len(rows.pair), batch_size)
    return [
        _Rows(*(None if x is None else x[first : first + batch_size] for x in rows))  # pyright: ignore[reportArgumentType]
        for first in firsts
    ]


def _job_name(run: TrainedRun, inputs: Inputs, names: list[str]) -> str:
    fields = run.config.edit
    return job.job_name(
        *(run.config, run.step, run.digest),
        rows=names,
        num_between=fields.num_between,
        iterations=fields.iterations,
        images=inputs.digest(),
    )
