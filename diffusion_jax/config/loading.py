"""The config as a locked `ConfigDict`: defaults, config files, command-line overrides and JSON."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict, FieldReference

from diffusion_jax import recipes
from diffusion_jax.config.table import FIELDS, GROUPS, chooses_owner
from diffusion_jax.errors import InputError, nearest
from diffusion_jax.lifecycle.stopping import Stopped

CLASSES = "classes"  # Key beside the config's groups in its JSON.


def default_config() -> ConfigDict:
    """Returns the config that every file in configs/ starts from: DDPM's hyper-parameters on digits.

    Example:
      >>> config = dj.default_config()
      >>> config.data.name, config.process.num_timesteps
      ('digits', 1000)
    """
    config = ConfigDict()
    for name, field in FIELDS.items():
        group, _, leaf = name.rpartition(".")
        if group and group not in config:
            config[group] = ConfigDict()
        part = config[group] if group else config
        part[leaf] = FieldReference(field.default, field_type=field.kind.python_type)
    return config.lock()


def load_file(path: str) -> ConfigDict:
    """Runs get_config() of a Python file.

    Args:
      path: The file, or the name of a config that comes with the package, such as "digits".

    Raises:
      InputError: There is no such file or name, or no get_config, or it sets an unknown field or a value of the
        wrong type.
    """
    from diffusion_jax.addresses import expand  # Not needed to show the fields.

    path = str(recipes.file_of(expand(path)))
    spec = importlib.util.spec_from_file_location("diffusion_jax_user_config", path)
    if spec is None or spec.loader is None:
        raise InputError(f"--config: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except (InputError, Stopped):
        raise
    except (
        BaseException
    ) as error:  # Including sys.exit, which would end the command as if it were done.
        if isinstance(error, KeyboardInterrupt) and _interrupts():
            raise
        raise InputError(f"--config: {path}: {_one_line(error)}") from error
    if not isinstance(config, ConfigDict):
        raise InputError(f"--config: get_config() of {path} must return a ConfigDict")
    try:
        found = dict(fields(config))
    except RecursionError as error:
        raise InputError(f"--config: the config of {path} holds itself") from error
    if missing := FIELDS.keys() - found.keys():
        raise InputError(
            f"--config: {path} lacks {', '.join(sorted(missing))}; start from default_config()"
        )
    if unknown := found.keys() - FIELDS.keys():
        name = min(unknown)
        raise InputError(f"--config: {path}: unknown field {name!r}.{nearest(name, FIELDS)}")
    for name, value in found.items():
        if isinstance(value, list):
            group, leaf = locate(config, name)
            group[leaf] = tuple(value)
    return config


def select(config: ConfigDict, name: str, value: Any) -> None:
    """Sets a field that chooses a component, in place, and resets the options of other components.

      select(config, "process.name", "vp")

    An option may choose a component in turn, as loss.weighting does: options of that one are reset as well.

    Args:
      config: The config to change.
      name: "group.field".
      value: Name of the component.
    """
    group, leaf = locate(config, name)
    group[leaf] = value
    for option, field in FIELDS.items():
        if name in field.owners and not chooses_owner(option, name, value):
            select(config, option, field.default)


def override(config: ConfigDict, assignments: Sequence[tuple[str, str]]) -> None:
    """Sets fields in place from ("train.num_steps", "200") pairs, as given on the command line.

    Choosing another component resets the options of the former one to their defaults.

    Args:
      config: The config to change.
      assignments: Pairs of a field and its text.

    Raises:
      InputError: The field is unknown (the message suggests the nearest), or the value has the wrong type.
    """
    choosers = {chooser for field in FIELDS.values() for chooser in field.owners}
    for name, text in assignments:
        if name in choosers:
            select(config, name, _parse(name, text))
    for name, text in assignments:
        if name not in FIELDS:
            is_group = name != "" and name in GROUPS
            hint = " It is a group of fields." if is_group else _hint(name)
            raise InputError(f"unknown config field {name!r}.{hint}")
        group, leaf = locate(config, name)
        group[leaf] = _parse(name, text)


def _hint(name: str) -> str:
    """Suggests what a field is called now, the fields of that name in all groups, or else the nearest field."""
    if name in _REMOVED:
        return f" It is now {_REMOVED[name]!r}, for all modes."
    same = [repr(field) for field in FIELDS if field.rpartition(".")[2] == name]
    return f" Did you mean {' or '.join(same)}?" if same else nearest(name, FIELDS)


def _parse(name: str, text: str) -> Any:
    field = FIELDS[name]
    if field.optional and text.lower() == "none":
        return None
    try:
        return field.kind.parse(text)
    except ValueError as error:
        raise InputError(f"{name} {field.refusal(text)}") from error


def locate(config: ConfigDict, name: str) -> tuple[Any, str]:
    """Returns (group, field) such that group[field] is the config's "group.field".

    Args:
      config: A config.
      name: "group.field".
    """
    parent, _, leaf = name.rpartition(".")
    return (config[parent] if parent else config), leaf


def fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("group.field", value) for every field.

    Args:
      config: A config, or a group of one.
      prefix: What stands before the names.
    """
    for name, value in config.items():
        if isinstance(value, FieldReference):
            value = value.get()
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def to_json(config: ConfigDict, classes: Sequence[dict[str, Any]] = ()) -> str:
    """Returns the config as JSON text.

    Args:
      config: The config.
      classes: Description of the data's classes for readers of the file; not part of the config and not read back.
    """
    more = {CLASSES: list(classes)} if classes else {}
    return json.dumps({**config.to_dict(), **more}, indent=2) + "\n"


