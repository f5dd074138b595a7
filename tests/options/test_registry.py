"""Components and registries: a declaration is read once, and what nothing would set is refused at once."""

import dataclasses
from typing import Annotated, Any

import pytest

from diffusion_jax.data import SOURCES
from diffusion_jax.errors import InputError
from diffusion_jax.options import Component, Option, Registry
from diffusion_jax.options.kinds import Float, Int

ORDER = Option(Int(1, 3), "order")
HOW_MUCH = Option(Float(0), "how much")


def plain(grid: str, *, order: Annotated[int, ORDER] = 3) -> str:
    return f"{grid}-{order}"


@dataclasses.dataclass(frozen=True)
class Fancy:
    grid: str
    order: Annotated[int, ORDER] = 3
    width: Annotated[float, Option(Float(0), "size; unset: 2", field="size", default=None)] = 2.0


def registry() -> Registry[Component]:
    return Registry(
        "rule", {"plain": Component(plain, "a"), "fancy": Component(Fancy, "b")}, given=("grid",)
    )


def test_options_are_those_of_functions_and_dataclasses_with_their_defaults() -> None:
    rules = registry()
    assert {name: option.default for name, option in rules.options.items()} == {
        "order": 3,
        "size": None,
    }
    assert rules.owners("order") == ("plain", "fancy") and rules.owners("size") == ("fancy",)
    assert rules.help() == "plain: a; fancy: b" and rules.choice.names == ("plain", "fancy")


def test_a_component_takes_of_what_is_offered_what_it_has_and_keeps_its_own_default() -> None:
    fields, offered = {"order": 2, "size": None, "other": 7}, {"grid": "g", "process": None}
    assert registry()["plain"].from_fields(fields, **offered) == "g-2"
    assert registry()["fancy"].from_fields(fields, **offered) == Fancy("g", 2, 2.0)
    sized = registry()["fancy"].from_fields({"size": 5.0, "width": 7.0}, **offered)
    assert sized == Fancy("g", 3, 5.0)


def test_an_option_outside_a_config_has_its_parameter_s_name_and_an_unknown_one_is_refused() -> (
    None
):
    make = registry()["fancy"].bind(grid="g", process="p")
    assert make() == Fancy("g") and make(width=5.0) == Fancy("g", 3, 5.0)
    with pytest.raises(TypeError, match="size"):
        make(size=5.0)


def test_a_parameter_that_nothing_would_set_is_refused_where_it_is_registered() -> None:
    def renamed(grid: str, *, ordre: int = 3) -> str:
        return f"{grid}{ordre}"

    with pytest.raises(TypeError, match="rule 'mine': ordre must be annotated with an Option"):
        registry()["mine"] = Component(renamed, "c")


def test_an_option_means_the_same_in_all_components() -> None:
    def other(grid: str, *, order: Annotated[int, Option(Int(1, 9), "order")] = 3) -> str:
        return f"{grid}{order}"

    with pytest.raises(TypeError, match="the option order is not that of 'plain'"):
        registry()["mine"] = Component(other, "c")


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"traced": True}, "traced True, not False"),
        ({"default": 2}, "default 2, not 3"),
        ({"needs": ("size",)}, r"needs \('size',\), not \(\)"),
        ({"off": 1}, "off 1, not None"),
        ({"on_resume": True}, "on_resume True, not False"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_option_that_differs_from_that_of_another_component_is_refused_with_the_difference(
    change: dict[str, Any], difference: str
) -> None:
    changed = dataclasses.replace(ORDER, **change)

    def other(grid: str, *, order: Annotated[int, changed] = 3) -> str:  # pyright: ignore[reportInvalidTypeForm]
        return f"{grid}{order}"

    with pytest.raises(TypeError, match=f"is not that of 'plain' .{difference}.: give it another"):
        registry()["mine"] = Component(other, "c")


def test_the_help_of_a_shared_option_is_that_of_its_first_owner() -> None:
    def other(grid: str, *, order: Annotated[int, Option(Int(1, 3), "mine")] = 3) -> str:
        return f"{grid}{order}"

    rules = registry()
    rules["mine"] = Component(other, "c")
    assert rules.options["order"].help == "order" and list(rules.options) == ["order", "size"]


def test_a_default_is_one_of_the_option_s_values() -> None:
    def other(grid: str, *, width: Annotated[float, Option(Float(0), "size")] = -1.0) -> str:
        return f"{grid}{width}"

    with pytest.raises(TypeError, match="default of the option width is -1.0; it must be a finite"):
        registry()["mine"] = Component(other, "c")


def test_a_component_takes_the_place_of_an_alias() -> None:
    rules = Registry(
        "rule", {"plain": Component(plain, "a")}, given=("grid",), aliases={"p": "plain"}
    )
    assert rules["p"] is rules["plain"]
    mine = rules["p"] = Component(plain, "b")
    assert (
        rules["p"] is mine and rules["plain"] is not mine and rules.choice.names == ("plain", "p")
    )


def test_an_option_has_a_default() -> None:
    def bare(grid: str, order: Annotated[int, ORDER]) -> str:
        return f"{grid}{order}"

    with pytest.raises(TypeError, match="the option order has no default"):
        registry()["mine"] = Component(bare, "c")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown rule 'plane'; choose one of plain, fancy"):
        registry().choose("plane")


def test_a_component_may_have_its_annotations_evaluated_or_not():
    def mine(*, much: Annotated[float, HOW_MUCH] = 1.0) -> float:
        return much

    evaluated = Component(mine, "mine").options
    mine.__annotations__ = {"much": "annotated_elsewhere"}
    mine.__globals__["annotated_elsewhere"] = Annotated[float, HOW_MUCH]
    try:
        assert Component(mine, "mine").options == evaluated
    finally:
        del mine.__globals__["annotated_elsewhere"]
    assert evaluated["much"].help == "how much"


def test_a_name_with_any_ending_is_looked_up_wherever_it_is_listed() -> None:
    rules = Registry(
        "rule",
        {"plain": Component(plain, "a"), "file": Component(Fancy, "b")},
        given=("grid",),
        prefixed=("file",),
    )
    assert [(name, rule.help) for name, rule in rules.items()] == [
        ("plain", "a"),
        ("file:NAME", "b"),
    ]
    assert all(name in rules for name in rules) and "file" not in rules
    with pytest.raises(InputError, match="unknown rule 'file'; choose one of plain, file:NAME."):
        rules.choose("file")
    del rules["file:x"]
    assert list(rules) == ["plain"] and dict(SOURCES.items()).keys() >= {"digits", "tfds:NAME"}
