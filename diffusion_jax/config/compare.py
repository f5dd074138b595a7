"""Fields that may change after training has begun, and the hash of the fields that decide its result."""

from __future__ import annotations

import copy
import hashlib
import json

from ml_collections import ConfigDict

from diffusion_jax.config.loading import fields
from diffusion_jax.config.table import FIELDS, group_of
from diffusion_jax.config.usage import missing_owner
from diffusion_jax.losses import LOSSES

# Options that every hash includes, whichever components are chosen: they did before components declared options.
ALWAYS_HASHED = frozenset(
    "data.sha256 data.image_size data.test_fraction model.channel_mult model.attention_resolutions model.norm_groups "
    "model.norm_eps process.schedule process.beta_start process.beta_end process.beta_min process.beta_max "
    "process.sigma_min process.sigma_max loss.vlb_weight loss.num_probes loss.weighting loss.min_snr_gamma loss.p2_k "
    "loss.p2_gamma loss.sigmoid_bias loss.u_min".split()
)

# Fields that came after version 0.1.0 count only where they are set, so that results of that version keep their names.
HASHED_IF_SET = frozenset(
    "optimizer.ema_decays optimizer.ema_lengths model.time_embedding model.time_scale model.time_features "
    "model.embedding_width "
    "model.class_input model.scale_shift model.num_heads model.head_channels model.decoder_attention model.resample "
    "model.symmetric_padding model.project_resampled model.fir model.skip_rescale model.input_pyramid "
    "model.output_pyramid process.zero_snr process.inputs train.init_from".split()
)


def is_free(name: str) -> bool:
    """Whether a resumed run may change this field, unless `deciding` lists it for the given config."""
    return FIELDS[name].changeable != "no"


def deciding(config: ConfigDict) -> list[str]:
    """Returns the fields that decide the trained parameters, which a resumed run may not change.

    The number of steps is one of them only if the learning rate decays; otherwise a longer run just continues a
    shorter one. The variance is one only if it is learned, or if the loss depends on it.
    """
    reasons = {
        "train.num_steps": config.optimizer.decay != "constant",
        "process.variance": config.process.variance == "learned"
        or config.loss.name in LOSSES.takers("variance"),
    }
    return [name for name in FIELDS if not is_free(name) or reasons.get(name, False)]


def is_settable(name: str) -> bool:
    """Whether every mode may set this field; modes other than train take the other fields from the run."""
    return FIELDS[name].changeable == "yes"


def settable_groups() -> list[str]:
    """Returns the groups that every mode may set, each as a whole; fields of other groups are never settable."""
    return list(dict.fromkeys(group_of(name) for name in FIELDS if is_settable(name)))


def differing(one: ConfigDict, other: ConfigDict) -> list[str]:
    """Returns the names of the fields in which two configs differ, in the table's order.

    Args:
      one: A config.
      other: Another one.
    """
    ours, theirs = dict(fields(one)), dict(fields(other))
    return [name for name in FIELDS if ours[name] != theirs[name]]


def changes(saved: ConfigDict, current: ConfigDict) -> list[str]:
    """Returns "field: old -> new" for each changed field that a resume may not change.

    The entry of train.num_steps includes the reason, since that field can usually be changed.

    Args:
      saved: Config of the run.
      current: Config of this start.
    """
    old, new = dict(fields(saved)), dict(fields(current))
    decisive = {*deciding(saved), *deciding(current)}
    why = {"train.num_steps": " (a decaying learning rate depends on it at every step)"}
    return [
        f"{name}: {old[name]!r} -> {new[name]!r}{why.get(name, '')}"
        for name in differing(saved, current)
        if name in decisive
    ]


def recipe_hash(config: ConfigDict) -> str:
    """Returns the hash that runs of one recipe share, whatever their seeds."""
    config = copy.deepcopy(config)
    config.seed = FIELDS["seed"].default
    return config_hash(config)


def config_hash(config: ConfigDict) -> str:
    """Returns a hash of 12 hexadecimal digits of all fields that decide the trained result.

    Options of components that are not chosen are excluded, so that adding a component does not change a run's hash.
    """
    values = dict(fields(config))
    decisive = {
        name: values[name]
        for name in deciding(config)
        if (name in ALWAYS_HASHED or missing_owner(name, values) is None)
        and not (name in HASHED_IF_SET and values[name] == FIELDS[name].default)
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:12]