def from_dict(saved: dict[str, Any]) -> ConfigDict:
    """Returns a config from `json.loads(to_json(config, …))`; missing fields get their default.

    Raises:
      InputError: A field is unknown or its value has the wrong type.
    """
    config = default_config()
    for name, value in _flat({k: v for k, v in saved.items() if k != CLASSES}):
        if name in _REMOVED:
            continue
        if name not in FIELDS:
            raise InputError(
                f"saved config: unknown field {name!r}.{nearest(name, FIELDS)} If it is an option of a component "
                "of your own, name the --config file that registers it"
            )
        group, leaf = locate(config, name)
        value = _FORMERLY.get((name, value), value) if isinstance(value, bool) else value
        try:
            if isinstance(value, dict):
                raise TypeError(name)
            group[leaf] = tuple(value) if isinstance(value, list) else value
        except (TypeError, OverflowError) as error:
            raise InputError(f"saved config: {name} {FIELDS[name].refusal(value)}") from error
    return config


def _flat(saved: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields ("group.field", value) of nested dicts; a `ConfigDict` would take `__class__` for an attribute."""
    for name, value in saved.items():
        if name in GROUPS and name and isinstance(value, dict):
            yield from ((f"{name}.{leaf}", inner) for leaf, inner in value.items())
        else:
            yield (name if "." not in name else f"{name} "), value


# Fields of older versions -> the field that is in their place, whatever a saved config says in them.
_REMOVED = {"eval.ema": "sample.ema", "eval.step": "sample.step"}

# Values saved by older versions: (field, value) -> its present name.
_FORMERLY: dict[tuple[str, bool], str] = {
    ("model.remat", False): "none",
    ("model.remat", True): "blocks",
}


_LOCKED = re.compile("""'?Key "(.+?)" does not exist and cannot be added""")


def _one_line(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "it calls sys.exit; get_config() must return a ConfigDict"
    try:
        text = " ".join(str(error).split())
        if unknown := _LOCKED.match(text):  # It goes on with the values of all other fields.
            name = unknown[1]
            leaves = [field.rpartition(".")[2] for field in FIELDS]
            return (
                f"unknown field {name!r}.{_hint(name) if name in leaves else nearest(name, leaves)}"
            )
        return text or type(error).__name__
    except Exception:  # A user's class.
        return type(error).__name__


def _interrupts() -> bool:
    """Whether a KeyboardInterrupt can come from the user; the commands' signal handlers raise none."""
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler
