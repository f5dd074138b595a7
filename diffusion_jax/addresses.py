"""Where files can lie: a folder of a file system, or of a bucket (gs://)."""

import importlib.util
import os

from etils import epath

from diffusion_jax.errors import InputError


def is_local(path: str | os.PathLike[str]) -> bool:
    """Whether the path is on a file system, which can rename and sync; else it is in a bucket."""
    return "://" not in str(path)


def expand(path: str | os.PathLike[str]) -> str:
    """Returns a path with the home folder in place of a leading ~, which shells leave alone after an =.

    Raises:
      InputError: It names the home of a user that there is not.
    """
    path = os.fspath(path)
    expanded = os.path.expanduser(path)
    if path.startswith("~") and expanded == path:
        raise InputError(
            f"{path}: there is no home folder of that user; a name with a ~ is ./{path}"
        )
    return expanded


def resolve(address: str | os.PathLike[str]) -> epath.Path:
    """Returns a folder or an address such as gs://bucket/run as an absolute path.

    Raises:
      InputError: A bucket of another kind than gs://, or the package for that is missing.
    """
    if is_local(address):
        return epath.Path(os.path.abspath(expand(address)))
    if not str(address).startswith("gs://"):
        raise InputError(f"files are kept in a folder or at gs://BUCKET/PATH, not at {address}")
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(f'{address} needs the package gcsfs: pip install "diffusion_jax[gcs]"')
    import fsspec.config

    # What others write would not show in the listings that gcsfs keeps.
    fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
    return epath.Path(address)
