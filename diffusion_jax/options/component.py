"""One component, such as a sampler or a loss, and the options that its signature declares."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin

from diffusion_jax.options.kinds import Kind

T = TypeVar("T")
_SIGNATURE: Any = object()  # In place of a default: that of the signature.


@dataclasses.dataclass(frozen=True)
class Option:
    """What a parameter may be set to; it stands in the parameter's annotation.

      def heun(grid, *, churn: Annotated[float, Option(Float(0), "fresh noise of all steps; 0: none", off=0.0)] = 0.0)

    Attributes:
      kind: The values that it may have.
      help: One line without a period; it says what an unset value means.
      field: Name of the config's field in its group where it is not the parameter's: "min_snr_gamma" of `gamma`.
      default: Default of the config's field where it is not the parameter's; None: unset.
      traced: Whether a compiled program takes it as an argument, so that another value needs no other program.
      on_resume: Of an option that takes part in training: whether a resume may change it, since it alters the trained
        parameters by no more than float rounding.
      needs: Names of options of the group without which it has no effect: one of them must be on.
      off: The value at which options that need this one have no effect.
      parameter: The parameter's name, which `declared_options` fills in.
    """

    kind: Kind
    help: str
    field: str = ""
    default: Any = _SIGNATURE
    traced: bool = False
    on_resume: bool = False
    needs: tuple[str, ...] = ()
    off: Any = None
    parameter: str = ""


def declared_options(make: Callable[..., Any]) -> dict[str, Option]:
    """Returns the options among the parameters of a function or a class, by field, each with its default.

    Raises:
      TypeError: A parameter is annotated with an option but has no default.
    """
    found = {}
    for name, parameter in inspect.signature(make).parameters.items():
        annotation = parameter.annotation
        extras = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
        for option in extras:
            if not isinstance(option, Option):
                continue
            default = parameter.default if option.default is _SIGNATURE else option.default
            if default is inspect.Parameter.empty:
                raise TypeError(f"{make.__qualname__}: the option {name} has no default")
            field = option.field or name
            found[field] = dataclasses.replace(option, field=field, default=default, parameter=name)
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Component(Generic[T]):
    """An entry of a `Registry`.

    Attributes:
      make: What the entry stands for; calling the component calls it.
      help: One line about it, without a period.
    """

    make: Callable[..., T]
    help: str

    def __call__(self, *args: Any, **kwargs: Any) -> T:
        """Calls `make`."""
        return self.make(*args, **kwargs)

    @cached_property
    def options(self) -> Mapping[str, Option]:
        """Its options by the names of their fields, in the order of its signature."""
        return declared_options(self.make)

    @cached_property
    def parameters(self) -> frozenset[str]:
        """Names of all its parameters."""
        return frozenset(inspect.signature(self.make).parameters)

    def takes(self, parameter: str) -> bool:
        """Whether it has a parameter of that name, an option or not."""
        return parameter in self.parameters

    def given(self, **values: Any) -> T:
        """Calls `make` with those of the values that are not None and that it takes.

        A caller offers what components of a kind may ask for, such as the process, and the config's fields; which of
        these a component takes is the component's own.
        """
        known = {option.parameter: field for field, option in self.options.items()}
        offered = {name: values.get(known.get(name, name)) for name in self.parameters}
        return self.make(**{name: value for name, value in offered.items() if value is not None})
