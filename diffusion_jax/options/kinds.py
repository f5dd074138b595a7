"""Kinds of option values: parsing, validation and description."""

from __future__ import annotations

import abc
import dataclasses
import math
import os
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from diffusion_jax.errors import nearest

_LARGEST = 3.4028234663852886e38  # Largest float32; everything is computed in float32.
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


class Kind(abc.ABC):
    """A set of values.

    Attributes:
      python_type: Type of the values, which a `ConfigDict` enforces.
    """

    python_type: ClassVar[type]

    @property
    @abc.abstractmethod
    def allowed(self) -> str:
        """Description of the values that completes "it must be …"."""

    @abc.abstractmethod
    def parse(self, text: str) -> Any:
        """Parses a value, which may still be out of range; raises ValueError if it has another type."""

    @abc.abstractmethod
    def accepts(self, value: object) -> bool:
        """Whether the value is in the set."""

    def hint(self, value: object) -> str:
        """Returns " Did you mean 'x'?" for a misspelled name, else ""."""
        del value
        return ""


@dataclasses.dataclass(frozen=True)
class Int(Kind):
    """Integers from `low` to `high` that `factor` divides."""

    low: int | float = -math.inf
    high: int | float = math.inf
    factor: int = 1
    python_type = int

    @property
    def allowed(self) -> str:
        divisible = f", divisible by {self.factor}" if self.factor > 1 else ""
        return f"an integer{_bounds(self.low, self.high)}{divisible}"

    def parse(self, text: str) -> int:
        try:
            return int(text)
        except ValueError:
            value = float(text)  # E.g. 1e5.
        if not value.is_integer():
            raise ValueError(text)
        return int(value)

    def accepts(self, value: object) -> bool:
        return type(value) is int and self.low <= value <= self.high and value % self.factor == 0


@dataclasses.dataclass(frozen=True)
class Float(Kind):
    """Finite float32 numbers from `low` to `high`, excluding both ends if the range is `open`."""

    low: int | float = -math.inf
    high: int | float = math.inf
    open: bool = False
    python_type = float

    @property
    def allowed(self) -> str:
        if self.open:
            return f"a number in ({self.low}, {self.high})"
        finite = "finite " if math.isinf(self.high) else ""
        return f"a {finite}number{_bounds(self.low, self.high)}"

    def parse(self, text: str) -> float:
        return float(text)

    def accepts(self, value: object) -> bool:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False
        inside = self.low <= value <= self.high and abs(value) <= _LARGEST
        return inside and not (self.open and value in (self.low, self.high))


def _bounds(low: int | float, high: int | float) -> str:
    if math.isinf(high):
        return "" if math.isinf(low) else f" of at least {low}"
    return f" of at most {high}" if math.isinf(low) else f" from {low} to {high}"


@dataclasses.dataclass(frozen=True)
class Bool(Kind):
    """True and False."""

    python_type = bool

    @property
    def allowed(self) -> str:
        return "true or false"

    def parse(self, text: str) -> bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError(text)
        return _BOOLEANS[text.lower()]

    def accepts(self, value: object) -> bool:
        return type(value) is bool


@dataclasses.dataclass(frozen=True)
class Text(Kind):
    """Non-empty text that could be a path; `what` describes it, as in "a folder"."""

    what: str
    python_type = str

    @property
    def allowed(self) -> str:
        return self.what

    def parse(self, text: str) -> str:
        return text

    def accepts(self, value: object) -> bool:
        if not isinstance(value, str):
            return False
        try:  # A path cannot hold a zero byte or half of a surrogate pair.
            return value != "" and b"\0" not in os.fsencode(value)
        except UnicodeEncodeError:
            return False


@dataclasses.dataclass(frozen=True)
class FilePath(Text):
    """Text that is a path, which a shell can complete; of a folder if `folder`."""

    folder: bool = False


