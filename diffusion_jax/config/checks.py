"""Checks of a config that need no data, devices or process."""

from __future__ import annotations

from ml_collections import ConfigDict

from diffusion_jax.config.data_fields import AUTO
from diffusion_jax.config.loading import fields
from diffusion_jax.config.table import FIELDS
from diffusion_jax.errors import InputError


def validate(config: ConfigDict) -> None:
    """Checks every field against the table, then the fields that must agree with each other.

    Raises:
      InputError: A field is wrong; the message has its name, its value and the allowed values.
    """
    values = dict(fields(config))
    if missing := FIELDS.keys() - values.keys():
        raise InputError(
            f"the config lacks {', '.join(sorted(missing))}: it was made before the components that have them were "
            "registered; register first, then call default_config()"
        )
    for name, field in FIELDS.items():
        if (problem := field.problem(values[name])) is not None:
            raise InputError(f"{name} {problem}")
    channels, groups = config.model.channels, config.model.norm_groups
    if groups is not None and channels % groups:
        raise InputError(
            f"model.norm_groups is {groups}; it must divide model.channels, {channels}"
        )
    if config.train.label_dropout > 0 and config.model.num_classes == 0:
        raise InputError(
            f"train.label_dropout is {config.train.label_dropout}, but the model is unconditional"
        )
    labels, classes = config.sample.labels, config.model.num_classes
    by_classifier = classes == 0 and config.sampler.classifier is not None
    if labels is not None and classes == 0 and not by_classifier:
        raise InputError(f"sample.labels is {labels}, but the model is unconditional")
    numbers = [label for label in labels or () if not isinstance(label, str)]
    if classes != AUTO and not by_classifier and numbers and max(numbers) >= classes:
        raise InputError(
            f"sample.labels is {labels}; class numbers go from 0 to {classes - 1}, in the order in which the training "
            "listed the classes, whatever their names are; a name that is not a number can be given instead"
        )
