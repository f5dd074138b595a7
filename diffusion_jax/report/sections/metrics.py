"""All metrics, and all that they depend on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_jax.report.blocks import Block, Details, Facts, Note, Table
from diffusion_jax.report.measuring import download, features
from diffusion_jax.report.sections.inputs import Inputs, entries, figures, measured, part, text

LONGEST = 300  # Characters of a value.
_TOLD = ("classes", "files", "sizes", "distances")  # Long, and told elsewhere.
MOST_EARLIER = 30


def metrics(inputs: Inputs) -> list[Block]:
    """Returns the table of results/evaluate.json, with the provenance of each metric on demand."""
    run, found = inputs.run, measured(inputs.run)
    if not found:
        command = run.command("evaluate", "eval.metrics=fd,kid,pr", *features(run))
        return [Note(f"No metric is measured yet{download(run)}:", command)]
    rows = [
        (label, str(figure), *_short(record))
        for name, record in found.items()
        for label, figure in figures(name, record)
    ]
    header = ("Metric", "Value", "Images", "Step", "Drawn by", "Features", "Reference")
    blocks: list[Block] = [Table("Metrics", header, rows)]
    for name, record in found.items():
        blocks.append(Details(f"All that {name} depends on", [Facts(_flat(record), name)]))
    if earlier := _earlier(run.result("evaluate").get("earlier")):
        table = Table("Earlier measurements", ("Metric", "Value", *header[2:]), earlier)
        blocks.append(Details(f"{len(earlier)} earlier figures", [table]))
    return blocks


def _short(record: Mapping[str, Any]) -> tuple[str, ...]:
    images = part(record.get("images"))
    sampler = part(images.get("sampler"))
    drawn = f"{sampler.get('name')}, {text(images.get('nfe'))} evaluations" if sampler else None
    of, to = record.get("features"), record.get("reference")
    return (
        text(record.get("num_images") or images.get("num_images")),
        text(record.get("step", images.get("step"))),
        text(drawn or record.get("split")),
        text(of.get("name") if isinstance(of, Mapping) else of),
        text(to.get("name") if isinstance(to, Mapping) else to),
    )


def _earlier(earlier: Any) -> list[tuple[str, ...]]:
    return [
        (label, str(figure), *_short(record))
        for entry in entries(earlier)
        for name, record in part(entry).items()
        if isinstance(record, Mapping)
        for label, figure in figures(name, record)
    ][:MOST_EARLIER]


def _flat(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in record.items():
        if name in _TOLD:
            continue
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            said = text(value)
            said = said if len(said) <= LONGEST else f"{said[:LONGEST]}…"
            rows.append((f"{prefix}{name}", said))
    return rows
