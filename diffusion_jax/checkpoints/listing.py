"""Contents of a folder of checkpoints: our checkpoints, and other entries, which are left alone."""

from __future__ import annotations

import contextlib
import logging

from etils import epath

from diffusion_jax.addresses import is_local
from diffusion_jax.checkpoints import manager

logger = logging.getLogger(__name__)

# Entries of a checkpoint, at its top level and in the folder of a part.
_OF_CHECKPOINTS = {"manifest.json", "meta.json", "_CHECKPOINT_METADATA", "commit_success.txt"}
_OF_PARTS = {"_METADATA", "_sharding", "array_metadatas", "manifest.ocdbt"}


def is_step(path: epath.Path) -> bool:
    """Whether the folder's name is a step number."""
    return path.name.isdecimal() and path.name == str(int(path.name))


def is_checkpoint(path: epath.Path) -> bool:
    """Whether a folder is a checkpoint, possibly damaged or unfinished, rather than something else."""
    try:
        inside = list(path.iterdir())
        return any(entry.name in _OF_CHECKPOINTS for entry in inside) or any(
            name.name in _OF_PARTS or name.name.startswith("ocdbt.process_")
            for entry in inside
            if entry.is_dir()
            for name in entry.iterdir()
        )
    except (FileNotFoundError, NotADirectoryError):
        return False


class Listing:
    """Entries of a folder of checkpoints, which need not exist; nothing is cached.

    Args:
      directory: The folder.
    """

    def __init__(self, directory: epath.Path) -> None:
        self._directory = directory
        self._told: set[int] = set()  # Folders named like steps that are not checkpoints.

    def entries(self, *below: str) -> list[epath.Path]:
        """Returns the entries of the folder, or of one below it."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return list(self._directory.joinpath(*below).iterdir())
        return []

    def is_committed(self, path: epath.Path) -> bool:
        """Whether a step's folder is complete."""
        return path.is_dir() and (is_local(path) or manager.is_committed(path))

    def steps(self) -> list[int]:
        """Returns the steps of the committed checkpoints, ascending."""
        named = (
            path
            for path in self.entries()
            if is_step(path) and (self.is_committed(path) or not path.is_dir())
        )
        return sorted(int(path.name) for path in named if self._is_ours(path))

    def others(self) -> list[int]:
        """Returns the step numbers that name folders which are not checkpoints."""
        self.steps()
        return sorted(self._told)

    def _is_ours(self, path: epath.Path) -> bool:
        """Whether a folder named like a step is a checkpoint; warns once for each that is not."""
        if is_checkpoint(path):
            return True
        if int(path.name) not in self._told and path.exists():
            self._told.add(int(path.name))
            logger.warning("%s is not a checkpoint, and is left alone", path)
        return False
