"""What lies in the folder of a run, read once; what cannot be read is named, and is no error."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax import config as config_lib
from diffusion_jax.addresses import origin
from diffusion_jax.errors import InputError, reason
from diffusion_jax.reading import json_text, metrics_rows
from diffusion_jax.reading.npz import read_npz
from diffusion_jax.reading.regular import read_regular
from diffusion_jax.reporting import expected
from diffusion_jax.reporting.expected import Expected

CLASSES = "classes"
MANY = 5


class RunFolder:
    """The folder of a run.

    Attributes:
      path: The folder.
      name: What the page calls it.
      fields: Its config, by "group.field"; fields of other versions included; empty if it cannot be read.
      rows: Rows of metrics.jsonl.
      config_hash: The hash of its config; None if this version does not know all of its fields.
      expected: What runs of its recipe have had as losses; None if it is no recipe's with such a record.
      problems: What could not be read, in sentences.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path, self.name = path, name or path.resolve().name
        self.problems: list[str] = []
        self._results: dict[str, dict[str, Any]] = {}
        self.config_hash: str | None = None
        self.expected: Expected | None = None
        saved = self._json(path / "config.json")
        self.classes: list[Any] = saved.pop(CLASSES, None) or []
        self.fields = _flat(saved)
        self._understand(saved)
        self.rows = self._read_rows()

    @property
    def class_conditional(self) -> bool:
        """Whether the network is conditioned on classes."""
        return bool(self.fields.get("model.num_classes"))

    @property
    def has_checkpoint(self) -> bool:
        """Whether there can be a checkpoint to draw from."""
        folder = self.path / "checkpoints"
        elsewhere = bool(self.fields.get("train.checkpoint_dir")) or origin(self.path) is not None
        return elsewhere or any(folder.glob("*"))

    def result(self, mode: str) -> dict[str, Any]:
        """Returns results/<mode>.json; empty if there is none."""
        if mode not in self._results:
            self._results[mode] = self._json(self.path / "results" / f"{mode}.json")
        return self._results[mode]

    def arrays(self, path: Path) -> dict[str, np.ndarray]:
        """Returns the arrays of a file in the folder; empty if there is none, or it is damaged."""
        try:
            return read_npz(path) if path.exists() else {}
        except (OSError, ValueError) as error:
            self._problem(path, error)
            return {}

    def by_age(self, pattern: str) -> list[Path]:
        """Returns the files of this pattern that are there, the oldest first."""
        ages = {}
        for path in self.path.glob(pattern):
            with contextlib.suppress(OSError):  # One that is being replaced, or a link to nowhere.
                ages[path] = path.stat().st_mtime
        return sorted(ages, key=lambda path: ages[path])

    def command(self, mode: str, *assignments: str) -> str:
        """Returns the command that makes a part of the page."""
        flags = (f"--config.{assignment}" for assignment in assignments)
        words = ["python", "-m", "diffusion_jax.main", f"--workdir={self.path}", f"--mode={mode}"]
        return shlex.join([*words, *flags])

    def training(self, *assignments: str) -> str:
        """Returns the command that continues the training, or begins it if there is no config."""
        flags = [shlex.quote(f"--config.{assignment}") for assignment in assignments]
        file = [] if self.fields else ["--config=CONFIG.py"]
        workdir = shlex.quote(f"--workdir={self.path}")
        return " ".join(["python -m diffusion_jax.main", *file, workdir, *flags])

    def _read_rows(self) -> list[dict[str, Any]]:
        path = self.path / "metrics.jsonl"
        try:
            rows, damaged = metrics_rows.read_sound(path)
        except OSError as error:
            self._problem(path, error)
            return []
        if damaged:
            numbers = ", ".join(map(str, damaged[:MANY])) + (", …" if len(damaged) > MANY else "")
            self.problems.append(
                f"metrics.jsonl is damaged in {len(damaged)} of its lines ({numbers}); the others are shown."
            )
        return rows

    def _json(self, path: Path) -> dict[str, Any]:
        try:
            return json_text.parse_object(read_regular(path), finite=False) if path.exists() else {}
        except (OSError, ValueError) as error:
            self._problem(path, error)
            return {}

    def _understand(self, saved: dict[str, Any]) -> None:
        """Names the run by its config, if this version knows all of its fields."""
        if not saved:
            return
        try:
            config = config_lib.from_dict(saved)
            self.config_hash = config_lib.config_hash(config)
            self.expected = expected.find(config_lib.recipe_hash(config))
        except (InputError, TypeError, AttributeError) as error:
            self.problems.append(f"config.json is of another version: {reason(error)}.")

    def _problem(self, path: Path, error: Exception) -> None:
        name = path.relative_to(self.path)
        self.problems.append(f"{name} cannot be read: {reason(error)}.")


def _flat(saved: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in saved.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{leaf}": inner for leaf, inner in value.items()}
        else:
            flat[name] = value
    return flat
