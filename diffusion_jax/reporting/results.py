"""Result files, results/<mode>.json: the metrics of each finished command with their provenance."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import diffusion_jax
from diffusion_jax.errors import InputError
from diffusion_jax.lifecycle import ownership
from diffusion_jax.lifecycle.ownership import owned_write
from diffusion_jax.reading import json_text
from diffusion_jax.reading.regular import read_regular

LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


def provenance() -> dict[str, Any]:
    """Returns the versions and devices that results depend on besides the config."""
    device = jax.devices()[0]
    return {
        "diffusion_jax": diffusion_jax.__version__,
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "processes": jax.process_count(),
    }


def add_result(workdir: Path, mode: str, result: dict[str, Any]) -> Path:
    """Writes a result to results/<mode>.json; previous results are kept, newest first, under "earlier".

    Raises:
      InputError: The file is there, but does not hold results.
    """
    path = workdir / "results" / f"{mode}.json"
    with _alone(path):
        last, earlier = _last(path)
        if last:
            earlier = [last, *earlier]
        _write(path, {**result, "provenance": provenance(), "earlier": earlier})
    return path


def add_metric(workdir: Path, mode: str, name: str, result: dict[str, Any]) -> Path:
    """Writes one of several metrics to results/<mode>.json, under its name and with its own provenance.

    The other metrics are kept; the previous one of this name moves to the front of "earlier".

    Raises:
      InputError: The file is there, but does not hold results.
    """
    path = workdir / "results" / f"{mode}.json"
    with _alone(path):
        metrics, earlier = _last(path)
        if name in metrics:
            earlier = [{name: metrics[name]}, *earlier]
        metrics[name] = {**result, "provenance": provenance()}
        _write(path, {**metrics, "earlier": earlier})
    return path


def check(workdir: Path, mode: str) -> None:
    """Checks results/<mode>.json before the work for it begins.

    Raises:
      InputError: The file is there, but does not hold results.
    """
    _last(workdir / "results" / f"{mode}.json")


def _last(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """Returns the latest and the earlier results in a file; both are empty if there is no file."""
    if not path.exists():
        return {}, []
    try:
        last = json_text.parse_object(read_regular(path), finite=False)
        earlier = last.pop("earlier")
        if not isinstance(earlier, list):
            raise ValueError(f"earlier is {earlier!r}")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} does not hold results; move it away") from error
    return last, earlier


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Context with exclusive access to the file, so that two commands that end together lose no results."""
    ownership.check()  # Otherwise a deleted workdir would be created again, with this file alone.
    path.parent.mkdir(parents=True, exist_ok=True)
    with ownership.briefly(path):
        yield


def _write(path: Path, record: dict[str, Any]) -> None:
    write_text(path, json.dumps(record, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: a kill leaves either the old one or the new one."""
    with owned_write(path) as unfinished:
        unfinished.write_text(text)


def write_npz(path: Path, **arrays: Any) -> None:
    """Writes arrays atomically: a kill leaves either the old file or the new one. Arrays that are None are omitted."""
    with owned_write(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **{k: v for k, v in arrays.items() if v is not None})
