"""A component, such as a sampler or a loss, and the options that its signature declares."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from diffusion_jax.options.kinds import Kind

T = TypeVar("T")
_SIGNATURE: Any = object()  # Sentinel: use the default of the signature.


@dataclasses.dataclass(frozen=True)
class Option:
    """Allowed values and help of a parameter, given in the parameter's annotation.

      def heun(grid, *, churn: Annotated[float, Option(Float(0), "fresh noise of all steps; 0: none", off=0.0)] = 0.0)

    Attributes:
      kind: Allowed values.
      help: One line without a period, which says what an unset value means.
      field: Name of the config field if it differs from the parameter's, such as "min_snr_gamma" for `gamma`.
      default: Default of the config field if it differs from the parameter's; None: unset.
      traced: Whether a compiled program takes it as an argument, so that a new value needs no recompilation.
      on_resume: Whether a resumed run may change it, since it alters the trained parameters by no more than float
        rounding. Only used for options that take part in training.
      needs: Names of options in the same group, at least one of which must be on for this one to have an effect.
      off: The value at which options that need this one have no effect.
      inherits: Config field whose value an unset option has, such as "process.variance"; "": none.
      parameter: Name of the parameter, filled in by `declared_options`.
    """

    kind: Kind
    help: str
    field: str = ""
    default: Any = _SIGNATURE
    traced: bool = False
    on_resume: bool = False
    needs: tuple[str, ...] = ()
    off: Any = None
    inherits: str = ""
    parameter: str = ""

    def difference(self, other: Option) -> str | None:
        """Returns how the meaning of a value differs from another's, as in "default 3, not 2", or None.

        The names and the help may differ.
        """
        for field in dataclasses.fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name not in ("help", "field", "parameter") and ours != theirs:
                return f"{field.name} {ours!r}, not {theirs!r}"
        return None

    def __repr__(self) -> str:
        """The help and the values, since signatures show it."""
        return f"Option({self.help!r}, {self.kind.allowed})"


def declared_options(make: Callable[..., Any]) -> dict[str, Option]:
    """Returns the options declared by a function or a class, with their defaults, by field name.

    Raises:
      TypeError: A parameter is annotated with an option but has no default, or one that the option does not allow.
    """
    found, annotations = {}, _annotations(make)
    for name, parameter in inspect.signature(make).parameters.items():
        annotation = annotations.get(name)
        extras = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
        for option in extras:
            if not isinstance(option, Option):
                continue
            default = parameter.default if option.default is _SIGNATURE else option.default
            if default is inspect.Parameter.empty:
                raise TypeError(f"{make.__qualname__}: the option {name} has no default")
            if default is not None and not option.kind.accepts(default):
                raise TypeError(
                    f"{make.__qualname__}: the default of the option {name} is {default!r}; it must be "
                    f"{option.kind.allowed}"
                )
            field = option.field or name
            found[field] = dataclasses.replace(option, field=field, default=default, parameter=name)
    return found


def _annotations(make: Callable[..., Any]) -> dict[str, Any]:
    """Returns the annotations of the parameters, also where these are strings (PEP 563)."""
    plain_class = inspect.isclass(make) and not dataclasses.is_dataclass(make)
    described: Any = make.__init__ if plain_class else getattr(make, "func", make)
    return get_type_hints(described, include_extras=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Component(Generic[T]):
    """An entry of a `Registry`.

    Attributes:
      make: The function or class; calling the component calls it.
      help: One-line description without a period.
    """

    make: Callable[..., T]
    help: str

    def __call__(self, *args: Any, **kwargs: Any) -> T:
        """Calls `make`."""
        return self.make(*args, **kwargs)

    @functools.cached_property
    def options(self) -> Mapping[str, Option]:
        """Options by field name, in the order of the signature."""
        return declared_options(self.make)

    @functools.cached_property
    def parameters(self) -> frozenset[str]:
        """Names of all parameters."""
        return frozenset(inspect.signature(self.make).parameters)

    def takes(self, parameter: str) -> bool:
        """Whether there is a parameter of that name, an option or not."""
        return parameter in self.parameters

    def bind(self, **offered: Any) -> Callable[..., T]:
        """Returns `make` with those of the offered arguments that it takes and that are not None; it takes the options.

          SAMPLERS["heun"].bind(grid=grid, process=process)(churn=9.0)

        The caller offers everything that components of the kind may ask for, such as the grid and the process.
        """
        taken = {k: v for k, v in offered.items() if v is not None and self.takes(k)}
        return functools.partial(self.make, **taken)

    def from_fields(self, fields: Mapping[str, Any], **offered: Any) -> T:
        """Calls `make` with what is offered, as in `bind`, and with the options that the config's fields set.

        Args:
          fields: Values by field name; those that are None, or that are not options of the component, are ignored.
          **offered: As in `bind`.
        """
        return self.bind(**offered)(**self.arguments(fields))

    def arguments(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the options that the config's fields set, by parameter name."""
        return {
            option.parameter: fields[field]
            for field, option in self.options.items()
            if fields.get(field) is not None
        }
