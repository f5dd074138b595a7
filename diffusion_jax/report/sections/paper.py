"""The figures and tables of Ho et al. (2020) that the run has, beside the paper's numbers for CIFAR-10."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffusion_jax.report.blocks import Block, Note, Row, Table
from diffusion_jax.report.run_folder import RunFolder
from diffusion_jax.report.sections.inputs import Inputs, figures, measured, text
from diffusion_jax.report.sections.likelihood import arrays_of_bound, plots_of_bound
from diffusion_jax.report.sections.samples import grids

# Row of Table 1, our metric, part of it, and the paper's numbers: trained by L_simple, and by L with fixed variances.
_TABLE_1 = (
    ("Inception score", "is", ("9.46 ± 0.11", "7.67 ± 0.13")),
    ("FID", "fid", ("3.17", "13.51")),
    ("NLL, test (bits/dim)", "bpd", ("≤ 3.75", "≤ 3.70")),
)
# Rows of Table 2 with the paper's FID: prediction and loss of a config, and whether its variances are learned.
_TABLE_2 = (
    ("μ̃, L, learned diagonal Σ", ("mean", False, True), "23.69"),
    ("μ̃, L, fixed isotropic Σ", ("mean", False, False), "13.22"),
    ("ε, L, fixed isotropic Σ", ("eps", False, False), "13.51"),
    ("ε, L_simple", ("eps", True, False), "3.17"),
)
# The end of Table 4, as Section 4.3 states it.
_RATE, _RMSE = "1.78", "0.95"
_PICTURES = (
    (
        "Figure 6: progressive generation, x̂_0 over the reverse process",
        "samples/*/progressive.png",
        ("sample", "sample.progressive=true"),
    ),
    (
        "Figure 7: samples that share an x_t",
        "samples/*/shared.png",
        ("sample", "sample.shared_t={times}"),
    ),
    (
        "Figure 8: test images mixed at several t, and decoded",
        "edits/*/interpolation.png",
        ("interpolate",),
    ),
)
ROWS = 10  # Of Table 4.


def paper(inputs: Inputs) -> list[Block]:
    """Returns what the run has of the paper's figures and tables; unless they were asked for, how to get them."""
    run = inputs.run
    if not inputs.paper:
        command = run.command("report", "report.paper=true")
        return [
            Note("The figures and tables of Ho et al. (2020) that this run has, in one:", command)
        ]
    blocks: list[Block] = [
        Note(
            "Numbers of the paper are of CIFAR-10, in 800,000 steps of batch 128; they say nothing of other data."
        ),
        *_samples(inputs),
        *_table_1(run),
        *_table_2([run, *inputs.others]),
        *_compression(run),
    ]
    for what, pattern, command in _PICTURES:
        blocks.append(_picture(inputs, what, pattern, command))
    said = "Nearest neighbors (the paper's appendix) stand in the section Nearest training images."
    return [*blocks, Note(said)]


def _samples(inputs: Inputs) -> list[Block]:
    found = list(grids(inputs.run).items())
    if not found:
        return [Note("No samples yet:", inputs.run.training())]
    step, path = found[-1]
    alt = f"Grid of samples after step {step:,}"
    return [inputs.album.file(path, alt, f"Samples after step {step:,} (the paper's Figure 1)")]


def _table_1(run: RunFolder) -> list[Block]:
    rows, missing = [], list[str]()
    for what, metric, (simple, bound) in _TABLE_1:
        said, of = _measured(run, metric)
        missing += [] if said else [metric]
        rows.append((what, said or "not measured", of, simple, bound))
    header = ("Metric", "This run", "Of", "Paper, L_simple", "Paper, L, fixed isotropic Σ")
    blocks: list[Block] = [Table("Table 1: sample quality and likelihood", header, rows)]
    if images := [{"fid": "fd"}.get(metric, metric) for metric in missing if metric != "bpd"]:
        asked = (f"eval.metrics={','.join(images)}", "eval.features=inception")
        blocks.append(Note("What is missing of it is measured by", run.command("evaluate", *asked)))
    if "bpd" in missing:
        blocks.append(Note("The bound is measured by", run.command("evaluate", "eval.metrics=bpd")))
    return blocks


