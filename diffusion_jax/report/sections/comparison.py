"""Several runs side by side: curves in one chart, last grids, differences of config, and results."""

from __future__ import annotations

from collections.abc import Sequence

from diffusion_jax.report.blocks import Block, Note, Row, Table
from diffusion_jax.report.charts import Curve, chart
from diffusion_jax.report.run_folder import RunFolder
from diffusion_jax.report.sections.inputs import Inputs, figures, measured, number, part, text
from diffusion_jax.report.sections.samples import grids
from diffusion_jax.report.sections.training import points

COLORS = 8
CURVES = {
    "loss": "Training loss",
    "eval_loss": "Held-out loss (EMA)",
    "grad_norm": "Gradient norm",
    "images_per_sec": "Throughput (images/s)",
}


def comparison(inputs: Inputs) -> list[Block]:
    """Returns the comparison of all runs; without others, how to get one."""
    run, runs = inputs.run, [inputs.run, *inputs.others]
    if not inputs.others:
        command = run.command("report", "report.runs=OTHER_WORKDIR,…")
        return [Note("Other runs are set beside this one by their folders:", command)]
    blocks = [Note(f"{r.name}: {problem}") for r in inputs.others for problem in r.problems]
    charts = [
        chart(
            title,
            "step",
            [
                Curve(r.name, points(r, name), i % COLORS, name == "eval_loss")
                for i, r in enumerate(runs)
            ],
        )
        for name, title in CURVES.items()
    ]
    pictures = [block for r in runs if (block := _last_grid(r, inputs))]
    return [
        *blocks,
        Row([plot for plot in charts if plot is not None]),
        Row(pictures),
        _results(runs),
        _differences(runs),
    ]


def _last_grid(run: RunFolder, inputs: Inputs) -> Block | None:
    found = grids(run)
    if not found:
        return Note(f"{run.name} has no grid of samples yet:", run.command("sample"))
    step, path = list(found.items())[-1]
    caption = f"{run.name}, step {step:,}"
    return inputs.album.file(path, f"Grid of samples of {caption}", caption, limit=120_000)


def _results(runs: Sequence[RunFolder]) -> Table:
    columns: list[dict[str, str]] = []
    for run in runs:
        trained = run.result("train")
        known = {
            "step": text(run.rows[-1]["step"] if run.rows else None),
            "parameters": text(trained.get("parameters")),
            **{name: _last(run, name) for name in ("loss", "eval_loss")},
            "images/s": text(number(trained.get("images_per_sec"))),
            "device": text(part(trained.get("provenance")).get("device")),
        }
        for name, record in measured(run).items():
            known |= {label: str(figure) for label, figure in figures(name, record)}
        columns.append(known)
    return _beside(runs, columns, "Results", "Result")


def _last(run: RunFolder, name: str) -> str:
    known = [y for _, y in points(run, name) if y is not None]
    return f"{known[-1]:.4g}" if known else "–"


def _differences(runs: Sequence[RunFolder]) -> Block:
    columns = [{name: text(value) for name, value in run.fields.items()} for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    differing = [n for n in names if len({column.get(n) for column in columns}) > 1]
    if not differing:
        return Note("The configs of these runs are the same.")
    chosen = [{n: column[n] for n in differing if n in column} for column in columns]
    return _beside(runs, chosen, "Fields that differ", "Field")


def _beside(
    runs: Sequence[RunFolder], columns: Sequence[dict[str, str]], caption: str, what: str
) -> Table:
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [(name, *(column.get(name, "–") for column in columns)) for name in names]
    return Table(caption, (what, *(run.name for run in runs)), rows)
