"""The curves of the training: loss, loss by noise level, gradients, speed, and what was measured on the way."""

from __future__ import annotations

import re
import statistics

import numpy as np

from diffusion_jax.planning.chips import chip_of
from diffusion_jax.report.blocks import Block, Facts, Note, Row
from diffusion_jax.report.charts import Chart, Curve, Point, Strip, chart, shown
from diffusion_jax.report.run_folder import RunFolder
from diffusion_jax.report.sections.inputs import Inputs, entries, number, part
from diffusion_jax.reporting.figures import PREFIX, figure_names

HELD_OUT = 1  # Its color, which no other curve has.
_QUARTERS = {
    "loss_q1": "first quarter of t (least noise)",
    "loss_q2": "second",
    "loss_q3": "third",
    "loss_q4": "last (most noise)",
}


def training(inputs: Inputs) -> list[Block]:
    """Returns the curves of metrics.jsonl."""
    run = inputs.run
    if not run.rows:
        return [Note("No row of metrics yet: train the run.", run.training())]
    charts = [
        chart(
            "Loss",
            "step",
            [
                Curve("training loss", points(run, "loss"), 0),
                Curve("held-out loss (EMA)", points(run, "eval_loss"), HELD_OUT, True),
            ],
            strips=_strips(run),
        ),
        chart(
            "Loss by noise level",
            "step",
            [Curve(text, points(run, n), i) for i, (n, text) in enumerate(_QUARTERS.items(), 2)],
        ),
        chart("Gradient norm", "step", [Curve("gradient norm", points(run, "grad_norm"), 0)]),
        *_machine(run),
    ]
    for name in figure_names(run.rows):
        if name != "eval_loss":
            curve = Curve(name.removeprefix(PREFIX), points(run, name), HELD_OUT, True)
            charts.append(chart(f"{curve.label} (EMA)", "step", [curve]))
    blocks: list[Block] = [_speed(run), Row([c for c in charts if c is not None])]
    if not points(run, "eval_loss"):
        advice = "No held-out loss yet: train with it on."
        blocks.append(Note(advice, run.training("train.eval_every=500")))
    return blocks


def _machine(run: RunFolder) -> list[Chart | None]:
    """Returns the charts of what the devices did, and of the rate at which the network learned."""
    return [
        chart(
            "Throughput (images/s)",
            "step",
            [Curve("images/s", points(run, "images_per_sec"), 0)],
            log_y=False,
        ),
        chart(
            "Throughput (TFLOP/s)",
            "step",
            [Curve("TFLOP/s of all devices", points(run, "tflops"), 0)],
            log_y=False,
        ),
        chart("Learning rate", "step", [Curve("learning rate", points(run, "learning_rate"), 0)]),
    ]


def points(run: RunFolder, name: str) -> list[Point]:
    """Returns step and value of the rows that have it."""
    return [(float(row["step"]), number(row[name])) for row in run.rows if name in row]


def _strips(run: RunFolder) -> list[Strip]:
    """Returns the bands that runs of the recipe keep to, as far as this run has come."""
    if run.expected is None or not run.rows:
        return []
    last, runs = run.rows[-1]["step"], run.expected.runs
    of = f"{run.expected.recipe}, {runs} runs" if runs > 1 else f"{run.expected.recipe}, one run"
    strips = []
    for name, what, color in (("loss", "training", 0), ("eval_loss", "held-out", HELD_OUT)):
        band = run.expected.bands.get(name)
        if band is not None and last > band.step[0]:
            steps = np.append(band.step[band.step < last], min(last, band.step[-1]))
            edges = zip(steps.tolist(), *band.at(steps)[[0, 2]].tolist(), strict=True)
            strips.append(Strip(f"expected {what} loss ({of})", [*edges], color))
    return strips


def _speed(run: RunFolder) -> Facts:
    speed = _median(run, "images_per_sec")
    rows = [
        (name, shown(known[-1]))
        for name, label in (("Last loss", "loss"), ("Last held-out loss", "eval_loss"))
        if (known := [y for _, y in points(run, label) if y is not None])
    ]
    rows.append(("Throughput", f"{shown(speed)} images/s (median)" if speed else "unknown"))
    if teraflops := _median(run, "tflops"):
        rows.append(("Operations", f"{shown(teraflops)} TFLOP/s of all devices (median)"))
    if used := max((y for _, y in points(run, "device_memory") if y), default=None):
        rows.append(("Memory of the fullest device", f"{used / 2**30:.2f} GiB at most"))
    rows.append(("Model FLOPs utilization", utilization(run, speed)))
    return Facts(rows, "Last values")


def _median(run: RunFolder, name: str) -> float | None:
    known = [y for _, y in points(run, name) if y]
    return statistics.median(known) if known else None


def utilization(run: RunFolder, images_per_sec: float | None) -> str:
    """Returns the share of the published peak that the training reaches, or why it is not known."""
    if share := _median(run, "mfu"):
        return f"{share:.1%} (median of the rows){_recomputed(run)}"
    provenance = part(run.result("train").get("provenance"))
    found = re.fullmatch(r"([1-9]\d{0,8}) x (.+) \((\w+)\)", str(provenance.get("device")))
    if not found or not images_per_sec:
        return "unknown: the training has not ended yet"
    chip = chip_of(found[2])
    if chip is None:
        return f"unknown: there is no published peak of {found[2]}"
    gflop, dtype = _gflop_per_image(run), str(run.fields.get("model.dtype"))
    if gflop is None:
        command = run.command("plan")
        return f"unknown: the FLOPs of an image are counted by {command}"
    if dtype not in chip.flops:
        return f"unknown: there is no published peak of {chip.name} in {dtype}"
    share = images_per_sec * gflop * 1e9 / (int(found[1]) * chip.flops[dtype])
    return f"{share:.1%} of {found[1]} × {chip.name} in {dtype}{_recomputed(run)}"


def _recomputed(run: RunFolder) -> str:
    return "" if run.fields.get("model.remat", "none") == "none" else ", recomputation counted"


def _gflop_per_image(run: RunFolder) -> float | None:
    """Returns what results/plan.json says of an image, if it is the plan of this training."""
    plan, trained = run.result("plan"), run.result("train")
    fields = {"batch_size": "train.batch_size", "dtype": "model.dtype"}
    best = part(next(iter(entries(plan.get("plans"))), None))
    bytes_of = number(part(best.get("memory")).get("parameters")) or 0.0
    fsdp = number(part(best.get("mesh")).get("fsdp", 1)) or 1.0
    parameters = number(trained.get("parameters")) or -1.0
    same = all(plan.get(name) == run.fields.get(field) for name, field in fields.items())
    same &= plan.get("image_shape") == part(trained.get("data")).get("image_shape")
    same &= abs(bytes_of * fsdp - 4 * parameters) <= 0.01 * bytes_of * fsdp
    return number(best.get("gflop_per_image")) if same else None
