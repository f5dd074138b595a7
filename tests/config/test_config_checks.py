"""Validation: each field at the edges of its declared limits, and the fields that must fit one another."""

import math
from typing import Any

import pytest
from ml_collections import ConfigDict

from diffusion_jax.config import FIELDS, default_config, locate, validate
from diffusion_jax.errors import InputError
from diffusion_jax.options.kinds import Bool, Choice, Either, Float, Int, Kind, Steps, Text, Tuple


def edges(kind: Kind) -> tuple[list[Any], list[Any]]:
    """Returns values on the edge of what a kind allows, and just beyond it or of another type."""
    match kind:
        case Int(low, high, factor):
            first = -(-max(low, -(10**9)) // factor) * factor
            inside = [int(first), int(min(high, 10**9) // factor * factor)]
            beyond = [] if math.isinf(high) else [int(high) + 1]
            below = [] if math.isinf(low) else [int(low) - 1]
            between = [int(first) + 1] if factor > 1 else []
            return inside, [*below, *beyond, *between, 10**12, 1.5, math.nan]
        case Float(low, high, is_open):
            ends = [float(end) for end in (low, high) if math.isfinite(end)]
            near = [math.nextafter(low, high), math.nextafter(high, low)] if is_open else ends
            outside = [math.nextafter(end, math.inf * (1 if end == high else -1)) for end in ends]
            return near or [0.5], [*(ends if is_open else outside), math.nan, math.inf, -math.inf]
        case Tuple(item, empty, longest):
            inside, outside = edges(item)
            some = [(one,) for one in inside]
            none, many = ([()], []) if empty else ([], [()])
            too_many = [(inside[0],) * (longest + 1)] if longest < 100 else []
            return [*some, *none], [*[(one,) for one in outside], *many, *too_many]
        case Either(first, second):
            inside, outside = zip(edges(first), edges(second), strict=True)
            wrong = [one for one in [*outside[0], *outside[1]] if not kind.accepts(one)]
            return [*inside[0], *inside[1]], wrong
        case Choice(names):
            return list(names), [f"{names[0]}x", ""]
        case Text():
            return ["x"], ["", 3]
        case Steps():
            return ["2:2", "100:110"], ["1:4", "5:3", "100", "a:b", 3]
        case Bool():
            return [True, False], [1, "true"]
    raise NotImplementedError(kind)


def with_value(name: str, value: Any) -> ConfigDict:
    config = default_config()
    group, leaf = locate(config, name)
    group[leaf] = value
    return config


RANGED = [name for name, f in FIELDS.items() if not isinstance(f.kind, (Bool, Choice, Text))]


@pytest.mark.parametrize("name", RANGED)
def test_a_value_is_accepted_within_its_limits_and_refused_beyond_by_name(name: str) -> None:
    kind = FIELDS[name].kind
    inside, outside = edges(kind)
    for value in inside:
        assert FIELDS[name].problem(value) is None
    for value in (one for one in outside if isinstance(one, kind.python_type)):
        with pytest.raises(InputError) as error:
            validate(with_value(name, value))
        assert str(error.value).startswith(f"{name} is {value!r}; it must ")


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if isinstance(f.kind, Choice)])
def test_a_choice_is_refused_unless_it_is_known(name: str) -> None:
    kind = FIELDS[name].kind
    assert isinstance(kind, Choice)
    for choice in kind.names:
        validate(with_value(name, choice))
    with pytest.raises(InputError) as error:
        validate(with_value(name, kind.names[0] + "x"))
    for fragment in (name, repr(kind.names[0] + "x"), *kind.names, "Did you mean"):
        assert fragment in str(error.value)


def test_a_data_set_that_tfds_has_prepared_is_a_choice() -> None:
    validate(with_value("data.name", "tfds:my set"))
    with pytest.raises(InputError, match="data.name is 'tfds:'; it must be .* tfds:NAME"):
        validate(with_value("data.name", "tfds:"))


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if isinstance(f.kind, Text)])
def test_text_is_anything_but_empty(name: str) -> None:
    validate(with_value(name, "x"))
    with pytest.raises(InputError, match=f"^{name} is ''; it must be "):
        validate(with_value(name, ""))


@pytest.mark.parametrize("name", FIELDS)
def test_only_a_field_that_is_unset_by_default_may_be_none(name: str) -> None:
    config = with_value(name, None)
    if FIELDS[name].default is None:
        validate(config)
    else:
        with pytest.raises(InputError, match=f"^{name} is None; it must be set$"):
            validate(config)


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if isinstance(f.kind, Bool)])
def test_a_switch_is_true_or_false(name: str) -> None:
    """A ConfigDict refuses another type, unless a file makes a new one."""
    for value in (True, False):
        validate(with_value(name, value))
    config = default_config()
    group, leaf = locate(config, name)
    group.unlock()
    del group[leaf]
    group[leaf] = "maybe"
    with pytest.raises(InputError, match=f"^{name} is 'maybe'; it must be true or false$"):
        validate(config)


def test_labels_must_be_classes_of_the_model() -> None:
    config = with_value("sample.labels", (0, 9))
    with pytest.raises(InputError, match=r"sample.labels is \(0, 9\), but .* unconditional"):
        validate(config)
    config.model.num_classes = 9
    with pytest.raises(InputError, match=r"sample.labels is \(0, 9\); .* from 0 to 8"):
        validate(config)
    config.model.num_classes = 10
    validate(config)
