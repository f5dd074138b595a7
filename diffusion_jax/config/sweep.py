"""Sweeps: all combinations of some fields' values, as in "sampler.num_steps=10,20; sampler.guidance_scale=1,2"."""

from __future__ import annotations

import itertools

from diffusion_jax.config.table import FIELDS
from diffusion_jax.errors import InputError, nearest

FROM_SAMPLE = ("ema", "ema_length", "step", "seed", "labels")
MOST = 10_000  # Points of a sweep.


def sweepable(name: str) -> bool:
    """Whether a field decides what images are drawn, and so can be swept."""
    group, _, leaf = name.rpartition(".")
    return group == "sampler" or (group == "sample" and leaf in FROM_SAMPLE)


def points_of(spec: str) -> list[dict[str, str]]:
    """Returns the points of a sweep, the values of a later field varying faster, as fields -> values in text.

    Values are separated by commas; those that hold commas themselves, such as lists, by vertical bars.

    Args:
      spec: Fields with their values, separated by semicolons.

    Raises:
      InputError: A field that is unknown, is given twice or decides nothing of an image, or a value that it does not
        allow.
    """
    axes: dict[str, list[str]] = {}
    for part in filter(None, (part.strip() for part in spec.split(";"))):
        name, equals, text = (piece.strip() for piece in part.partition("="))
        if name not in FIELDS:
            hint = nearest(name, [field for field in FIELDS if sweepable(field)])
            raise InputError(f"eval.sweep: unknown config field {name!r}.{hint}")
        if not sweepable(name):
            raise InputError(
                f"eval.sweep: {name} is no field to sweep; these are the group sampler and "
                + ", ".join(f"sample.{leaf}" for leaf in FROM_SAMPLE)
            )
        values = [value.strip() for value in text.split("|" if "|" in text else ",")]
        if not equals or not all(values):
            raise InputError(f"eval.sweep: {part!r} must be FIELD=VALUE,VALUE,...")
        if name in axes:
            raise InputError(f"eval.sweep: {name} is there twice")
        if len(set(values)) < len(values):
            raise InputError(f"eval.sweep: {name} has a value twice: {text}")
        for value in values:
            _check(name, value)
        axes[name] = values
    if not axes:
        raise InputError("eval.sweep: there is no FIELD=VALUE,VALUE,... in it")
    if (count := len(list(itertools.product(*axes.values())))) > MOST:
        raise InputError(f"eval.sweep: it has {count} points; at most {MOST} are possible")
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _check(name: str, text: str) -> None:
    field = FIELDS[name]
    if field.optional and text.lower() == "none":
        return
    try:
        value = field.kind.parse(text)
    except ValueError as error:
        raise InputError(f"eval.sweep: {name} {field.refusal(text)}") from error
    if problem := field.problem(value):
        raise InputError(f"eval.sweep: {name} {problem}")


def label(point: dict[str, str], axes: set[str]) -> str:
    """Returns the values of some fields of a point in words, such as "num_steps=10"."""
    chosen = (f"{name.rpartition('.')[2]}={value}" for name, value in point.items() if name in axes)
    return ", ".join(chosen)
