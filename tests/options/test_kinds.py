"""Kinds of values: what each reads from text, accepts, refuses, and how it says so."""

import math
from typing import Any

import pytest

from diffusion_jax.options.kinds import Bool, Choice, Either, Float, Int, Kind, Text, Tuple

METRICS = Choice(("fid", "kid"))
SPACING = Either(Choice(("uniform", "quadratic")), Tuple(Int(0)))


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Int(), "7", 7),
        (Int(), "-7", -7),
        (Int(), "1e5", 100_000),
        (Int(), "9007199254740993", 2**53 + 1),  # Not by way of a float.
        (Float(), "3e-4", 3e-4),
        (Float(), "2", 2.0),
        (Bool(), "True", True),
        (Bool(), "1", True),
        (Bool(), "false", False),
        (Bool(), "0", False),
        (Text("a path"), "/tmp/x=1,2", "/tmp/x=1,2"),
        (METRICS, "kid", "kid"),
        (Tuple(Int()), "1,2,2", (1, 2, 2)),
        (Tuple(Int()), "16", (16,)),
        (Tuple(Int()), "(1, 2)", (1, 2)),
        (Tuple(Int()), "[4]", (4,)),
        (Tuple(Int()), "(4,)", (4,)),
        (Tuple(Int()), "()", ()),
        (Tuple(Float()), "0.5,1", (0.5, 1.0)),
        (Tuple(METRICS), "fid, kid", ("fid", "kid")),
        (Tuple(Text("a name")), "a", ("a",)),
        (SPACING, "quadratic", "quadratic"),
        (SPACING, "0,10,20", (0, 10, 20)),
        (SPACING, "5", (5,)),
    ],
)
def test_text_becomes_a_value_of_the_kind(kind: Kind, text: str, value: Any) -> None:
    parsed = kind.parse(text)
    assert parsed == value and type(parsed) is type(value) and kind.accepts(parsed)
    if isinstance(value, tuple):
        assert [type(item) for item in parsed] == [type(item) for item in value]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Int(), "one"),
        (Int(), "3.5"),
        (Int(), "inf"),
        (Int(), "nan"),
        (Int(), ""),
        (Float(), "fast"),
        (Float(), "1e"),
        (Bool(), "yes"),
        (Tuple(Int()), "1,two"),
        (Tuple(Int()), "1,2.5"),
        (Tuple(Int()), "(1,2"),
        (Tuple(Int()), "(1,2]"),
        (Tuple(Int()), "1,,2"),
        (Tuple(Int()), ""),
        (Tuple(Text("a name")), ""),
        (Tuple(Text("a name")), "a,,b"),
        (SPACING, "quadratc"),
        (SPACING, "0,ten"),
        (SPACING, "0,-1"),
    ],
)
def test_text_of_another_kind_is_refused(kind: Kind, text: str) -> None:
    with pytest.raises(ValueError):
        kind.parse(text)


@pytest.mark.parametrize(
    ("kind", "inside", "outside"),
    [
        (Int(), [-(10**30), 0], [True, 1.0, "1", None]),
        (Int(1, 3), [1, 3], [0, 4]),
        (Int(4, factor=4), [4, 8], [0, 6]),
        (Float(), [0, -1.5, 3.4e38], [10**400, 3.5e38, True, math.inf, math.nan, "1", None]),
        (Float(0, 0.9), [0, 0.9], [-0.1, 0.91]),
        (Float(0, 1, open=True), [1e-9, 0.999], [0, 0.0, 1, 1.0, 2]),
        (Bool(), [True, False], [1, 0, "true"]),
        (Text("a path"), ["x", "\udce9.png"], ["", 1, None, "a\0b", "\ud800"]),
        (METRICS, ["fid"], ["fi", "", 1, ("fid",)]),
        (Choice(("a",), prefixes=("tfds",)), ["a", "tfds:my set"], ["b", "tfds:", "xtfds:y"]),
        (Tuple(Int(1)), [(), (1, 2)], [(0,), (1, True), (1.0,), [1], 1, "1"]),
        (Tuple(Int(1), empty=False), [(1,)], [()]),
        (Tuple(METRICS), [("fid", "kid")], [("fid", "is"), "fid"]),
        (SPACING, ["uniform", (0, 5), ()], ["cubic", (-1,), 5, [0]]),
    ],
)
def test_a_kind_accepts_its_values_and_no_others(
    kind: Kind, inside: list[Any], outside: list[Any]
) -> None:
    assert [value for value in inside if not kind.accepts(value)] == []
    assert [value for value in outside if kind.accepts(value)] == []


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Int(), "an integer"),
        (Int(1), "an integer of at least 1"),
        (Int(0, 5), "an integer from 0 to 5"),
        (Int(high=5), "an integer of at most 5"),
        (Int(4, factor=4), "an integer of at least 4, divisible by 4"),
        (Float(0), "a finite number of at least 0"),
        (Float(0, 0.9), "a number from 0 to 0.9"),
        (Float(0, 1, open=True), "a number in (0, 1)"),
        (Bool(), "true or false"),
        (Text("a path"), "a path"),
        (Choice(("a", "b"), prefixes=("tfds",)), "one of a, b, tfds:NAME"),
        (Choice(("a",)), "a"),
        (Tuple(METRICS), "values separated by commas, each one of fid, kid, or () for none"),
        (Tuple(Int(1), empty=False), "values separated by commas, each an integer of at least 1"),
        (
            Either(METRICS, Tuple(Int(), empty=False)),
            "one of fid, kid; or values separated by commas, each an integer",
        ),
    ],
)
def test_a_kind_says_what_it_allows(kind: Kind, words: str) -> None:
    assert kind.allowed == words


@pytest.mark.parametrize(
    ("kind", "value", "name"),
    [
        (METRICS, "fidd", "fid"),
        (Tuple(METRICS), ("fid", "kidd"), "kid"),
        (SPACING, "quadratc", "quadratic"),
    ],
)
def test_a_misspelled_name_gets_the_nearest(kind: Kind, value: Any, name: str) -> None:
    assert kind.hint(value) == f" Did you mean {name!r}?"


@pytest.mark.parametrize("kind", [METRICS, Tuple(METRICS), SPACING, Int()])
def test_what_is_near_no_name_gets_no_hint(kind: Kind) -> None:
    assert kind.hint("zzz") == ""
