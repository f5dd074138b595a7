"""Classes in words: their numbers, names and how many images are of each."""

from collections.abc import Sequence
from typing import Any

SHOWN = 12  # Of more classes a line has the first ones and the last.
LONGEST = 40  # Characters of a name.
TOLD = 3  # Classes that have moved, in one line.


def shortened(text: str, longest: int = LONGEST) -> str:
    """Returns a text that can be printed in a line, cut if it is long."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def label(number: int, names: Sequence[str], longest: int = LONGEST) -> str:
    """Returns "3: cat", or "3: '4'" for another number, or "3" where the class has no other name, or none is known."""
    name = names[number] if number < len(names) else str(number)
    if name == str(number):
        return name
    name = shortened(name, longest)
    return f"{number}: {name!r}" if name.isdecimal() else f"{number}: {name}"


def listed(names: Sequence[str], counts: Sequence[int] | None = None) -> str:
    """Returns the classes by number, with their counts in brackets: "0: cat (20), 1: dog (18)"."""

    def one(i: int) -> str:
        return label(i, names) + ("" if counts is None else f" ({counts[i]:,})")

    if len(names) <= SHOWN:
        return ", ".join(map(one, range(len(names))))
    return ", ".join([*map(one, range(SHOWN - 2)), f"…, {one(len(names) - 1)}"])


def table(names: Sequence[str], counts: Sequence[int] | None) -> list[dict[str, Any]]:
    """Returns for each class, of which there are as many as counts or names, what a result says of it.

    Args:
      names: Their names; shorter than counts if they are not known.
      counts: Number of images of each; None: not counted.
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
    """Returns which numbers do not mean the class that they meant: "class 1 was 'cat' and is 'dog'"; None if all do."""

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
