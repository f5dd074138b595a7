"""Descriptions of classes: numbers, names and image counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SHOWN = 12  # Largest number of classes in a line; of more, it has the first ones and the last.
LONGEST = 40  # Characters of a name.
TOLD = 3  # Largest number of changed classes in a line.


def shortened(text: str, longest: int = LONGEST) -> str:
    """Returns a printable text in one line, truncated if it is long."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def label(number: int, names: Sequence[str], longest: int = LONGEST) -> str:
    """Returns "3: cat", "3: '4'" if the name is another number, or "3" if the name is unknown or the number itself."""
    name = names[number] if number < len(names) else str(number)
    if name == str(number):
        return name
    name = shortened(name, longest)
    return f"{number}: {name!r}" if name.isdecimal() else f"{number}: {name}"


def listed(names: Sequence[str], counts: Sequence[int] | None = None) -> str:
    """Returns the classes by number, with counts in parentheses: "0: cat (20), 1: dog (18)"."""

    def one(i: int) -> str:
        return label(i, names) + ("" if counts is None else f" ({counts[i]:,})")

    if len(names) <= SHOWN:
        return ", ".join(map(one, range(len(names))))
    return ", ".join([*map(one, range(SHOWN - 2)), f"…, {one(len(names) - 1)}"])


def table(names: Sequence[str], counts: Sequence[int] | None) -> list[dict[str, Any]]:
    """Returns the entry of each class in a result file.

    Args:
      names: Class names; shorter than counts if they are unknown.
      counts: Number of images in each class; None: not counted.
    """
    return [
        {
            "label": i,
            "name": names[i] if i < len(names) else None,
            "num_images": None if counts is None else int(counts[i]),
        }
        for i in range(len(names if counts is None else counts))
    ]


def moved(before: Sequence[str], now: Sequence[str]) -> str | None:
    """Returns the changes of class names, as in "class 1 was 'cat' and is 'dog'"; None if there are none."""

    def name(names: Sequence[str], i: int) -> str:
        return f"'{shortened(names[i])}'" if i < len(names) else "none"

    told = [
        f"class {i} was {name(before, i)} and is {name(now, i)}"
        for i in range(max(len(before), len(now)))
        if tuple(before[i : i + 1]) != tuple(now[i : i + 1])
    ]
    if not told:
        return None
    return "; ".join(told[:TOLD]) + (f"; … ({len(told)} in all)" if len(told) > TOLD else "")
