"""The table of all fields of the config, by "group.field".

Defaults, checks, the rules of a resume, `--help=FIELDS` and docs/config.md all come from here. The fields of samplers,
losses and other components are the options that these declare.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from diffusion_jax.config.field import Field
from diffusion_jax.config.inference import inference_fields
from diffusion_jax.config.training import training_fields
from diffusion_jax.options.kinds import Choice
from diffusion_jax.options.registry import num_changes

GROUPS = {
    "": "fields without a group",
    "data": "the images, and how they are prepared",
    "model": "the network",
    "process": "how images become noise, and what the network predicts",
    "loss": "what training minimizes",
    "optimizer": "Adam, its learning rate, and the average of the weights (EMA)",
    "train": "length of the training, its batches, and what happens besides",
    "sampler": "how noise becomes images",
    "sample": "what --mode=sample draws",
    "edit": "what --mode=inpaint and --mode=interpolate do with images",
    "eval": "the held-out loss, and what --mode=evaluate measures",
    "mesh": "how the work is spread over devices",
}


def group_of(name: str) -> str:
    """Returns the group of "group.field", "" for a field without one."""
    return name.rpartition(".")[0]


class FieldTable(Mapping[str, Field]):
    """The fields by name. It follows the registries: the options of a component that is added later are here too."""

    def __init__(self) -> None:
        self._fields: dict[str, Field] = {}
        self._as_of = -1

    def _now(self) -> dict[str, Field]:
        if self._as_of != num_changes():
            fields = {**training_fields(), **inference_fields()}
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


FIELDS = FieldTable()


def full_name(chooser: str, value: Any) -> Any:
    """Returns the name of the component that a field's value stands for, where that is an alias or has a prefix."""
    kind = FIELDS[chooser].kind
    return kind.full_name(value) if isinstance(kind, Choice) and isinstance(value, str) else value