def _measured(run: RunFolder, metric: str) -> tuple[str, str]:
    """Returns the figure, "" if it is not measured, and what it is of; a score in other features names them."""
    for name, record in measured(run).items():
        if name not in (metric, f"{metric}_inception"):
            continue
        for label, figure in figures(name, record):
            if label in (name, f"{name}: total", f"{name}: {metric}"):
                images = record.get("images")
                drawn = images if isinstance(images, dict) else {}
                count = record.get("num_images") or drawn.get("num_images")
                step = record.get("step", drawn.get("step"))
                return str(figure), f"{text(count)} images, step {text(step)}"
    return "", "–"


def _table_2(runs: Sequence[RunFolder]) -> list[Block]:
    rows = []
    for what, variant, published in _TABLE_2:
        ours = [run for run in runs if _variant(run) == variant]
        said = [f"{run.name}: {_measured(run, 'fid')[0] or 'FID not measured'}" for run in ours]
        rows.append((what, "; ".join(said) or "no run", published))
    published = {variant for _, variant, _ in _TABLE_2}
    for run in runs:
        if run.fields and (variant := _variant(run)) not in published:
            loss = "L_simple" if variant[1] else f"loss {run.fields.get('loss.name')}"
            said = f"{run.name}: {_measured(run, 'fid')[0] or 'FID not measured'}"
            rows.append((f"{variant[0]}, {loss}, not in the paper", said, "–"))
    table = Table("Table 2: prediction and objective", ("Variant", "Runs", "Paper, FID"), rows)
    if all(row[1] != "no run" for row in rows):
        return [table]
    more = "Runs of other variants are set beside this one by report.runs; they are trained by"
    command = "python -m diffusion_jax.main --config=CONFIG.py --workdir=OTHER_WORKDIR "
    return [table, Note(more, command + "--config.process.prediction=mean --config.loss.name=vlb")]


def _variant(run: RunFolder) -> tuple[object, bool, bool]:
    """Returns prediction, whether the loss is L_simple, and whether variances are learned."""
    fields = run.fields
    simple = fields.get("loss.name") == "simple" and fields.get("loss.weighting") is None
    return fields.get("process.prediction"), simple, fields.get("process.variance") == "learned"


def _compression(run: RunFolder) -> list[Block]:
    record = measured(run).get("bpd", {})
    arrays = arrays_of_bound(run, record)
    if not arrays:
        command = run.command("evaluate", "eval.metrics=bpd")
        return [Note("Table 4 and Figure 5 (progressive lossy compression) are made by", command)]
    rate, rmse = arrays["rate"], arrays["rmse"]
    chosen = np.unique(np.linspace(0, len(rate) - 1, ROWS).round().astype(int))[::-1]
    rows = [
        (
            f"{arrays['step'][i]:.0f}",
            f"{rate[i]:.5g}",
            f"{rmse[i]:.5g}",
            *((_RATE, _RMSE) if i == chosen[0] else ("", "")),
        )
        for i in chosen
    ]
    header = ("Reverse steps", "Rate (bits/dim)", "RMSE (0 … 255)", "Paper, rate", "Paper, RMSE")
    return [
        Table("Table 4: progressive lossy compression", header, rows),
        Note("Figure 5: distortion and rate over the steps, and against each other."),
        Row(plots_of_bound(run, record)[:3]),
    ]


def _picture(inputs: Inputs, what: str, pattern: str, command: Sequence[str]) -> Block:
    run = inputs.run
    found = sorted(run.path.glob(pattern), key=lambda path: path.stat().st_mtime)
    if found:
        return inputs.album.file(found[-1], what, what)
    mode, *assignments = command
    steps = run.fields.get("process.num_timesteps")
    last = steps if isinstance(steps, int) else 1000
    times = ",".join(str(max(1, last * k // 4) - 1) for k in (1, 2, 3, 4))
    flags = [assignment.format(times=times) for assignment in assignments]
    return Note(f"{what}:", run.command(mode, *flags))
