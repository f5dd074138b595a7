"""Components and registries: a declaration is read once, and what nothing would set is refused at once."""

import dataclasses
from typing import Annotated

import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.options import Component, Option, Registry
from diffusion_jax.options.kinds import Float, Int

ORDER = Option(Int(1, 3), "order")


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
    offered = {"grid": "g", "order": 2, "size": None, "other": 7}
    assert registry()["plain"].given(**offered) == "g-2"
    assert registry()["fancy"].given(**offered) == Fancy("g", 2, 2.0)
    assert registry()["fancy"].given(grid="g", size=5.0, width=7.0) == Fancy("g", 3, 5.0)


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


def test_an_option_has_a_default() -> None:
    def bare(grid: str, order: Annotated[int, ORDER]) -> str:
        return f"{grid}{order}"

    with pytest.raises(TypeError, match="the option order has no default"):
        registry()["mine"] = Component(bare, "c")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown rule 'plane'; choose one of plain, fancy"):
        registry().choose("plane")
