"""`--mode=export`: writes a run for other libraries, as a single file, or as a program."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import diffusion_jax
from diffusion_jax import config as config_lib
from diffusion_jax.addresses import expand
from diffusion_jax.commands.job import open_run
from diffusion_jax.errors import InputError, choose, reason
from diffusion_jax.experiment.exporting import export_sampler
from diffusion_jax.interchange import diffusers, diffusers_export, hub, single
from diffusion_jax.interchange.model_card import model_card
from diffusion_jax.models.networks import UNet, count_parameters
from diffusion_jax.reading import json_text
from diffusion_jax.reading.regular import read_regular
from diffusion_jax.runs import Run
from diffusion_jax.runs.create import check_free
from diffusion_jax.writing.atomic import atomic_write

PICTURE = "samples.png"


def export_checkpoint(
    config: ConfigDict, workdir: Path, *, format: str | None, target: str | None
) -> int:
    """Writes the parameters of a run in a folder of their own, with a model card; returns the exit status.

    Args:
      config: Of the run.
      workdir: Folder of the run.
      format: A key of `TARGETS`.
      target: The folder to make, or hf://owner/name, a repository of the hub.

    Raises:
      InputError: The format has no such network, process or sampler, the folder holds something, or the hub refuses.
    """
    known = ", ".join(TARGETS)
    if not format or not target:
        raise InputError(f"--mode=export needs --format, one of {known}, and --target=FOLDER")
    choose("format", format, TARGETS)
    if hub.is_address(target):
        address = hub.check(target)
        run, _ = open_run(config, workdir)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, address.name)
            _write(folder, run, workdir, format)
            target = hub.upload(folder, address)
    else:
        folder = Path(expand(target))
        check_free(folder, "--target")
        run, _ = open_run(config, workdir)
        _write(folder, run, workdir, format)
    print(f"exported step {run.step} as {format} to {target}", file=sys.stderr)
    return 0


def _write(folder: Path, run: Run, workdir: Path, format: str) -> None:
    """Writes the folder of an export, whole or not at all."""
    try:
        with atomic_write(folder) as unfinished:
            unfinished.mkdir(parents=True)
            TARGETS[format](unfinished, run)
            _write_card(unfinished, run, workdir, format, folder.name)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {reason(error)}") from error


def _write_diffusers(folder: Path, run: Run) -> None:
    unet = run.module
    if not isinstance(unet, UNet):
        raise InputError(f"the model {run.config.model.name!r} is no U-Net, as diffusers has them")
    fields = dict(config_lib.fields(run.config))
    diffusers_export.write(folder, unet, run.image_shape, run.params, fields)
    _write_description(folder / diffusers.DESCRIPTION, run)


def _write_single(folder: Path, run: Run) -> None:
    params = jax.tree.map(np.asarray, run.params)
    single.write(folder / single.NAME, params, _description(run))


def _write_program(folder: Path, run: Run) -> None:
    (folder / "sampler.stablehlo").write_bytes(export_sampler(run, run.params))


TARGETS: dict[str, Callable[[Path, Run], None]] = {
    "diffusers": _write_diffusers,
    "single": _write_single,
    "stablehlo": _write_program,
}


def _description(run: Run) -> single.Description:
    config = json.loads(config_lib.to_json(run.training_config))
    source = {"diffusion_jax": diffusion_jax.__version__, "checkpoint": run.digest}
    return single.Description(config, run.image_shape, run.class_names, run.step, source)


def _write_description(path: Path, run: Run) -> None:
    path.write_text(json.dumps(_description(run).as_json(), indent=2) + "\n")


def _write_card(folder: Path, run: Run, workdir: Path, form: str, title: str) -> None:
    """Writes README.md, and the newest samples beside it, if there are any."""
    grids = sorted(workdir.glob("samples/*/grid.png"), key=lambda path: path.stat().st_mtime)
    grids = grids or sorted(workdir.glob("samples/*.png"), key=lambda path: path.stat().st_mtime)
    if grids:
        shutil.copyfile(grids[-1], folder / PICTURE)
    card = model_card(
        title,
        form,
        _facts(run, workdir),
        _results(workdir, "evaluate"),
        json.loads(config_lib.to_json(run.training_config)),
        classes=run.class_names,
        conditional=run.conditional,
        picture=PICTURE if grids else None,
    )
    (folder / "README.md").write_text(card)


def _facts(run: Run, workdir: Path) -> dict[str, Any]:
    """Returns what the recipe is, in a few lines."""
    config, origin = run.config, _results(workdir, "import")
    source = str(origin.get("source", ""))
    name = source if source.startswith("hf://") else Path(source).name
    data = config.data.name if not origin else f"as {name} was trained"
    return {
        "data": data,
        "images": " x ".join(map(str, run.image_shape)),
        "network": f"{config.model.name}, {count_parameters(run.params):,} parameters",
        "process": f"{config.process.name}, predicting {config.process.prediction}",
        "step": run.step,
        "average of the parameters": run.config.sample.ema,
        "sampler": f"{config.sampler.name}, {config.sampler.num_steps or 'all'} steps",
        "config hash": run.config_hash,
        "checkpoint": run.digest,
        **({"imported from": f"{name}, of {origin.get('format')}"} if origin else {}),
        "exported by": f"diffusion_jax {diffusion_jax.__version__}",
    }


def _results(workdir: Path, mode: str) -> dict[str, Any]:
    """Returns the latest results of a mode; empty if there are none that can be read."""
    try:
        found = json_text.parse_object(
            read_regular(workdir / "results" / f"{mode}.json"), finite=False
        )
    except (OSError, ValueError):
        return {}
    found.pop("earlier", None)
    return {
        name: value
        for name, value in found.items()
        if mode != "evaluate" or isinstance(value, dict)
    }
