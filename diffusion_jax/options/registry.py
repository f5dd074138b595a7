"""Registry of the components of one kind, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Generic, TypeVar

from diffusion_jax.errors import choose
from diffusion_jax.options.component import Component, Option
from diffusion_jax.options.kinds import Choice

C = TypeVar("C", bound=Component)
_changes = 0  # Changes to all registries.


def num_changes() -> int:
    """Returns the number of changes to all registries; values derived from registries are stale once it has grown."""
    return _changes


class Registry(MutableMapping[str, C], Generic[C]):
    """Components by name, such as `SAMPLERS`; the config's fields are derived from it.

    SAMPLERS["mine"] = UpdateRule(mine, "my own rule")

    Example:
      >>> sorted(dj.losses.LOSSES), dj.losses.LOSSES["simple"].help
      (['hybrid', 'simple', 'sliced', 'vlb'], 'squared error, Eq. 14')
    """

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, C],
        *,
        given: tuple[str, ...] = (),
        aliases: Mapping[str, str] | None = None,
        prefixed: tuple[str, ...] = (),
    ) -> None:
        """Makes a registry.

        Args:
          kind: Word for an entry in messages, such as "sampler".
          entries: Components by name.
          given: Names of parameters that the caller passes and that are not options, such as "grid", "process".
          aliases: Other names of components, which can be looked up but are not listed.
          prefixed: Names of components that are looked up by "name:ANYTHING".

        Raises:
          TypeError: See `__setitem__`.
        """
        self.kind, self._given, self._entries = kind, frozenset(given), dict[str, C]()
        self._aliases, self._prefixed = dict(aliases or {}), prefixed
        for name, component in entries.items():
            self[name] = component

    def __setitem__(self, name: str, component: C) -> None:
        """Adds a component, or replaces the one of that name; an alias of that name is dropped.

        Raises:
          TypeError: A parameter is neither an option nor given by the caller, so nothing would ever set it; or another
            component of the kind has an option of the same name that differs in more than its help.
        """
        declared = {option.parameter for option in component.options.values()}
        unknown = component.parameters - declared - self._given
        if unknown:
            raise TypeError(
                f"{self.kind} {name!r}: {', '.join(sorted(unknown))} must be annotated with an Option"
            )
        for field, option in component.options.items():
            for owner in self.owners(field):
                known = self._entries[owner].options[field]
                if owner != name and (difference := option.difference(known)):
                    raise TypeError(
                        f"{self.kind} {name!r}: the option {field} is not that of {owner!r} ({difference}): give it "
                        "another name"
                    )
        self._entries[name] = component
        self._aliases.pop(name, None)
        _count_change()

    def __getitem__(self, name: str) -> C:
        if name in self._prefixed:  # A prefix alone is not a name.
            raise KeyError(name)
        return self._entries[self.choice.full_name(name)]

    def __delitem__(self, name: str) -> None:
        prefix = name.partition(":")[0]
        del self._entries[prefix if prefix in self._prefixed else name]
        _count_change()

    def __iter__(self) -> Iterator[str]:
        return (f"{name}:NAME" if name in self._prefixed else name for name in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def choose(self, name: str) -> C:
        """Returns the component of that name.

        Raises:
          InputError: The name is unknown; the message lists the known names and suggests the nearest.
        """
        return choose(self.kind, name, self)

    def owners(self, field: str) -> tuple[str, ...]:
        """Returns the names of the components that have this option."""
        return tuple(name for name, entry in self._entries.items() if field in entry.options)

    def takers(self, parameter: str) -> tuple[str, ...]:
        """Returns the names of the components that have this parameter, an option or not."""
        return tuple(name for name, entry in self._entries.items() if entry.takes(parameter))

    @property
    def choice(self) -> Choice:
        """The names as the allowed values of a config field."""
        names = tuple(name for name in self._entries if name not in self._prefixed)
        return Choice(names, self._prefixed, self._aliases)

    @property
    def options(self) -> dict[str, Option]:
        """The options of all components by field; a shared option is listed once, with the help of its first owner."""
        found: dict[str, Option] = {}
        for entry in self._entries.values():
            for name, option in entry.options.items():
                found.setdefault(name, option)
        return found

    def help(self) -> str:
        """Returns one line that describes all components: "heun: two evaluations per step; ..."."""
        return "; ".join(f"{name}: {entry.help}" for name, entry in self._entries.items())


def _count_change() -> None:
    global _changes
    _changes += 1
