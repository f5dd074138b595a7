"""Flags of other libraries' commands, which say what their checkpoints do not."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from typing import Any

from diffusion_jax.errors import InputError, nearest


def flags_of(
    text: str,
    defaults: Mapping[str, Any],
    owner: str = "--source_settings",
    ignored: Collection[str] = (),
) -> dict[str, Any]:
    """Returns the values of their flags.

    Args:
      text: Such as "--image_size 64 --class_cond True".
      defaults: Values of flags that it does not name, which also say their types.
      owner: What holds the text, for messages.
      ignored: Flags that say nothing of this network.

    Raises:
      InputError: A flag is unknown or its value has another type.
    """
    try:
        found, words = dict(defaults), shlex.split(text.replace("=", " "))
    except ValueError as error:  # A quotation that does not end.
        raise InputError(f"{owner} cannot be read: {error}") from error
    if len(words) % 2:
        raise InputError(f"{owner} must hold pairs, --FLAG VALUE; it has {len(words)} words")
    for flag, value in zip(words[::2], words[1::2], strict=True):
        name = flag.removeprefix("--")
        if name in ignored:
            continue
        if name not in defaults or not flag.startswith("--"):
            raise InputError(f"unknown flag {flag} in {owner}.{nearest(name, list(defaults))}")
        found[name] = _parsed(flag, value, defaults[name])
    return found


def _parsed(flag: str, value: str, default: Any) -> Any:
    if isinstance(default, bool):
        known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if value.lower() not in known:
            raise InputError(f"{flag} is {value!r}; it must be True or False")
        return known[value.lower()]
    try:
        return type(default)(value)
    except ValueError as error:
        raise InputError(f"{flag} is {value!r}; it must be a number") from error


def numbers_of(name: str, text: str) -> tuple[int, ...]:
    """Returns the integers of a flag's value.

    Args:
      name: Of the flag.
      text: Such as "16,8".

    Raises:
      InputError: They are no integers separated by commas.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(
            f"--{name} is {text!r}; it must be integers separated by commas"
        ) from error
