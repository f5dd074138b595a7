"""One field of the config: default, values, meaning, who may change it, and when it has an effect."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from diffusion_jax.options import Option, Registry
from diffusion_jax.options.kinds import Choice, Int, Kind

# no: it decides the trained parameters, so a resume may not change it.
# on_resume: it alters them by no more than float rounding; other modes take it from the run.
# yes: it decides nothing of the training; every mode may set it.
Changeable = Literal["no", "on_resume", "yes"]


@dataclasses.dataclass(frozen=True)
class Field:
    """One field.

    Attributes:
      default: Its value in `default_config()`; None: unset, and then it may be unset by a user too.
      kind: The values that it may have.
      meaning: One line for the reader; it says what 0 or an unset value means.
      changeable: Whether it may differ from what a run was started with.
      chooses: What its value is the name of, in messages: "sampler"; "" if it chooses no component.
      owners: Of an option: the field that chooses a component -> the components that have the option.
      needs: Fields without which it has no effect: one of them must be on.
      off: The value at which fields that need this one have no effect; None and False are such values of any field.
      traced: Whether a compiled program takes it as an argument.
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

    def is_on(self, value: object) -> bool:
        """Whether fields that need this one have an effect at this value."""
        return value is not None and value is not False and value != self.off

    @property
    def optional(self) -> bool:
        """Whether it may be unset (None)."""
        return self.default is None

    def problem(self, value: object) -> str | None:
        """Returns what is wrong with a value, as in "is 3; it must be …", or None."""
        if value is None:
            return None if self.optional else "is None; it must be set"
        return None if self.kind.accepts(value) else self.refusal(value)

    def refusal(self, value: object) -> str:
        """Returns "is VALUE; it must be …", with the nearest name if a name is misspelled."""
        hint = self.kind.hint(value)
        return f"is {_shown(value)}; it must be {self.allowed}{hint and '.'}{hint}"

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        return self.kind.allowed + (", or none" if self.optional else "")


def _shown(value: object) -> str:
    """Returns a value in one line that is not endless, whatever its own `repr` does."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # An integer of too many digits, an array in a tuple, a class of the user's.
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 200 else f"{text[:150]} ... ({len(text)} characters)"


SEEDS = Int(0, 2**32 - 1)
VARIANCE = Choice(("fixed_large", "fixed_small", "learned"))


def option_field(
    group: str, option: Option, owner: str = "", owners: Mapping[str, tuple[str, ...]] | None = None
) -> Field:
    """Returns the field of a component's option.

    Args:
      group: The field's group, in which the options that it needs are too.
      option: The declaration.
      owner: What the field's meaning begins with; "" where all components of the kind have the option.
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
    )


def option_fields(group: str, registry: Registry[Any], chooser: str) -> dict[str, Field]:
    """Returns the fields of the options of all components of a kind.

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
