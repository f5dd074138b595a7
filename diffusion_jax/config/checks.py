"""Is a config right? All that can be said without data, devices or what the process is made of."""

from ml_collections import ConfigDict

from diffusion_jax.config.data_fields import AUTO
from diffusion_jax.config.loading import fields
from diffusion_jax.config.table import FIELDS
from diffusion_jax.errors import InputError


def validate(config: ConfigDict) -> None:
    """Checks every field by the table, then the fields that must fit one another.

    Raises:
      InputError: The first wrong field: its name, its value and what is allowed.
    """
    values = dict(fields(config))
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
    if labels is not None and classes == 0:
        raise InputError(f"sample.labels is {labels}, but the model is unconditional")
    numbers = [label for label in labels or () if not isinstance(label, str)]
    if classes != AUTO and numbers and max(numbers) >= classes:
        raise InputError(
            f"sample.labels is {labels}; numbers of classes go from 0 to {classes - 1}, in the order that the training "
            "listed them in, whatever the classes' names are; a name that is no number can be given instead"
        )
