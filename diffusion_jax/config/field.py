"""A field of the config: default, allowed values, meaning, when it may change, and when it has an effect."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, Literal

from diffusion_jax.options import Option, Registry
from diffusion_jax.options.kinds import Choice, Int, Kind

# no: it decides the trained parameters, so a resumed run may not change it.
# on_resume: it alters them by no more than float rounding; other modes take it from the run.
# yes: it does not affect training; every mode may set it.
Changeable = Literal["no", "on_resume", "yes"]


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of the config.

    Attributes:
      default: Value in `default_config()`; None: unset, in which case a user may unset it too.
      kind: Allowed values.
      meaning: One-line description, which says what 0 or an unset value means.
      changeable: Whether it may differ from the value that the run was started with.
      chooses: Kind of component that its value names, for messages, such as "sampler"; "" if it names none.
      owners: For an option: field that chooses a component -> names of the components that have the option.
      needs: Fields, at least one of which must be on for this one to have an effect.
      off: The value at which fields that need this one have no effect; None and False always count as such.
      traced: Whether a compiled program takes it as an argument.
      inherits: Field that gives the value of an unset one; "": none does.
      lenient: Whether a config may set it beside components that lack it; only the mode that uses it refuses that.
    """

    default: Any
    kind: Kind
    meaning: str
    changeable: Changeable = "no"
    chooses: str = ""
    owners: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    needs: tuple[str, ...] = ()
    off: Any = None
    traced: bool = False
    inherits: str = ""
    lenient: bool = False

    def is_on(self, value: object) -> bool:
        """Whether fields that need this one have an effect at this value."""
        return value is not None and value is not False and value != self.off

    @property
    def optional(self) -> bool:
        """Whether it may be unset (None)."""
        return self.default is None

    def problem(self, value: object) -> str | None:
        """Returns a description of what is wrong with a value, as in "is 3; it must be …", or None."""
        if value is None:
            return None if self.optional else "is None; it must be set"
        return None if self.kind.accepts(value) else self.refusal(value)

    def refusal(self, value: object) -> str:
        """Returns "is VALUE; it must be …", with a suggestion if a name is misspelled."""
        hint = self.kind.hint(value)
        return f"is {_shown(value)}; it must be {self.allowed}{hint and '.'}{hint}"

    @property
    def allowed(self) -> str:
        """Description of the allowed values."""
        return self.kind.allowed + (", or none" if self.optional else "")


def _shown(value: object) -> str:
    """Returns the value in one line of bounded length, whatever its `repr` does."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # E.g. an integer with too many digits, or a user's class.
        return f"a {type(value).__name__} that cannot be printed"
    return text if len(text) <= 200 else f"{text[:150]} ... ({len(text)} characters)"


def merge(*parts: Mapping[str, Field]) -> dict[str, Field]:
    """Returns the union of parts of the table of fields.

    Raises:
      TypeError: Two parts have a field of the same name, as when a registered component declares an option that is
        already a field of its group.
    """
    union: dict[str, Field] = {}
    for name, field in itertools.chain.from_iterable(part.items() for part in parts):
        if name in union:
            raise TypeError(
                f"the field {name} is declared twice: {union[name].meaning!r} and {field.meaning!r}; give the "
                "component's option another name"
            )
        union[name] = field
    return union


SEEDS = Int(0, 2**32 - 1)
VARIANCE = Choice(("fixed_large", "fixed_small", "learned"))


def option_field(
    group: str, option: Option, owner: str = "", owners: Mapping[str, tuple[str, ...]] | None = None
) -> Field:
    """Returns the config field of a component's option.

    Args:
      group: The field's group, which also holds the options that it needs.
      option: The declaration.
      owner: Prefix of the field's meaning; "" if all components of the kind have the option.
      owners: As in `Field`.
    """
    return Field(
        option.default,
        option.kind,
        f"{owner}: {option.help}" if owner else option.help,
        "on_resume" if option.on_resume else "no",
        owners=owners or {},
        needs=tuple(f"{group}.{name}" for name in option.needs),
        off=option.off,
        traced=option.traced,
        inherits=option.inherits,
    )


def option_fields(group: str, registry: Registry[Any], chooser: str) -> dict[str, Field]:
    """Returns the config fields of the options of all components of a kind.

    Args:
      group: The fields' group.
      registry: The components.
      chooser: The field that names the component.
    """
    fields = {}
    for name, option in registry.options.items():
        owners = registry.owners(name)
        all_have_it = len(owners) == len(registry)
        fields[f"{group}.{name}"] = option_field(
            group,
            option,
            "" if all_have_it else ", ".join(owners),
            {} if all_have_it else {chooser: owners},
        )
    return fields
