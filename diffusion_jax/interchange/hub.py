"""The Hugging Face hub as a place of checkpoints, hf://owner/name: fetched from there, and uploaded to it.

Tokens, the cache and the hub's own address are those of the package huggingface_hub; nothing here reads a token.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import importlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from diffusion_jax.errors import InputError, reason, shortened

PREFIX = "hf://"
_NAME = r"[A-Za-z0-9][\w.-]*"
_ADDRESS = re.compile(
    rf"hf://(?P<repository>{_NAME}/{_NAME})(?:@(?P<revision>refs/pr/\d+|[^/@]+))?(?:/(?P<path>[^@]+?))?/?"
)
# Where the folders of a pipeline have what is read; other parts of one may be far larger.
_FOLDERS = ("", "unet", "scheduler")
_PICKLED = (".bin", ".pt", ".pth")
_LOG_IN = "log in with `hf auth login`"


@dataclasses.dataclass(frozen=True)
class Address:
    """A repository of the hub, or what lies in it.

    Attributes:
      repository: owner/name.
      revision: A branch, a tag or a commit; None: the main branch.
      path: A file or folder in it; "": all of it.
    """

    repository: str
    revision: str | None = None
    path: str = ""

    @property
    def name(self) -> str:
        """The last part: of the path, or of the repository."""
        return PurePosixPath(self.repository, self.path).name

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.repository}{revision}{self.path and '/'}{self.path}"


@dataclasses.dataclass(frozen=True)
class Fetched:
    """What was fetched.

    Attributes:
      path: The file or folder on this machine, in the cache of huggingface_hub.
      revision: The commit that it is of.
      notes: What else there is to say, a line each.
    """

    path: Path
    revision: str
    notes: tuple[str, ...] = ()


def is_address(text: str) -> bool:
    """Whether a text begins as an address of the hub does.

    Args:
      text: Such as hf://owner/name, or a path.
    """
    return text.startswith(PREFIX)


def parse(text: str) -> Address:
    """Returns an address of the hub.

    Args:
      text: hf://owner/name, with @revision and /path after it or not.

    Raises:
      InputError: It is no such address.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None or ".." in PurePosixPath(found["path"] or "").parts:
        raise InputError(f"{shortened(text)} is no address hf://OWNER/NAME[@REVISION][/PATH]")
    return Address(found["repository"], found["revision"], found["path"] or "")


def fetch(text: str) -> Fetched:
    """Downloads what a reader of checkpoints needs, of one commit, unless it is in the cache.

    Of a folder these are the *.json and *.safetensors in it and in unet/ and scheduler/, or *.bin, *.pt and *.pth where
    there are no safetensors. Without a connection, the cache is used as it is.

    Args:
      text: hf://owner/name, with @revision and /path after it or not.

    Raises:
      InputError: There is no such repository, revision or path, or no permission; or the hub cannot be reached and the
        cache has not got it.
    """
    address = parse(text)
    client, note = _client(address), ""
    snapshot = functools.partial(
        client.snapshot_download, address.repository, revision=address.revision or "main"
    )
    try:
        patterns = [glob.escape(name) for name in wanted(_names(address), address.path)]
        if not patterns:
            raise InputError(f"{address} has no file of a checkpoint that is read")
        with _refusals(address):
            folder = Path(snapshot(allow_patterns=patterns))
    except _Unreachable as error:
        try:
            folder = Path(snapshot(allow_patterns=[], local_files_only=True))
        except client.errors.LocalEntryNotFoundError:
            raise InputError(f"{error}, and its cache has no {address}") from error
        note = f"{error}: {address} is taken from its cache, commit {folder.name}"
    path = folder / address.path
    if not path.exists():
        raise InputError(f"{note}, which has no {address.path}")
    return Fetched(path, folder.name, (note,) if note else ())


