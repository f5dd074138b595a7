"""Which fields may change after the training began, and the hash that names a trained result."""

import hashlib
import json

from ml_collections import ConfigDict

from diffusion_jax.config.loading import fields
from diffusion_jax.config.table import FIELDS, group_of


def is_free(name: str) -> bool:
    """Whether a resume may change this field."""
    return FIELDS[name].changeable != "never"


def is_settable(name: str) -> bool:
    """Whether every mode may set this field; other modes than train take the rest from the run."""
    return FIELDS[name].changeable == "always"


def settable_groups() -> list[str]:
    """Returns the groups that every mode may set: these as a whole, and no field of another."""
    return list(dict.fromkeys(group_of(name) for name in FIELDS if is_settable(name)))


def differing(one: ConfigDict, other: ConfigDict) -> list[str]:
    """Returns the names of the fields in which two configs differ, in the table's order."""
    ours, theirs = dict(fields(one)), dict(fields(other))
    return [name for name in FIELDS if ours[name] != theirs[name]]


def changes(saved: ConfigDict, current: ConfigDict) -> list[str]:
    """Returns "field: old -> new" for each changed field that a resume may not change."""
    old, new = dict(fields(saved)), dict(fields(current))
    return [
        f"{name}: {old[name]!r} -> {new[name]!r}"
        for name in differing(saved, current)
        if not is_free(name)
    ]


def config_hash(config: ConfigDict) -> str:
    """Returns 12 hexadecimal digits that name all fields which decide the trained result."""
    decisive = {name: value for name, value in fields(config) if not is_free(name)}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:12]
