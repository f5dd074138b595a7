"""The table of all fields of the config, by "group.field".

Defaults, checks, the rules for resuming, `--help=FIELDS` and docs/config.md are all derived from it. The fields of
samplers, losses and other components are the options that they declare.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

from diffusion_jax.config.field import Field, merge
from diffusion_jax.config.inference import inference_fields
from diffusion_jax.config.training import training_fields
from diffusion_jax.options.kinds import Choice
from diffusion_jax.options.registry import num_changes

GROUPS = {
    "": "fields without a group",
    "data": "the images and their preparation",
    "model": "the network",
    "process": "the noising process and the network's prediction",
    "loss": "the training objective",
    "optimizer": "Adam, its learning rate and the averages of the weights (EMA)",
    "train": "length of the training, batches, logging, checkpoints and periodic evaluation",
    "sampler": "the reverse process, from noise to images",
    "sample": "images drawn by --mode=sample",
    "edit": "edits of images by --mode=inpaint and --mode=interpolate",
    "eval": "the held-out loss and the metrics of --mode=evaluate",
    "report": "the page that --mode=report writes",
    "mesh": "distribution of the work over devices",
}


def group_of(name: str) -> str:
    """Returns the group of "group.field", "" for a field without one."""
    return name.rpartition(".")[0]


class FieldTable(Mapping[str, Field]):
    """Fields by name, kept up to date with the registries: it includes options of components registered later."""

    def __init__(self) -> None:
        self._fields: dict[str, Field] = {}
        self._as_of = -1

    def _now(self) -> dict[str, Field]:
        if self._as_of != num_changes():
            fields = merge(training_fields(), inference_fields())
            order = list(GROUPS)
            names = sorted(fields, key=lambda name: order.index(group_of(name)))
            self._fields, self._as_of = {name: fields[name] for name in names}, num_changes()
        return self._fields

    def __getitem__(self, name: str) -> Field:
        return self._now()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())

    # Mapping's own views look each field up anew. Whoever chooses a component goes through all fields many times,
    # which takes most of a config's time where annotations are checked, as in the tests.
    def keys(self) -> KeysView[str]:
        return self._now().keys()

    def values(self) -> ValuesView[Field]:
        return self._now().values()

    def items(self) -> ItemsView[str, Field]:
        return self._now().items()


FIELDS = FieldTable()


def full_name(chooser: str, value: Any) -> Any:
    """Returns the component's name for a field's value, which may be an alias or have a prefix.

    Args:
      chooser: Field that chooses a component, such as sampler.name.
      value: Its value.
    """
    kind = FIELDS[chooser].kind
    return kind.full_name(value) if isinstance(kind, Choice) and isinstance(value, str) else value


def chooses_owner(option: str, chooser: str, value: Any) -> bool:
    """Whether the value of a field that chooses components, such as sampler.name, names one that has the option."""
    owners = FIELDS[option].owners[chooser]
    chosen = value if isinstance(value, tuple) else (value,)
    return any(full_name(chooser, one) in owners for one in chosen)


def first_name(chooser: str, value: Any) -> Any:
    """Returns the name that a field's value had before it was renamed, the same for the name and for its alias.

    Args:
      chooser: Field that chooses a component, such as sampler.name.
      value: Its value.
    """
    kind = FIELDS[chooser].kind
    if not isinstance(kind, Choice) or not isinstance(value, str):
        return value
    name = kind.aliases.get(value, value)
    return next((alias for alias, new in kind.aliases.items() if new == name), name)
