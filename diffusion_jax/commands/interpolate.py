"""`--mode=interpolate`: images between two, mixed at several times (Ho et al., 2020, Figure 8) or as latents."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8
from ml_collections import ConfigDict

from diffusion_jax.commands import job
from diffusion_jax.commands.edit_inputs import Inputs, load_inputs
from diffusion_jax.commands.environment import own
from diffusion_jax.commands.images_bar import ImagesBar
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import editing, sampling
from diffusion_jax.experiment.checks import check_invertible, check_temperature, warn_of_times
from diffusion_jax.parallel.map_batches import map_batches
from diffusion_jax.parallel.resumable import Arrays, Batches, Compute, rows_of
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.reporting import pictures, results
from diffusion_jax.runs import Run
from diffusion_jax.samplers import Sampler, nearest_point
from diffusion_jax.writing.atomic import remove

SHOWN = 4  # Pairs.
EIGHTHS = 8


class _Rows(NamedTuple):
    """Inputs of the program for all images between pairs, ordered by pair, then by fraction.

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


class _Task(NamedTuple):
    """Inputs of all images between pairs, and the folder of their batches.

    Attributes:
      run: The run.
      mesh: Devices.
      inputs: Whole pairs.
      rows: What is between them.
      batch_size: Images at once.
      folder: Of the batches.
      bar: Counts the images.
    """

    run: Run
    mesh: jax.sharding.Mesh
    inputs: Inputs
    rows: _Rows
    batch_size: int
    folder: Path
    bar: ImagesBar


def interpolate(config: ConfigDict, workdir: Path) -> int:
    """Draws what lies between the images of `edit.images`, or test images, taken in pairs; returns the exit status.

    Writes edits/<job>/: interpolation.npz (uint8 `images`, pairs × rows × images × H × W × C, `rows`, `given` pairs and
    their `fraction`), interpolation.png (a block a pair: a row a time, and one of the latents), job.json, and
    results/interpolate.json. Finished batches survive a kill.

    Raises:
      InputError: No checkpoint, an image that cannot be used, or fewer than two.
      RunError: No sound checkpoint; disk full.
    """
    started = time.monotonic()
    _check_guide(config)
    check_invertible(config)
    check_temperature(config, config.edit.latents, "edit.latents=false")
    run, mesh = job.open_run(config, workdir)
    fields, sample = run.config.edit, run.config.sample
    inputs = _pairs(run, load_inputs(run, fields.images, sample.num_images, sample.labels))
    sampler = sampling.make_sampler(run)
    points = _points(run, sampler)
    rows, fraction = _between(inputs, fields.num_between + 2)
    names = [f"t = {time:.4g}" for time in sampler.grid.time[points]] + ["latents"] * fields.latents
    folder = workdir / "edits" / _job_name(run, inputs, names)
    own(folder, "interpolate")  # Before hours of drawing.
    num_rows, total = len(points) + fields.latents, len(rows.pair)
    batch_size = min(sample.batch_size, total)
    with ImagesBar(num_rows * total, 1, batch_size) as bar:
        task = _Task(run, mesh, inputs, rows, batch_size, folder / "parts", bar)
        # First, since an adaptive sampler that is cut short here can say how far it came.
        latents, encodings = _latents(task) if fields.latents else (None, [])
        drawn = _mixed_at(task, points)
    if jax.process_index() != 0:
        return 0
    nfe = _nfe(run, sampler, points, names)
    if latents is not None:
        drawn.append(latents)
        decodings = _evaluations(latents.read_all())
        nfe["latents"] = editing.latents_nfe(run, encodings, decodings)
    between = _read(run, drawn, len(fraction))
    _save(folder, inputs, between, names, fraction)
    remove(folder / "parts")
    result = {
        "num_pairs": len(between),
        **job.record(run, nfe, inputs.labels_to_record(run.num_classes)),
        "edit": fields.to_dict(),
        "seconds_this_start": round(time.monotonic() - started, 1),
    }
    done = f"{num_rows * len(fraction)} images for each of {len(between)} pair(s)"
    job.save_result(workdir, "interpolate", folder, result, done)
    return 0


def _check_guide(config: ConfigDict) -> None:
    """Raises if a classifier is to guide images that have no class."""
    if config.sampler.classifier is not None:
        raise InputError(
            "sampler.classifier is set, but what lies between two images has no class of its own; leave it unset"
        )


def _read(run: Run, drawn: list[Batches], columns: int) -> UInt8[np.ndarray, "p r k h w c"]:
    """Returns the images of each pair, in rows of so many."""
    images = np.concatenate([part["images"] for batches in drawn for part in batches.read_all()])
    return images.reshape(len(drawn), -1, columns, *run.image_shape).swapaxes(0, 1)


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
    run: Run, sampler: Sampler, points: list[int], names: list[str]
) -> dict[str, int | float | None]:
    """Returns the network evaluations of an image mixed at each point; None of an adaptive sampler."""
    last = sampler.grid.num_steps
    return {
        name: sampling.evaluations_of(run, sampler.cost(point, last))
        for name, point in zip(names, points, strict=False)
    }