@dataclasses.dataclass(frozen=True)
class Steps(Kind):
    """A range of steps FIRST:LAST, both included, from step 2 on: the first step is compiled."""

    python_type = str

    @property
    def allowed(self) -> str:
        return "FIRST:LAST, steps from 2 on, such as 100:110"

    def parse(self, text: str) -> str:
        return text

    def accepts(self, value: object) -> bool:
        if not isinstance(value, str) or not re.fullmatch(
            r"[1-9][0-9]{0,9}:[1-9][0-9]{0,9}", value
        ):
            return False
        first, last = self.ends(value)
        return 2 <= first <= last < 2**31

    @staticmethod
    def ends(value: str) -> tuple[int, int]:
        """Returns the first and the last step of a range."""
        first, _, last = value.partition(":")
        return int(first), int(last)


@dataclasses.dataclass(frozen=True)
class Choice(Kind):
    """One of `names`, one of `aliases` (which are not listed), or "PREFIX:NAME" with any name."""

    names: tuple[str, ...]
    prefixes: tuple[str, ...] = ()
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    python_type = str

    @property
    def allowed(self) -> str:
        names = (*self.names, *(f"{prefix}:NAME" for prefix in self.prefixes))
        return ("one of " if len(names) > 1 else "") + ", ".join(names)

    def full_name(self, value: str) -> str:
        """Resolves an alias or a prefixed name; returns any other value unchanged."""
        prefix, colon, name = value.partition(":")
        return (
            prefix if colon and name and prefix in self.prefixes else self.aliases.get(value, value)
        )

    def parse(self, text: str) -> str:
        return text

    def accepts(self, value: object) -> bool:
        if not isinstance(value, str):
            return False
        return self.full_name(value) in (*self.names, *self.prefixes) and value not in self.prefixes

    def hint(self, value: object) -> str:
        if not isinstance(value, str) or len(value) > 100:  # The search is slow for long strings.
            return ""
        return nearest(value, list(self.names))


@dataclasses.dataclass(frozen=True)
class Tuple(Kind):
    """Up to `longest` values of one kind, written 1,2,2 or (1, 2, 2) or [1, 2, 2] on the command line."""

    item: Kind
    empty: bool = True
    longest: int = 10_000
    python_type = tuple

    @property
    def allowed(self) -> str:
        none = ", or () for none" if self.empty else ""
        most = "" if self.longest == type(self).longest else f"at most {self.longest} "
        return f"{most}values separated by commas, each {self.item.allowed}{none}"

    def parse(self, text: str) -> tuple[Any, ...]:
        inner = text.strip()
        if inner[:1] + inner[-1:] in ("()", "[]"):
            inner = inner[1:-1].strip()
            if not inner:
                return ()
        items = [item.strip() for item in inner.removesuffix(",").split(",")]
        if not all(items):
            raise ValueError(text)
        return tuple(self.item.parse(item) for item in items)

    def accepts(self, value: object) -> bool:
        if not isinstance(value, tuple) or not (value or self.empty) or len(value) > self.longest:
            return False
        return all(self.item.accepts(item) for item in value)

    def hint(self, value: object) -> str:
        wrong = [v for v in value if not self.item.accepts(v)] if isinstance(value, tuple) else []
        return self.item.hint(wrong[0]) if wrong else ""


@dataclasses.dataclass(frozen=True)
class Either(Kind):
    """Union of two kinds, such as a name or a list of integers."""

    first: Kind
    second: Kind
    python_type = object

    @property
    def allowed(self) -> str:
        return f"{self.first.allowed}; or {self.second.allowed}"

    def parse(self, text: str) -> Any:
        for kind in (self.first, self.second):
            try:
                value = kind.parse(text)
            except ValueError:
                continue
            if kind.accepts(value):
                return value
        raise ValueError(text)

    def accepts(self, value: object) -> bool:
        return self.first.accepts(value) or self.second.accepts(value)

    def hint(self, value: object) -> str:
        return self.first.hint(value) or self.second.hint(value)
