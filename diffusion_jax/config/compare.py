"""Which fields may change after the training began, and the hash that names a trained result."""

import hashlib
import json

from ml_collections import ConfigDict

from diffusion_jax.config.loading import fields
from diffusion_jax.config.table import FIELDS, group_of
from diffusion_jax.config.usage import missing_owner
from diffusion_jax.losses import LOSSES

# Options that hashes hold whichever components are chosen, since they did before components declared their options.
ALWAYS_HASHED = frozenset(
    "data.sha256 data.image_size data.test_fraction model.channel_mult model.attention_resolutions model.norm_groups "
    "model.norm_eps process.schedule process.beta_start process.beta_end process.beta_min process.beta_max "
    "process.sigma_min process.sigma_max loss.vlb_weight loss.num_probes loss.weighting loss.min_snr_gamma loss.p2_k "
    "loss.p2_gamma loss.sigmoid_bias loss.u_min".split()
)


def is_free(name: str) -> bool:
    """Whether a resume may change this field, if `deciding` names no reason in the config against it."""
    return FIELDS[name].changeable != "no"


def deciding(config: ConfigDict) -> list[str]:
    """Returns the fields that decide the trained parameters: those that a resume may not change.

    The length of the training is one of them only if the learning rate decays: else a longer run is a run
    that went on. The variance is one only if it is learned, or if the loss depends on it.
    """
    reasons = {
        "train.num_steps": config.optimizer.decay != "constant",
        "process.variance": config.process.variance == "learned"
        or config.loss.name in LOSSES.takers("variance"),
    }
    return [name for name in FIELDS if not is_free(name) or reasons.get(name, False)]


def is_settable(name: str) -> bool:
    """Whether every mode may set this field; other modes than train take the rest from the run."""
    return FIELDS[name].changeable == "yes"


def settable_groups() -> list[str]:
    """Returns the groups that every mode may set: these as a whole, and no field of another."""
    return list(dict.fromkeys(group_of(name) for name in FIELDS if is_settable(name)))


def differing(one: ConfigDict, other: ConfigDict) -> list[str]:
    """Returns the names of the fields in which two configs differ, in the table's order."""
    ours, theirs = dict(fields(one)), dict(fields(other))
    return [name for name in FIELDS if ours[name] != theirs[name]]


def changes(saved: ConfigDict, current: ConfigDict) -> list[str]:
    """Returns "field: old -> new" for each changed field that a resume may not change.

    For train.num_steps also why: by itself it is a field that may be changed.
    """
    old, new = dict(fields(saved)), dict(fields(current))
    decisive = {*deciding(saved), *deciding(current)}
    why = {"train.num_steps": " (a decaying learning rate depends on it at every step)"}
    return [
        f"{name}: {old[name]!r} -> {new[name]!r}{why.get(name, '')}"
        for name in differing(saved, current)
        if name in decisive
    ]


def config_hash(config: ConfigDict) -> str:
    """Returns 12 hexadecimal digits that name all fields which decide the trained result.

    An option of a component that is not chosen is not among them, so that another component does not change the hash of
    a run.
    """
    values = dict(fields(config))
    decisive = {
        name: values[name]
        for name in deciding(config)
        if name in ALWAYS_HASHED or missing_owner(name, values) is None
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:12]