def wanted(names: Collection[str], path: str) -> list[str]:
    """Returns the files of a repository that a reader of checkpoints needs.

    Args:
      names: All its files.
      path: The one file that is asked for, or a folder; "": the repository.
    """
    if path in names:
        return [path]
    root = PurePosixPath(path)
    folders: dict[PurePosixPath, list[PurePosixPath]] = {root / name: [] for name in _FOLDERS}
    for name in map(PurePosixPath, sorted(names)):
        if name.parent in folders:
            folders[name.parent].append(name)
    found = []
    for files in folders.values():
        found += [file for file in files if file.suffix == ".json"]
        tensors = [file for file in files if file.suffix == ".safetensors"]
        tensors = tensors or [file for file in files if file.suffix in _PICKLED]
        # Of a.safetensors there may be variants, such as a.fp16.safetensors.
        plain = [file for file in tensors if "." not in file.stem]
        found += plain or tensors
    return list(map(str, found))


def check(text: str) -> Address:
    """Returns an address to upload to later, with what can be checked now.

    Args:
      text: hf://owner/name, with @branch and /path after it or not.

    Raises:
      InputError: It is no such address, or the package for these is missing.
    """
    address = parse(text)
    _client(address)
    return address


def upload(folder: Path, address: Address) -> str:
    """Uploads a folder as one commit, into a repository that is made if there is none; returns the commit's address.

    Args:
      folder: With the files; others that the repository has stay there.
      address: Of a repository or of a folder in it; its revision is a branch.

    Raises:
      InputError: There is no permission or no such branch, or the hub cannot be reached.
    """
    api = _client(address).HfApi(library_name="diffusion_jax")
    try:
        with _refusals(address):
            api.create_repo(address.repository, exist_ok=True, private=True)
            commit = api.upload_folder(
                repo_id=address.repository,
                folder_path=folder,
                path_in_repo=address.path or None,
                revision=address.revision,
                commit_message="Upload a model of diffusion_jax",
            )
    except _Unreachable as error:
        raise InputError(f"{error}, so nothing is at {address}") from error
    return str(dataclasses.replace(address, revision=commit.oid))


def _client(address: Address) -> Any:
    """Returns the package that speaks with the hub."""
    try:
        importlib.import_module("huggingface_hub.errors")
        return importlib.import_module("huggingface_hub")  # Of an extra.
    except ModuleNotFoundError as error:
        raise InputError(
            f"{address} needs the package huggingface_hub: pip install 'diffusion_jax[hub]'"
        ) from error


class _Unreachable(Exception):
    """The hub gives no answer, for the reason that the message says."""


def _names(address: Address) -> list[str]:
    """Returns the names of all files of a repository."""
    client = _client(address)
    with _refusals(address):
        info = client.HfApi(library_name="diffusion_jax").model_info(
            address.repository,
            revision=address.revision,
            timeout=client.constants.HF_HUB_ETAG_TIMEOUT,
        )
    names = [file.rfilename for file in info.siblings or ()]
    folder = f"{address.path}/"
    if address.path and address.path not in names:
        if not any(name.startswith(folder) for name in names):
            raise InputError(f"{address.repository} has no {address.path}")
    return names


@contextlib.contextmanager
def _refusals(address: Address) -> Iterator[None]:
    """Raises an InputError for what the hub refuses, and `_Unreachable` if it gives no answer."""
    errors = _client(address).errors
    # The HTTP library's error of which all others are, those of connections too: requests, httpx, by version.
    of_library = errors.HfHubHTTPError.__mro__[1]
    try:
        yield
    except errors.GatedRepoError as error:
        raise InputError(
            f"{address} is gated: ask for access on its page, and {_LOG_IN}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"there is no {address.repository} on the hub, or it is private: {_LOG_IN}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"{address.repository} on the hub has no revision {address.revision!r}"
        ) from error
    except errors.HFValidationError as error:
        raise InputError(f"{address}: {reason(error)}") from error
    except errors.HfHubHTTPError as error:
        _refuse(address, error.response.status_code, error)
    except (OSError, of_library) as error:
        if getattr(error, "strerror", None):  # Of this machine, such as a full disk.
            raise InputError(f"{address}: {reason(error)}") from error
        raise _Unreachable(f"the hub cannot be reached ({type(error).__name__})") from error


def _refuse(address: Address, status: int, error: Exception) -> NoReturn:
    if status in (401, 403):
        raise InputError(
            f"{address}: the hub gives no permission ({status}): {_LOG_IN}, with a token that may do this"
        ) from error
    if status >= 500 or status == 429:
        raise _Unreachable(f"the hub cannot answer now ({status})") from error
    raise InputError(f"{address}: the hub refuses the request ({status})") from error
