"""The configuration: every field with its default, loading, overriding, validating, comparing.

A config is a locked `ConfigDict`; it stops at the commands, and library functions take plain arguments.
"""

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FieldReference, config_dict

from diffusion_jax.errors import InputError, nearest

# What a resume may change: none of it alters the trained parameters beyond float rounding.
FREE_GROUPS = ("sampler", "sample", "eval", "mesh")
FREE_FIELDS = (
    "process.variance",  # of the reverse steps: L_simple does not depend on it
    "data.source_dir",
    "data.cache_dir",
    "train.num_steps",
    "train.steps_per_dispatch",
    "train.log_every",
    "train.checkpoint_every",
    "train.sample_every",
    "train.eval_every",
    "train.keep_last",
    "train.keep_every",
    "train.sample_images",
)


_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def default_config() -> ConfigDict:
    """Returns the config that every file in configs/ starts from: DDPM's hyper-parameters on digits."""
    unset = config_dict.placeholder
    config = ConfigDict(
        {
            "seed": 0,
            "data": {
                "name": "digits",  # digits, fashion_mnist, cifar10, image_folder or tfds:<name>
                "source_dir": unset(str),  # where the images or the archive lie
                "sha256": unset(str),  # checksum of a repacked archive
                "image_size": unset(int),  # to crop and resize to; image_folder needs it
                "random_flip": False,
                "test_fraction": 0.2,  # held out, where the set has no test split of its own
                "cache_dir": unset(str),  # prepared data; ~/.cache/diffusion_jax if unset
            },
            "model": {
                "name": "unet",
                "channels": 128,
                "channel_mult": (
                    1,
                    2,
                    2,
                    2,
                ),  # this, attention, norms and remat: of the U-Net alone
                "num_res_blocks": 2,
                "attention_resolutions": (16,),
                "dropout": 0.0,
                "num_classes": 0,  # 0: unconditional
                "norm_groups": unset(int),  # unset: up to 32, of at least four channels
                "norm_eps": 1e-6,
                "dtype": "float32",  # of the computation; parameters are float32
                "remat": False,
            },
            "process": {
                "name": "ddpm",
                "schedule": "linear",
                "num_timesteps": 1000,
                "beta_start": unset(float),
                "beta_end": unset(float),
                "prediction": "eps",
                "variance": "fixed_large",
            },
            "loss": {"name": "simple"},
            "optimizer": {
                "learning_rate": 2e-4,
                "warmup_steps": 5000,
                "grad_clip": 1.0,
                "ema_decay": 0.9999,
            },
            "train": {
                "num_steps": 800_000,
                "batch_size": 128,  # global
                "accumulate": 1,  # micro-batches a step
                "steps_per_dispatch": unset(int),  # unset: 1 on the CPU, 10 elsewhere
                "log_every": 100,
                "checkpoint_every": 5000,
                "keep_last": 3,
                "keep_every": unset(int),  # besides the last, keep multiples of this
                "sample_every": 0,  # 0: only at the end
                "sample_images": 36,  # in the grids drawn while training
                "eval_every": 0,  # held-out loss; 0: never
            },
            "sampler": {
                "name": "ancestral",
                "num_steps": unset(int),  # unset: all timesteps
                "clip": True,
            },
            "sample": {
                "num_images": 64,
                "batch_size": 64,
                "seed": 0,
                "labels": unset(tuple),  # repeated over the images; unset: all classes in turn
                "ema": True,
                "step": unset(int),  # checkpoint; unset: the newest
                "progressive": False,  # also draw how the first images came about
            },
            "eval": {"num_images": 1000, "batch_size": 250},
            "mesh": {"data": -1},  # devices along the batch; -1: all
        }
    )
    return config.lock()


