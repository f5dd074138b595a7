"""What a config leaves to the data: the number of classes, and which numbers the classes have that it names."""

import copy
import warnings
from collections.abc import Sequence

from ml_collections import ConfigDict

from diffusion_jax.errors import InputError, nearest
from diffusion_jax.options.kinds import Int
from diffusion_jax.reporting.classes import label, listed, shortened

AUTO = "auto"  # As many classes as the data have.
TOLD = 3  # Numbers that are told apart from names in one line.


def left_open(config: ConfigDict) -> set[str]:
    """Returns the names of the fields that only the data can say."""
    by_name = any(isinstance(value, str) for value in config.sample.labels or ())
    number = {"model.num_classes"} if config.model.num_classes == AUTO else set()
    return number | ({"sample.labels"} if by_name else set())


def with_num_classes(config: ConfigDict, num_classes: int) -> ConfigDict:
    """Returns the config with the number of classes in place of "auto"; itself if that is not there."""
    if config.model.num_classes != AUTO:
        return config
    config = copy.deepcopy(config)  # A `ConfigDict` of it would share its values.
    config.model.num_classes = num_classes
    return config


def with_numbers(config: ConfigDict, class_names: Sequence[str]) -> ConfigDict:
    """Returns the config with the numbers of classes in place of their names; itself if there are none.

    A number is that of a class, whatever the names are. If it could be read as the name of another class, a warning
    says which is meant.

    Args:
      config: The config, with the number of classes.
      class_names: The name of each class; empty if they are not known.

    Raises:
      InputError: A name that no class has.
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
    """Warns of numbers of classes that are the names of others, as where folders are numbered from 1 on."""
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
            f"sample.labels holds numbers of classes, not names: {', '.join(told[:TOLD])}{more}",
            stacklevel=3,
        )
