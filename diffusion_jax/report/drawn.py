"""What is drawn for the page: arrays in results/report/, each beside what decides and made them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from diffusion_jax.reading import json_text
from diffusion_jax.reading.npz import read_npz
from diffusion_jax.reading.regular import read_regular
from diffusion_jax.reporting import results
from diffusion_jax.samplers.batches import Samples

FOLDER = Path("results/report")
REVERSE, NEAREST = "reverse", "nearest"
IMAGES = 8


def keep(workdir: Path, name: str, decided_by: dict[str, Any], **arrays: Any) -> None:
    """Writes name.npz, then name.json: what decided the arrays, and with which versions they were made."""
    path = workdir / FOLDER / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)  # It is of the former arrays.
    results.write_npz(path, **arrays)
    record = {"decided_by": decided_by, "provenance": results.provenance()}
    results.write_text(path.with_suffix(".json"), json.dumps(record, indent=2) + "\n")


def kept(workdir: Path, name: str, decided_by: dict[str, Any]) -> dict[str, np.ndarray] | None:
    """Returns the arrays that are there, if the same decides them; None if they are to be made."""
    try:
        if told(workdir, name) != json.loads(json.dumps(decided_by)):
            return None
        return read_npz(workdir / FOLDER / f"{name}.npz")
    except (OSError, ValueError):
        return None


def told(workdir: Path, name: str) -> dict[str, Any]:
    """Returns what decided the arrays that are there; empty if that is not known."""
    try:
        record = json_text.parse_object(
            read_regular(workdir / FOLDER / f"{name}.json"), finite=False
        )
    except (OSError, ValueError):
        return {}
    known = record.get("decided_by")
    return known if isinstance(known, dict) else {}


def keep_reverse(
    workdir: Path, samples: Samples, times: Float64[np.ndarray, " f"], decided_by: dict[str, Any]
) -> None:
    """Writes the moments of the first images, as reverse.npz; `samples` has frames at these times."""
    assert samples.frames_x_t is not None and samples.frames_x0 is not None
    x_t, x0_hat = (frames[:, :IMAGES] for frames in (samples.frames_x_t, samples.frames_x0))
    keep(workdir, REVERSE, decided_by, x_t=x_t, x0_hat=x0_hat, t=times)
