"""Download of a file, tried once, with a helpful error if there is no network."""

from __future__ import annotations

import http.client
import urllib.request
from collections.abc import Callable
from pathlib import Path

from diffusion_jax.errors import InputError
from diffusion_jax.lifecycle import stopping
from diffusion_jax.writing.atomic import atomic_write

TIMEOUT_SECONDS = 10
BLOCK = 2**18


def download(
    url: str,
    path: Path,
    check: Callable[[Path], object],
    remedy: str = "set source_dir to the folder that holds it",
) -> Path:
    """Returns `path`, downloaded from `url` unless it exists.

    Args:
      url: Address of the file.
      path: Destination; it appears under this name only when it is complete and checked.
      check: Function that raises an InputError if a file is not the right one.
      remedy: What makes a file that was got by hand be used, for the message.

    Raises:
      InputError: The download or write fails; the message says which file to put where by hand.
    """
    if path.exists():
        return path
    try:
        with atomic_write(path, shared=True) as unfinished:
            with (
                urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response,
                unfinished.open("wb") as file,
            ):
                while block := response.read(BLOCK):
                    stopping.check()
                    file.write(block)
            check(unfinished)
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"cannot download {url} ({getattr(error, 'reason', error)}); get {path.name} by hand "
            f"and {remedy}, or put it in {str(path.parent)!r}"
        ) from error
    return path
