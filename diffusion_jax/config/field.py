"""One field of the config: default, values, meaning, and who may change it; and kinds that several fields share."""

import dataclasses
from typing import Any, Literal

from diffusion_jax.options.kinds import Choice, Either, Float, Int, Kind, Tuple

# never: it decides the trained parameters, so a resume may not change it.
# resume: it alters them by no more than float rounding; other modes take it from the run.
# always: it decides nothing of the training; every mode may set it.
Changeable = Literal["never", "resume", "always"]


@dataclasses.dataclass(frozen=True)
class Field:
    """One field.

    Attributes:
      default: Its value in `default_config()`; None: unset, and then it may be unset by a user too.
      kind: The values that it may have.
      meaning: One line for the reader; it says what 0 or an unset value means.
      changeable: Whether it may differ from what a run was started with.
    """

    default: Any
    kind: Kind
    meaning: str
    changeable: Changeable = "never"

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
        """Returns "is VALUE; it must be …", with the nearest name if a name is misspelt."""
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
SPACING = Either(
    Choice(("uniform", "leading", "trailing", "quadratic", "logsnr", "karras")),
    Tuple(Float(), empty=False),
)
