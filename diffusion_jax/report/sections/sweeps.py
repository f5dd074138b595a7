"""Quality against network evaluations, and against the scale of guidance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from diffusion_jax.report.blocks import Block, Chart, Details, Note, Row, Table
from diffusion_jax.report.charts import Curve, chart
from diffusion_jax.report.measuring import download, features
from diffusion_jax.report.run_folder import RunFolder
from diffusion_jax.report.sections.inputs import Figure, Inputs, entries, number, part, text

STEPS, GUIDANCE = "sampler.num_steps", "sampler.guidance_scale"
MOST_CURVES, COLORS = 8, 8

Line = Mapping[str, Any]


def sweeps(inputs: Inputs) -> list[Block]:
    """Returns the charts of the newest sweep over the steps and of the newest over guidance, and their tables."""
    run, blocks, shown = inputs.run, list[Block](), list[list[Line]]()
    asked = [
        (STEPS, "nfe", "network evaluations an image", "sampler.num_steps=5,10,20,50", True),
        (GUIDANCE, GUIDANCE, "guidance scale", "sampler.guidance_scale=1,1.5,2,4", False),
    ]
    for field, x, axis, sweep, log in asked:
        lines = next((lines for lines in _sweeps(run) if field in _varied(lines)), None)
        if lines is None:
            if field != GUIDANCE or run.class_conditional:
                missing = f"No sweep of quality over {axis} yet{download(run)}:"
                metric = ("eval.metrics=fd", f"eval.sweep={sweep}")
                blocks.append(Note(missing, run.command("evaluate", *metric, *features(run))))
            continue
        blocks.append(Row(_charts(lines, field, x, axis, log)))
        shown += [] if lines in shown else [lines]
    return [*blocks, *(Details("All points of the sweep", [_table(lines)]) for lines in shown)]


def _sweeps(run: RunFolder) -> Iterator[list[Line]]:
    """Yields the tables of all sweeps, the newest first."""
    latest = run.result("sweep")
    for record in (latest, *entries(latest.get("earlier"))):
        table = entries(part(record).get("table"))
        if lines := [line for line in table if isinstance(line, Mapping) and "nfe" in line]:
            yield lines


def _fields(lines: list[Line]) -> list[str]:
    names = list(lines[0])
    return names[: names.index("nfe")]


def _figures(lines: list[Line]) -> list[str]:
    names = list(lines[0])
    return [n for n in names[names.index("nfe") + 1 :] if not n.endswith("_stderr")]


def _varied(lines: list[Line]) -> list[str]:
    return [name for name in _fields(lines) if len({str(line.get(name)) for line in lines}) > 1]


def _charts(lines: list[Line], field: str, x: str, axis: str, log: bool) -> list[Chart]:
    others = [name for name in _varied(lines) if name != field]

    def label(line: Line) -> str:
        return ", ".join(f"{n.rpartition('.')[2]} {text(line.get(n))}" for n in others)

    charts = [
        chart(f"{figure} against {axis}", axis, curves, log_x=log)
        for figure in _figures(lines)
        if (curves := _curves(lines, figure, label, lambda line: _place(line.get(x))))
    ]
    return [plot for plot in charts if plot is not None]


def _curves(
    lines: list[Line],
    figure: str,
    label: Callable[[Line], str],
    place: Callable[[Line], float | None],
) -> list[Curve]:
    points: dict[str, list[tuple[float, float | None]]] = {}
    for line in lines:
        if (at := place(line)) is not None:
            points.setdefault(label(line), []).append((at, number(line.get(figure))))
    shown = list(points.items())[:MOST_CURVES]
    return [
        Curve(name or figure, sorted(some, key=lambda p: p[0]), i % COLORS, True)
        for i, (name, some) in enumerate(shown)
    ]


def _place(value: Any) -> float | None:
    try:
        return number(float(value))
    except (TypeError, ValueError, OverflowError):
        return None


def _table(lines: list[Line]) -> Table:
    fields, figures = _fields(lines), _figures(lines)
    header = [*(name.rpartition(".")[2] for name in fields), "evaluations", *figures]
    rows = [
        [
            *(text(line.get(name)) for name in (*fields, "nfe")),
            *(str(Figure(number(line.get(n)), number(line.get(f"{n}_stderr")))) for n in figures),
        ]
        for line in lines
    ]
    return Table("All points of the sweep", header, rows)
