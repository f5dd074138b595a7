"""The folders of a command: their layout, and whose they are."""

from __future__ import annotations

import os
from pathlib import Path

from diffusion_jax.errors import InputError
from diffusion_jax.lifecycle import ownership
from diffusion_jax.parallel.distributed import broadcast_from_first
from diffusion_jax.writing.writable import check_writable

# What a run has in its workdir.
_FOLDERS = ("checkpoints", "samples", "edits", "results", "tensorboard")
_FILES = ("config.json", "metrics.jsonl", "metrics.damaged.jsonl", "loss.png", "report.html")


def check_layout(workdir: Path) -> None:
    """Looks whether something else lies where a run has a folder or a file, before there is work that would be lost.

    Raises:
      InputError: It does.
    """
    for names, is_right, what in (
        (_FOLDERS, os.path.isdir, "folder"),
        (_FILES, os.path.isfile, "file"),
    ):
        for path in (workdir / name for name in names):
            if os.path.lexists(path) and not is_right(path):
                raise InputError(f"{path} is not a {what}; move it away")


def own(folder: Path, mode: str) -> None:
    """Makes the folder and this command its owner until it ends; process 0 does it for all.

    Raises:
      InputError: It cannot be made or written to, or another command owns it.
    """

    def take() -> None:
        check_writable(folder)
        ownership.own(folder, f"--mode={mode}")

    broadcast_from_first("own a folder", take)
