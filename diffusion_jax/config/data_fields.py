"""Config fields that depend on the data: the number of classes, and the numbers of classes given by name."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

from ml_collections import ConfigDict

from diffusion_jax.errors import InputError, nearest
from diffusion_jax.options.kinds import Int
from diffusion_jax.reporting.classes import label, listed, shortened

AUTO = "auto"  # As many classes as the data has.
TOLD = 3  # Ambiguous numbers listed in one warning.


def left_open(config: ConfigDict) -> set[str]:
    """Returns the names of the fields that only the data can determine."""
    by_name = any(isinstance(value, str) for value in config.sample.labels or ())
    number = {"model.num_classes"} if config.model.num_classes == AUTO else set()
    return number | ({"sample.labels"} if by_name else set())


def with_num_classes(config: ConfigDict, num_classes: int) -> ConfigDict:
    """Returns the config with "auto" replaced by the number of classes; the same object if there is no "auto".

    Where there are no classes, the model is unconditional, and there are no labels to drop in training.

    Args:
      config: A config.
      num_classes: Number of the data's classes; 0: none.
    """
    if config.model.num_classes != AUTO:
        return config
    config = copy.deepcopy(config)  # ConfigDict(config) would share its values.
    config.model.num_classes = num_classes
    if num_classes == 0:
        config.train.label_dropout = 0.0
    return config


def with_numbers(config: ConfigDict, class_names: Sequence[str]) -> ConfigDict:
    """Returns the config with class names replaced by numbers; the same object if there are no names.

    A number always means the class of that number. If another class has it as its name, a warning says which class is
    meant.

    Args:
      config: The config, with the number of classes.
      class_names: Name of each class; empty if the names are unknown.

    Raises:
      InputError: No class has a given name.
    """
    labels = config.sample.labels
    if not labels or not config.model.num_classes:
        return config
    _tell_apart([value for value in labels if not isinstance(value, str)], class_names)
    if "sample.labels" not in left_open(config):
        return config
    number = {name: i for i, name in reversed(list(enumerate(class_names)))}
    for name in filter(lambda value: isinstance(value, str), labels):
        if not class_names:
            raise InputError(
                f"sample.labels has the name {shortened(name)!r}, but the run knows its {config.model.num_classes} "
                "classes by number alone; give the number"
            )
        if name not in number:
            raise InputError(
                f"sample.labels: there is no class {shortened(name)!r}; the classes are {listed(class_names)}."
                f"{nearest(name, number) if len(name) < 100 else ''}"
            )
    config = copy.deepcopy(config)
    config.sample.labels = tuple(number.get(value, value) for value in labels)
    return config


def _tell_apart(numbers: Sequence[int], class_names: Sequence[str]) -> None:
    """Warns about class numbers that are names of other classes, as when folders are numbered from 1."""
    named: dict[int, int] = {}
    for i, name in enumerate(class_names):
        if name.isdecimal() and len(name) < 20:
            named.setdefault(Int().parse(name), i)
    told = [
        f"{n} is class {label(n, class_names)} (the one named {class_names[named[n]]!r} is number {named[n]})"
        for n in sorted(set(numbers))
        if n < len(class_names) and named.get(n, n) != n
    ]
    if told:
        more = ", …" if len(told) > TOLD else ""
        warnings.warn(
            f"sample.labels holds class numbers, not names: {', '.join(told[:TOLD])}{more}",
            stacklevel=3,
        )
