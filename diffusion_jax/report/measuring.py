"""What a run's images are measured with: which features, and what these download."""

from __future__ import annotations

from diffusion_jax.config import FIELDS
from diffusion_jax.features import DOWNLOADS
from diffusion_jax.report.run_folder import RunFolder

SMALL = 32
_FIELD = "eval.features"


def features(run: RunFolder) -> list[str]:
    """Returns the field for features of small images with classes, which need no network of natural images."""
    name = _chosen(run)
    return [] if name == _configured(run) else [f"{_FIELD}={name}"]


def download(run: RunFolder, name: str | None = None) -> str:
    """Returns what a measurement downloads, in parentheses after a space; empty if it needs nothing.

    Args:
      run: What is measured.
      name: Of the features; None: those that `features` chooses.
    """
    published = DOWNLOADS.get(name or _chosen(run))
    if published is None or run.fields.get("eval.weights"):
        return ""
    return f" (this downloads {published.num_bytes / 1e6:.0f} MB of weights, once)"


def _chosen(run: RunFolder) -> str:
    own = _configured(run)
    small = run.classes and _side(run) < SMALL
    return "classifier" if small and own == FIELDS[_FIELD].default else own


def _side(run: RunFolder) -> int:
    """Returns the longest side of the images, or SMALL if the training did not say it."""
    data = run.result("train").get("data")
    shape = data.get("image_shape") if isinstance(data, dict) else None
    sides = shape if isinstance(shape, list) else []
    return max((side for side in sides if isinstance(side, int)), default=SMALL)


def _configured(run: RunFolder) -> str:
    return str(run.fields.get(_FIELD) or FIELDS[_FIELD].default)
