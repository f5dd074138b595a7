"""Fields that have an effect: options of the components that a config chooses and of features that are on."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config.loading import fields
from diffusion_jax.config.table import FIELDS, chooses_owner, group_of
from diffusion_jax.errors import InputError


def options_of(config: ConfigDict, group: str) -> dict[str, Any]:
    """Returns the fields of a group by their names in it, excluding options of components that are not chosen.

    An unset field that inherits from another has that one's value.

    Args:
      config: A config.
      group: Name of the group, such as sampler.
    """
    values = dict(fields(config))
    return {
        name.rpartition(".")[2]: effective(name, values)
        for name in FIELDS
        if group_of(name) == group and missing_owner(name, values) is None
    }


def effective(name: str, values: dict[str, Any]) -> Any:
    """Returns the value of a field, or, if it is unset, of the field that it inherits from.

    Args:
      name: A field.
      values: Values of all fields.
    """
    inherits = FIELDS[name].inherits
    return values[inherits] if values[name] is None and inherits else values[name]


def check_used(config: ConfigDict, *, trained: bool = False, strict: bool = False) -> None:
    """Raises if a field is set but has no effect.

    Args:
      config: A config with allowed values.
      trained: Whether it belongs to a trained run: fields that decided the training are then not checked.
      strict: Whether lenient fields must be options of the chosen components too.

    Raises:
      InputError: Such a field exists; the message has its name and value, the reason, and the components that use it.
    """
    values = dict(fields(config))
    for name, field in FIELDS.items():
        if values[name] == field.default or (trained and field.changeable != "yes"):
            continue
        advice = (
            "leave it unset"
            if field.default is None
            else f"leave it at its default, {field.default!r}"
        )
        chooser = missing_owner(name, values) if strict or not field.lenient else None
        if chooser is not None:
            owners = ", ".join(field.owners[chooser])
            raise InputError(
                f"{name} is {values[name]!r}, but {_chosen(chooser, values)} has none; {advice} (it is for {owners})"
            )
        if (off := _off(name, values)) is not None:
            raise InputError(
                f"{name} is {values[name]!r}, but has no effect while {off}; set that too, or {advice}"
            )


def missing_owner(name: str, values: dict[str, Any]) -> str | None:
    """Returns the choosing field that selects none of the components that have this option, or None.

    Args:
      name: A field.
      values: Values of all fields.
    """
    choosers = FIELDS[name].owners
    return next((c for c in choosers if not chooses_owner(name, c, values[c])), None)


def _chosen(chooser: str, values: dict[str, Any]) -> str:
    """Returns a description of a field's choice, as in "the sampler 'ddim'"."""
    value, kind = values[chooser], FIELDS[chooser].chooses
    if value is None:
        return f"an unset {chooser}"
    return f"the {kind} {value!r}" if kind else f"{chooser}={value}"


def _off(name: str, values: dict[str, Any]) -> str | None:
    """Returns a description of the needed field that is off, as in "sampler.churn is 0", or None."""
    needs = FIELDS[name].needs
    if not needs or any(FIELDS[need].is_on(values[need]) for need in needs):
        return None
    first, value = needs[0], values[needs[0]]
    shown = f"{value:g}" if isinstance(value, float) else str(value).lower()
    return f"{first} is {'unset' if value is None else shown}"
