"""`--mode=inpaint`: images that keep a part of given ones: pixels, gray values, coarse blocks, or a noisy start."""

from __future__ import annotations

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int64, UInt8
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.commands import job
from diffusion_jax.commands.edit_inputs import Inputs, load_inputs, load_mask
from diffusion_jax.commands.environment import own
from diffusion_jax.commands.image_files import ImageFiles
from diffusion_jax.commands.images_bar import ImagesBar
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import editing, sampling
from diffusion_jax.experiment.checks import check_temperature, warn_of_times
from diffusion_jax.parallel.map_batches import map_batches
from diffusion_jax.reporting import pictures
from diffusion_jax.runs import Run
from diffusion_jax.samplers import Constraint, Sampler
from diffusion_jax.samplers.editing import CONSTRAINTS, ConstraintKind

SHOWN = 12


def inpaint(config: ConfigDict, workdir: Path) -> int:
    """Edits the images of `edit.images`, or test images, as the `edit` group says; returns the exit status.

    Writes edits/<job>/: the files of sample.formats, edit.png (in each column an image as given, what is kept of it,
    and as it is drawn), job.json, and results/inpaint.json. Finished batches survive a kill.

    Raises:
      InputError: No checkpoint, or an image or a mask that cannot be used.
      RunError: No sound checkpoint; disk full.
    """
    started = time.monotonic()
    _check(config)
    run, mesh = job.open_run(config, workdir)
    fields, sample = run.config.edit, run.config.sample
    known = load_mask(fields.mask, run.image_shape) if _needs_mask(fields) else None
    constraint = editing.make_constraint(run, known)
    inputs = load_inputs(run, fields.images, sample.num_images, sample.labels)
    sampler = sampling.make_sampler(run)
    options = _options(run, sampler)
    num_images = len(inputs.images)
    batch_size = min(sample.batch_size, num_images)
    folder = workdir / "edits" / _job_name(run, inputs, known, options)
    own(folder, "inpaint")
    files = ImageFiles(folder, num_images, run.image_shape)
    finished = files.finished()
    bar = ImagesBar(num_images, 1, batch_size, finished=len(finished))
    draw = _make_draw(run, mesh, batch_size, constraint, inputs)
    drawn = job.draw_missing(files, bar, draw, batch_size, finished)
    if jax.process_index() != 0:
        return 0
    picture = _picture(
        inputs.images[:SHOWN], files.head(SHOWN), constraint, CONSTRAINTS[fields.keep]
    )
    pictures.save_png(folder / "edit.png", picture)
    labels = inputs.labels_to_record(run.label_classes)
    paths = files.write(sample.formats, labels, run.names_to_draw)
    result = {
        "num_images": num_images,
        **job.record(run, editing.edit_nfe(run, sampler), labels),
        "edit": {**fields.to_dict(), **options},
        "files": [path.name for path in paths],
        "drawn_this_start": drawn,
        "seconds_this_start": round(time.monotonic() - started, 1),
    }
    job.save_result(workdir, "inpaint", folder, result, f"{num_images} images ({drawn} drawn now)")
    return 0


def _check(config: ConfigDict) -> None:
    """Raises if the edit lacks a field, before the run is read."""
    fields = config.edit
    if _needs_mask(fields) and fields.mask is None:
        raise InputError(
            f"edit.mask is unset; edit.keep={fields.keep} needs a gray PNG, black where kept: "
            "--config.edit.mask=FILE"
        )
    if not CONSTRAINTS[fields.keep].keeps_part and fields.start_t is None:
        raise InputError(
            f"edit.start_t is unset; edit.keep={fields.keep} needs the timestep to start from, such as half of T: "
            "--config.edit.start_t=500"
        )


def _needs_mask(fields: ConfigDict) -> bool:
    return CONSTRAINTS[fields.keep].takes("mask")


def _options(run: Run, sampler: Sampler) -> dict[str, int]:
    """Returns start, resamplings and jump; warns of a start that is not on the sampler's grid."""
    options, start_t = editing.inpaint_options(run, sampler), run.config.edit.start_t
    if start_t is not None:
        check_temperature(run.config, options["start"] == 0, f"edit.start_t={start_t:g}")
        warn_of_times(sampler.grid, [start_t], [options["start"]], "edit.start_t")
    return options


def _make_draw(
    run: Run, mesh: jax.sharding.Mesh, batch_size: int, constraint: Constraint, inputs: Inputs
) -> job.Draw:
    """Returns indices -> the edited images."""
    program = map_batches(
        editing.make_inpaint(run, constraint), mesh, batch_size, out_axes=(0, 0, 0)
    )
    whole = run.params, sampling.traced_options(run)

    def draw(indices: Int64[np.ndarray, " b"]) -> UInt8[np.ndarray, "b h w c"]:
        labels = None if inputs.labels is None else inputs.labels[indices]
        images, finite, stats = program(
            whole, (indices.astype(np.int32), labels, inputs.images[indices])
        )
        sampling.check_finished(run, run.params, finite, stats)
        return images

    return draw


def _job_name(
    run: Run,
    inputs: Inputs,
    known: Bool[np.ndarray, "h w"] | None,
    options: dict[str, int],
) -> str:
    fields = run.config.edit
    own = job.by_first_names("edit", editing.constraint_options(run))
    own.pop("factor", None)  # In the name whatever is kept.
    return job.job_name(
        run,
        **job.by_first_names("edit", {"keep": fields.keep}),
        factor=fields.get("factor"),
        mask=None if known is None else known.tolist(),
        images=inputs.digest(),
        **({"constraint": own} if own else {}),
        **options,
    )


def _picture(
    given: UInt8[np.ndarray, "n h w c"],
    drawn: UInt8[np.ndarray, "n h w c"],
    constraint: Constraint,
    kind: ConstraintKind,
) -> UInt8[np.ndarray, "gh gw c"]:
    """Shows in each column an image as given, what is kept of it (on gray, or as gray values), and as it is drawn."""
    if not kind.keeps_part:
        return pictures.edits(np.stack([given, drawn]), ["given", "drawn"])
    given_x0 = data.to_model_range(jnp.asarray(given))
    kept = kind.as_shown(constraint(jnp.zeros_like(given_x0), given_x0))
    rows = np.stack([given, np.asarray(data.to_uint8(kept)), drawn])
    return pictures.edits(rows, ["given", "kept", "drawn"])
