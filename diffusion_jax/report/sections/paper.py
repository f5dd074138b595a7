"""The figures and tables of Ho et al. (2020) that the run has, beside the paper's numbers for CIFAR-10."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffusion_jax.report.blocks import Block, Note, Row, Table
from diffusion_jax.report.measuring import download
from diffusion_jax.report.run_folder import RunFolder
from diffusion_jax.report.sections.inputs import Inputs, figures, measured, part, text
from diffusion_jax.report.sections.likelihood import arrays_of_bound, plots_of_bound
from diffusion_jax.report.sections.samples import grids

# Row of Table 1, our metric, part of it, and the paper's numbers: trained by L_simple, and by L with fixed variances.
_TABLE_1 = (
    ("Inception score", "is", ("9.46 ± 0.11", "7.67 ± 0.13")),
    ("FID", "fid", ("3.17", "13.51")),
    ("NLL, test (bits/dim)", "bpd", ("≤ 3.75", "≤ 3.70")),
)
# Rows of Table 2 with the paper's Inception score and FID, by prediction and loss of a config. A diagonal variance
# is none of ours, since those learned lie between two fixed ones (Nichol & Dhariwal, 2021).
_TABLE_2 = (
    ("μ̃, L, learned diagonal Σ", None, "7.28 ± 0.10", "23.69"),
    ("μ̃, L, fixed isotropic Σ", ("mean", "vlb"), "8.06 ± 0.09", "13.22"),
    ("μ̃, ‖μ̃ − μ̃_θ‖²", ("mean", "simple"), "unstable", "unstable"),
    ("ε, L, learned diagonal Σ", None, "unstable", "unstable"),
    ("ε, L, fixed isotropic Σ", ("eps", "vlb"), "7.67 ± 0.13", "13.51"),
    ("ε, L_simple", ("eps", "simple"), "9.46 ± 0.11", "3.17"),
)
# Table 4: rate and RMSE by T - t + 1, the number of reverse steps done, of T = 1000.
_TABLE_4 = {
    1000: ("1.77581", "0.95136"),
    900: ("0.11994", "12.02277"),
    800: ("0.05415", "18.47482"),
    700: ("0.02866", "24.43656"),
    600: ("0.01507", "30.80948"),
    500: ("0.00716", "38.03236"),
    400: ("0.00282", "46.12765"),
    300: ("0.00081", "54.18826"),
    200: ("0.00013", "60.97170"),
    100: ("0.00000", "67.60125"),
}
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
        said = f"What is missing of it is measured by{download(run, 'inception')}"
        blocks.append(Note(said, run.command("evaluate", *asked)))
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
                drawn = part(record.get("images"))
                count = record.get("num_images") or drawn.get("num_images")
                step = record.get("step", drawn.get("step"))
                return str(figure), f"{text(count)} images, step {text(step)}"
    return "", "–"


def _table_2(runs: Sequence[RunFolder]) -> list[Block]:
    rows = []
    for what, variant, *published in _TABLE_2:
        ours = [run for run in runs if variant and _variant(run) == variant]
        said = [f"{run.name}: {_measured(run, 'fid')[0] or 'FID not measured'}" for run in ours]
        rows.append((what, "; ".join(said) or ("no run" if variant else "–"), *published))
    known = {variant for _, variant, *_ in _TABLE_2}
    for run in runs:
        if run.fields and _variant(run) not in known - {None}:
            said = f"{run.name}: {_measured(run, 'fid')[0] or 'FID not measured'}"
            rows.append((f"{_recipe(run)}: not in the paper", said, "–", "–"))
    header = ("Variant", "Runs, FID", "Paper, IS", "Paper, FID")
    table = Table("Table 2: prediction and objective", header, rows)
    if all(row[1] != "no run" for row in rows):
        return [table]
    more = "Runs of other variants are set beside this one by report.runs; they are trained by"
    command = "python -m diffusion_jax.main --config=CONFIG.py --workdir=OTHER_WORKDIR "
    return [table, Note(more, command + "--config.process.prediction=mean --config.loss.name=vlb")]


def _variant(run: RunFolder) -> tuple[str, str] | None:
    """Returns prediction and loss of a recipe that may be the paper's: its process, no weights, fixed variances."""
    fields = run.fields
    foreign = fields.get("process.name") != "ddpm" or fields.get("loss.weighting") is not None
    if foreign or fields.get("process.variance") == "learned":
        return None
    return str(fields.get("process.prediction")), str(fields.get("loss.name"))


def _recipe(run: RunFolder) -> str:
    """Returns what tells a recipe from the paper's."""
    names = (
        "process.name",
        "process.prediction",
        "process.variance",
        "loss.name",
        "loss.weighting",
    )
    return ", ".join(str(run.fields[name]) for name in names if run.fields.get(name) is not None)


def _compression(run: RunFolder) -> list[Block]:
    record = measured(run).get("bpd", {})
    arrays = arrays_of_bound(run, record)
    if not arrays:
        command = run.command("evaluate", "eval.metrics=bpd")
        return [Note("Table 4 and Figure 5 (progressive lossy compression) are made by", command)]
    rate, rmse = arrays["rate"], arrays["rmse"]
    done = np.round(arrays["step"]).astype(int) + 1
    whole = run.fields.get("process.num_timesteps") == 1000 and [*done] == [*range(1, 1001)]
    if whole:  # The paper's rows.
        chosen = np.flatnonzero(done % 100 == 0)[::-1]
    else:
        chosen = np.unique(np.linspace(0, len(rate) - 1, ROWS).round().astype(int))[::-1]
    rows = []
    for i in chosen:
        published = _TABLE_4[int(done[i])] if whole else ("–", "–")
        rows.append((f"{done[i]}", f"{rate[i]:.5f}", f"{rmse[i]:.5f}", *published))
    header = (
        "Reverse steps done",
        "Rate (bits/dim)",
        "RMSE (0 … 255)",
        "Paper, rate",
        "Paper, RMSE",
    )
    return [
        Table("Table 4: progressive lossy compression", header, rows),
        Note("Figure 5: distortion and rate over the steps, and against each other."),
        Row(plots_of_bound(run, record)[:3]),
    ]


def _picture(inputs: Inputs, what: str, pattern: str, command: Sequence[str]) -> Block:
    run = inputs.run
    found = run.by_age(pattern)
    if found:
        return inputs.album.file(found[-1], what, what)
    mode, *assignments = command
    steps = run.fields.get("process.num_timesteps")
    last = steps if isinstance(steps, int) else 1000
    times = ",".join(str(max(1, last * k // 4) - 1) for k in (1, 2, 3, 4))
    flags = [assignment.format(times=times) for assignment in assignments]
    return Note(f"{what}:", run.command(mode, *flags))
