"""Check that a folder can be written to, on a file system or in a bucket."""

from __future__ import annotations

import os
from pathlib import Path

from etils import epath

from diffusion_jax.addresses import is_local
from diffusion_jax.errors import InputError, disk_full, reason


def check_writable(folder: Path | epath.Path, failure: str = "--workdir: cannot write to") -> None:
    """Creates a folder and writes a probe file into it, which is removed again. A full disk passes: later writes fail.

    Args:
      folder: A folder, or an address in a bucket.
      failure: Start of the error message, before the name of the folder.

    Raises:
      InputError: The folder cannot be created or written to.
    """
    try:
        if is_local(folder):
            folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.urandom(8).hex()}"  # Others may probe too.
        probe.write_text("")
        probe.unlink()
    except Exception as error:  # Every kind of bucket raises its own errors.
        if disk_full(error):
            return
        kind = "" if is_local(folder) else f"{type(error).__name__}: "
        raise InputError(f"{failure} {folder}: {kind}{reason(error)}") from error