def load_file(path: str) -> ConfigDict:
    """Runs get_config() of a Python file.

    Raises:
      InputError: No such file, no get_config, or it sets a field that does not exist or has another type.
    """
    if not Path(path).is_file():
        raise InputError(f"--config: no such file: {path}")
    spec = importlib.util.spec_from_file_location("diffusion_jax_user_config", path)
    if spec is None or spec.loader is None:
        raise InputError(f"--config: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"--config: {path}: {_one_line(error)}") from error
    if not isinstance(config, ConfigDict):
        raise InputError(f"--config: get_config() of {path} must return a ConfigDict")
    missing = set(dict(fields(default_config()))) - set(dict(fields(config)))
    if missing:
        raise InputError(
            f"--config: {path} lacks {', '.join(sorted(missing))}; start from default_config()"
        )
    return config


def override(config: ConfigDict, assignments: Sequence[tuple[str, str]]) -> None:
    """Sets fields in place from ("train.num_steps", "200") pairs, as given on the command line.

    Raises:
      InputError: Unknown field (with the nearest name), or a value of another type.
    """
    known, optional = dict(fields(config)), optional_fields()
    for name, text in assignments:
        if name not in known:
            groups = {field.split(".")[0] for field in known}
            hint = " It is a group of fields." if name in groups else nearest(name, known)
            raise InputError(f"unknown config field {name!r}.{hint}")
        group, leaf = locate(config, name)
        try:
            group[leaf] = _parse(text, group.get_type(leaf), name in optional)
        except (TypeError, ValueError, SyntaxError, OverflowError) as error:
            allowed = group.get_type(leaf).__name__
            raise InputError(f"config field {name} is {text!r}; it must be {allowed}") from error


def _parse(text: str, kind: type, optional: bool) -> Any:
    if optional and text.lower() == "none":
        return None
    if kind is str:
        return text
    if kind is bool:
        return _BOOLEANS.get(text.lower(), text)  # The ConfigDict refuses a string.
    if kind is int:
        value = float(text)
        return int(value) if value == int(value) else value
    if kind is float:
        return float(text)
    value = ast.literal_eval(text if text[:1] in ("(", "[") else f"({text},)")
    if not all(type(item) is int for item in value):
        raise ValueError(text)
    return tuple(value)


def locate(config: ConfigDict, name: str) -> tuple[Any, str]:
    """Returns (group, field) such that group[field] is the config's "group.field"."""
    parent, _, leaf = name.rpartition(".")
    return (config[parent] if parent else config), leaf


def fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("group.field", value) for every field."""
    for name, value in config.items():
        if isinstance(value, FieldReference):
            value = value.get()
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def optional_fields() -> set[str]:
    """Returns the fields that may be None: those that are by default."""
    return {name for name, value in fields(default_config()) if value is None}


def to_json(config: ConfigDict) -> str:
    """Returns the config as JSON text."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_dict(saved: dict[str, Any]) -> ConfigDict:
    """Returns a config from `json.loads(to_json(config))`; fields that it lacks get their default.

    Raises:
      InputError: A field that does not exist, or has another type.
    """
    config = default_config()
    known = dict(fields(config))
    for name, value in fields(ConfigDict(saved, convert_dict=True)):
        if name not in known:
            raise InputError(f"saved config: unknown field {name!r}.{nearest(name, known)}")
        group, leaf = locate(config, name)
        try:
            group[leaf] = tuple(value) if isinstance(value, list) else value
        except TypeError as error:
            allowed = group.get_type(leaf).__name__
            raise InputError(f"saved config: {name} is {value!r}; it must be {allowed}") from error
    return config


def is_free(name: str) -> bool:
    """Whether a resume may change this field."""
    return name.split(".")[0] in FREE_GROUPS or name in FREE_FIELDS


def config_hash(config: ConfigDict) -> str:
    """Returns 12 hexadecimal digits that name all fields which decide the trained result."""
    decisive = {name: value for name, value in fields(config) if not is_free(name)}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:12]


def changes(saved: ConfigDict, current: ConfigDict) -> list[str]:
    """Returns "field: old -> new" for each changed field that a resume may not change."""
    old = dict(fields(saved))
    return [
        f"{name}: {old[name]!r} -> {value!r}"
        for name, value in fields(current)
        if not is_free(name) and old[name] != value
    ]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
