"""What lies in a folder of checkpoints: ours, and what is something else and to be left alone."""

import contextlib
import logging

from etils import epath

from diffusion_jax.addresses import is_local
from diffusion_jax.checkpoints import manager

logger = logging.getLogger(__name__)

# What lies in a checkpoint, in itself and in the folder of a part.
_OF_CHECKPOINTS = {"manifest.json", "meta.json", "_CHECKPOINT_METADATA", "commit_success.txt"}
_OF_PARTS = {"_METADATA", "_sharding", "array_metadatas", "manifest.ocdbt"}


def is_step(path: epath.Path) -> bool:
    """Whether a folder has a step's name."""
    return path.name.isdecimal() and path.name == str(int(path.name))


def is_checkpoint(path: epath.Path) -> bool:
    """Whether a folder is a checkpoint, perhaps a damaged or unfinished one, and not a folder of something else."""
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
    """Looks into a folder of checkpoints, anew each time; it need not be there.

    Args:
      directory: The folder.
    """

    def __init__(self, directory: epath.Path) -> None:
        self._directory = directory
        self._told: set[int] = set()  # Folders named like steps that are no checkpoints.

    def entries(self, *below: str) -> list[epath.Path]:
        """Returns what lies in the folder, or in one below it."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return list(self._directory.joinpath(*below).iterdir())
        return []

    def is_committed(self, path: epath.Path) -> bool:
        """Whether a folder that is named by a step is complete."""
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
        """Returns the steps that folders are named by which are no checkpoints."""
        self.steps()
        return sorted(self._told)

    def _is_ours(self, path: epath.Path) -> bool:
        """Whether a folder with a step's name is a checkpoint; says once which are not."""
        if is_checkpoint(path):
            return True
        if int(path.name) not in self._told and path.exists():
            self._told.add(int(path.name))
            logger.warning("%s is not a checkpoint, and is left alone", path)
        return False
