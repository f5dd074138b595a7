"""Addresses of folders, on a file system or in a bucket (gs://)."""

from __future__ import annotations

import importlib.util
import os

from etils import epath

from diffusion_jax.errors import InputError


def is_local(path: str | os.PathLike[str]) -> bool:
    """Whether the path is on a file system, which supports rename and sync, rather than in a bucket."""
    return "://" not in str(path)


# Local folders that stand for ones in a bucket while a command runs, and the addresses of these.
_ORIGINS: dict[str, str] = {}


def stand_in(folder: str | os.PathLike[str], address: str) -> None:
    """Says that a local folder stands for one in a bucket.

    Args:
      folder: The local one.
      address: That of the other.
    """
    _ORIGINS[os.fspath(folder)] = address.rstrip("/")


def origin(folder: str | os.PathLike[str]) -> str | None:
    """Returns the address of what a local folder stands for; None of any other folder.

    Args:
      folder: The local one.
    """
    return _ORIGINS.get(os.fspath(folder))


def expand(path: str | os.PathLike[str]) -> str:
    """Expands a leading ~, which shells do not expand after an =.

    Raises:
      InputError: The user after the ~ does not exist.
    """
    path = os.fspath(path)
    expanded = os.path.expanduser(path)
    if path.startswith("~") and expanded == path:
        raise InputError(
            f"{path}: that user has no home folder; for a name that starts with ~, write ./{path}"
        )
    return expanded


def resolve(address: str | os.PathLike[str]) -> epath.Path:
    """Resolves a folder, or an address such as gs://bucket/run, to an absolute path.

    Raises:
      InputError: The address is not a gs:// one, or the package for these is missing.
    """
    if is_local(address):
        return epath.Path(os.path.abspath(expand(address)))
    if not str(address).startswith("gs://"):
        raise InputError(f"{address} is not supported; use a folder or gs://BUCKET/PATH")
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(f'{address} needs the package gcsfs: pip install "diffusion_jax[gcs]"')
    import fsspec.config

    # The listings that gcsfs caches would not show what others write.
    fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
    return epath.Path(address)
