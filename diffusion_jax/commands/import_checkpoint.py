"""`--mode=import`: makes a run of a checkpoint of another library."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax.addresses import expand
from diffusion_jax.errors import InputError, reason
from diffusion_jax.experiment import build
from diffusion_jax.features.weights import checksum
from diffusion_jax.interchange import SOURCES, Foreign, hub, source_of
from diffusion_jax.interchange.places import by_path
from diffusion_jax.models.networks import count_parameters
from diffusion_jax.runs.create import check_free, create_run
from diffusion_jax.runs.run import NO_DATA


def import_checkpoint(
    config: ConfigDict,
    workdir: Path,
    *,
    source: str | None,
    format: str | None,
    source_settings: str,
    assignments: Sequence[tuple[str, str]],
) -> int:
    """Reads a checkpoint and writes a workdir that the other modes use; returns the exit status.

    Args:
      config: The default one.
      workdir: Folder of the run to make.
      source: Path of the checkpoint, or its address on the hub, hf://owner/name.
      format: A key of `SOURCES`; None: as the names of its files say.
      source_settings: What the checkpoint does not say of itself, in the words of its library.
      assignments: Fields of the command line, such as the data.

    Raises:
      InputError: There is no such checkpoint, it is not what it claims, or the workdir holds something.
    """
    if not source:
        raise InputError("--mode=import needs --source=PATH, a checkpoint")
    check_free(workdir)
    fetched = hub.fetch(source) if hub.is_address(source) else None
    path = Path(expand(source)) if fetched is None else fetched.path
    name = source_of(path) if format is None else SOURCES.choose(format) and format
    kind = SOURCES[name]
    if source_settings and not kind.settings:
        raise InputError(f"--source_settings is for other formats; {name} says all of itself")
    try:
        foreign = kind.make(path=path, settings=source_settings)
    except InputError as error:
        raise InputError(f"{source}: {reason(error)}") from error
    except OSError as error:
        raise InputError(f"cannot read {source}: {reason(error)}") from error
    config = configured(config, foreign.fields, assignments)
    exp = build.build(config, foreign.image_shape, config.model.num_classes, foreign.class_names)
    _check_parameters(exp, foreign, source)
    if fetched is not None:
        foreign = dataclasses.replace(foreign, notes=(*fetched.notes, *foreign.notes))
    origin = _origin(source, name, source_settings, foreign)
    if fetched is not None:
        origin["revision"] = fetched.revision
    create_run(workdir, exp, foreign.params, foreign.trained, foreign.step, origin)
    _tell(name, foreign, workdir)
    return 0


def _check_parameters(exp: build.Experiment, foreign: Foreign, source: str) -> None:
    """Raises if the parameters are not those of the network that the config describes."""
    wanted = by_path(jax.eval_shape(exp.network.init, jax.random.key(0)))
    found = by_path(foreign.params)
    for path in {**wanted, **found}:
        has, needs = found.get(path), wanted.get(path)
        if has is None or needs is None or has.shape != needs.shape:
            raise InputError(
                f"{source}: {path} has the shape {None if has is None else has.shape}; the network of its config has "
                f"{None if needs is None else needs.shape}"
            )


def configured(
    config: ConfigDict, fields: Mapping[str, Any], assignments: Sequence[tuple[str, str]]
) -> ConfigDict:
    """Returns a valid config with the fields of a checkpoint, then those of the command line.

    Args:
      config: The default one, which is changed.
      fields: What the checkpoint says, by name.
      assignments: Pairs of a field and its text.

    Raises:
      InputError: A field is unknown, or fields do not fit one another.
    """
    config_lib.select(config, "data.name", NO_DATA)
    # Those that choose components come first, since they reset the options of others.
    choosers = {chooser for field in config_lib.FIELDS.values() for chooser in field.owners}
    for name in sorted(fields, key=lambda name: name not in choosers):
        if name in choosers:
            config_lib.select(config, name, fields[name])
        group, leaf = config_lib.locate(config, name)
        group[leaf] = fields[name]
    config_lib.override(config, assignments)
    build.validate(config)
    return config


def _origin(source: str, name: str, settings: str, foreign: Foreign) -> dict[str, Any]:
    files = {file.name: checksum(file) for file in foreign.files}
    return {
        "source": source,
        "format": name,
        **({"settings": settings} if settings else {}),
        "sha256": files,
        "notes": list(foreign.notes),
    }


def _tell(name: str, foreign: Foreign, workdir: Path) -> None:
    height, width, channels = foreign.image_shape
    number = count_parameters(foreign.params)
    print(
        f"imported a checkpoint of {name}: {number:,} parameters, images {height}x{width}x{channels}, in {workdir}",
        file=sys.stderr,
    )
    for note in foreign.notes:
        print(f"note: {note}", file=sys.stderr)
