"""JSON is read as it was written; all else is a ValueError of one line."""

import json
from typing import Any

import pytest

from diffusion_jax.reading.json_text import parse, parse_object


@pytest.mark.parametrize("value", [None, 1.5, [1, {"a": []}], {"__class__": "x", "ü": 2**60}])
def test_what_json_writes_is_read_back(value: Any):
    assert parse(json.dumps(value)) == parse(json.dumps(value).encode()) == value


BAD = {
    "empty": b"",
    "cut": b'{"a": 1',
    "more": b"{} {}",
    "latin-1": b'{"a": "\xe9"}',
    "zeros": b"\0" * 50,
    "deep list": b"[" * 200_000,
    "deep object": b'{"a":' * 200_000,
    "deep and whole": b"[" * 100_000 + b"]" * 100_000,
    "nan": b"NaN",
    "infinite": b"-Infinity",
    "too large": b"1e400",
    "digits": b"9" * 10_000,
    "twice": b'{"a": 1, "b": 2, "a": 3}',
    "surrogate": b"\xed\xa0\x80",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_anything_else_is_a_value_error_of_one_line(text: bytes):
    with pytest.raises(ValueError) as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_numbers_that_are_not_finite_are_read_where_they_may_be():
    assert str(parse("[NaN, 1e400]", finite=False)) == "[nan, inf]"


@pytest.mark.parametrize("text", ["[]", "3", "null", "true", '"a"'])
def test_an_object_is_wanted(text: str):
    with pytest.raises(ValueError, match="not an object"):
        parse_object(text)
