"""Whether a folder can be written to, on a file system or in a bucket."""

import os
from pathlib import Path

from etils import epath

from diffusion_jax.addresses import is_local
from diffusion_jax.errors import InputError, disk_full, reason


def check_writable(folder: Path | epath.Path, failure: str = "--workdir: cannot write to") -> None:
    """Makes a folder, writes into it and removes that again. A full disk passes: a later write says so.

    Args:
      folder: A folder, or an address in a bucket.
      failure: What the error says before the name of the folder.

    Raises:
      InputError: It cannot be made or written to.
    """
    try:
        if is_local(folder):
            folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.urandom(8).hex()}"  # Others may probe at once.
        probe.write_text("")
        probe.unlink()
    except Exception as error:  # Each kind of bucket has its own.
        if disk_full(error):
            return
        kind = "" if is_local(folder) else f"{type(error).__name__}: "
        raise InputError(f"{failure} {folder}: {kind}{reason(error)}") from error