def _points(run: Run, sampler: Sampler) -> list[int]:
    """Returns the points of the grid to mix at, noise first: those nearest to `edit.times`, or to eighths of all."""
    if run.config.edit.latents and sampler.grid.num_steps < 2:
        raise InputError("edit.latents needs two steps or more; the sampler has one")
    times = run.config.edit.times
    if times is None:
        last, data = make_grid(run.process).time[[0, -1]]
        times = [data + (last - data) * k / EIGHTHS for k in range(1, EIGHTHS + 1)]
    points = sorted({nearest_point(sampler.grid, t) for t in times})
    warn_of_times(sampler.grid, run.config.edit.times or (), points, "edit.times")
    return points


def _pairs(run: Run, inputs: Inputs) -> Inputs:
    """Returns whole pairs; two of different classes get none, if the model was trained to do without."""
    if len(inputs.images) < 2:
        raise InputError("edit.images holds one image; interpolation needs two or more, in pairs")
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
    if run.classless:
        pairs[pairs[:, 0] != pairs[:, 1]] = run.num_classes
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


def _mixed_at(task: _Task, points: list[int]) -> list[Batches]:
    """Draws the images of all rows at each point, by one program; returns where they are."""
    run, settings = task.run, sampling.traced_options(task.run)
    program = map_batches(
        editing.make_interpolate(run), task.mesh, task.batch_size, out_axes=(0, 0, 0)
    )

    def draw(point: int, indices: Int64[np.ndarray, " b"]) -> Arrays:
        rows = _take(task.rows, indices)
        ends = task.inputs.images[rows.first], task.inputs.images[rows.second]
        whole = run.params, settings, np.int32(point)
        images, finite, stats = program(whole, (rows.pair, rows.labels, *ends, rows.fraction))
        sampling.check_finished(run, run.params, finite, stats)
        return {"images": images}

    return [_draw(task, f"point{point:05}", functools.partial(draw, point)) for point in points]


def _latents(task: _Task) -> tuple[Batches, list[int]]:
    """Draws the images of all rows on the arcs between the x_T of the pairs.

    Returns:
      Where they are, and the evaluations of each encoding by an adaptive sampler, none by another.
    """
    run, inputs, total = task.run, task.inputs, len(task.inputs.images)
    whole = run.params, sampling.traced_options(run)
    encode = map_batches(editing.make_encode(run), task.mesh, task.batch_size, out_axes=(0, 0))
    decode = map_batches(editing.make_decode(run), task.mesh, task.batch_size, out_axes=(0, 0, 0))

    def encoded_of(indices: Int64[np.ndarray, " b"]) -> Arrays:
        labels = None if inputs.labels is None else inputs.labels[indices]
        rows = indices.astype(np.int32), labels, inputs.images[indices]
        latents, stats = encode(whole, rows)
        sampling.check_finished(run, run.params, np.asarray(stats.finished), stats)
        return {"latents": latents, "evaluations": np.asarray(stats.evaluations)}

    is_sound = rows_of(latents=(np.float32, run.image_shape))
    parts = Batches(task.folder / "encoded", total, is_sound).complete(encoded_of, task.batch_size)
    encoded = np.concatenate([part["latents"] for part in parts])

    def draw(indices: Int64[np.ndarray, " b"]) -> Arrays:
        rows = _take(task.rows, indices)
        ends = encoded[rows.first], encoded[rows.second]
        drawn = decode(whole, (rows.pair, rows.labels, *ends, rows.fraction))
        images, finite, stats = drawn
        sampling.check_finished(run, run.params, finite, stats)
        return {"images": images, "evaluations": np.asarray(stats.evaluations)}

    return _draw(task, "latents", draw), _evaluations(parts)


def _draw(task: _Task, name: str, draw: Compute) -> Batches:
    """Draws the images of all rows that are not there; returns where they are."""
    is_sound = rows_of(images=(np.uint8, task.run.image_shape))
    batches = Batches(task.folder / name, len(task.rows.pair), is_sound)
    finished = batches.finished()
    task.bar.skip(len(finished))
    for part in batches.compute(draw, task.batch_size, finished):
        task.bar.done(len(part["indices"]))
    return batches


def _evaluations(parts: Iterable[Arrays]) -> list[int]:
    return [int(n) for part in parts for n in part.get("evaluations", ())]


def _take(rows: _Rows, indices: Int64[np.ndarray, " b"]) -> _Rows:
    return _Rows(*(None if x is None else x[indices] for x in rows))  # pyright: ignore[reportArgumentType]


def _job_name(run: Run, inputs: Inputs, names: list[str]) -> str:
    fields = run.config.edit
    own = job.by_first_names("edit", editing.inversion_options(run)) if fields.latents else {}
    own.pop("iterations", None)  # In the name of all samplers.
    return job.job_name(
        run,
        rows=names,
        num_between=fields.num_between,
        iterations=fields.get("iterations"),
        images=inputs.digest(),
        **({"inversion": own} if own else {}),
    )
