"""The configs that come with the package, by name: `--config=digits` is configs/digits.py of a checkout."""

from __future__ import annotations

import difflib
from pathlib import Path

from diffusion_jax.errors import InputError

_PACKAGE = Path(__file__).parent
# A wheel has them inside the package (setup.py), a checkout beside it.
_INSIDE, _BESIDE = _PACKAGE / "configs", _PACKAGE.parent / "configs"
FOLDER = _INSIDE if _INSIDE.is_dir() else _BESIDE


def names() -> list[str]:
    """Returns the names of all recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def curves() -> list[Path]:
    """Returns the files of the curves that runs of recipes are expected to follow; see `reporting.expected`."""
    return sorted((FOLDER / "curves").glob("*.json"))


def is_name(given: str) -> bool:
    """Whether what `--config` says is the name of a recipe, and not the path of a file."""
    return bool(given) and not set(given) & set("./\\")


def file_of(given: str) -> Path:
    """Returns the file that `--config` means: that of a recipe, or the path as it is.

    Raises:
      InputError: There is no recipe of that name, or no such file.
    """
    path = FOLDER / f"{given}.py" if is_name(given) else Path(given)
    if path.is_file():
        return path
    known = names()
    near = difflib.get_close_matches(path.stem, known, n=3)
    if is_name(given):
        raise InputError(
            f"--config: no config is named {given!r}; choose one of {', '.join(near or known)}, or name a file of "
            "your own by its path, such as ./my_config.py"
        )
    also = f"; --config={path.stem} is the one that comes with the package" * (path.stem in known)
    raise InputError(f"--config: no such file: {path}{also}")
