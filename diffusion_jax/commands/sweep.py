"""`--mode=evaluate --config.eval.sweep=…`: metrics of samples drawn with every combination of some fields' values."""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax.commands import job, measured_images, run_config
from diffusion_jax.commands.environment import own
from diffusion_jax.commands.images_bar import ImagesBar
from diffusion_jax.commands.sample import DrawBatch, MakeBatches
from diffusion_jax.config.sweep import label, points_of
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import build, sampling
from diffusion_jax.experiment.image_metrics import Judge
from diffusion_jax.metrics import METRICS, more_is_better
from diffusion_jax.parallel.distributed import broadcast_from_first, run_on_first
from diffusion_jax.reading import json_text
from diffusion_jax.reading.regular import read_regular
from diffusion_jax.reporting import results
from diffusion_jax.reporting.sweep_plots import SweepPoint, save_sweep
from diffusion_jax.runs import Run
from diffusion_jax.samplers.batches import make_batch_sampler
from diffusion_jax.writing.atomic import remove


class _Row(NamedTuple):
    """A point that was measured.

    Attributes:
      point: Fields and their values.
      nfe: Network evaluations an image; the mean of adaptive samplers.
      figures: Figures by name.
    """

    point: dict[str, str]
    nfe: float | None
    figures: dict[str, float]


def sweep(config: ConfigDict, workdir: Path) -> int:
    """Measures the metrics of images at each point of config.eval.sweep; returns the exit status.

    Writes results/sweep.json, and table.csv and sweep.png in results/sweep/<sweep>/, where each point is kept once it
    is measured: a killed sweep goes on with the others. Points that differ in nothing but arguments of the compiled
    sampler share one program.

    Raises:
      InputError: The sweep has a field or value that cannot be; or what `evaluate` raises at any of its points.
      RunError: Images that are not finite; disk full.
    """
    points = points_of(config.eval.sweep)
    if config.eval.images is not None:
        raise InputError("eval.sweep draws images; leave eval.images unset")
    if of_model := [name for name in config.eval.metrics if name in METRICS]:
        raise InputError(
            f"eval.sweep is of metrics of images; {', '.join(of_model)} depends on none of its fields"
        )
    results.check(workdir, "sweep")
    configs = [
        _config_at(config, point) for point in points
    ]  # All checked before the first is drawn.
    run, mesh = job.open_run(configs[0], workdir)
    run_config.check_trained(config, run.training_config, f"checkpoint {run.step}")
    num_images = config.sample.num_images
    judge = measured_images.judge_of(config, mesh, workdir, num_drawn=num_images)
    folder = workdir / "results" / "sweep" / _name(config, judge)
    own(folder, "evaluate")
    make_batches, rows = _sharing_programs(), []
    for number, (point, at) in enumerate(zip(points, configs, strict=True), 1):
        _say(f"point {number} of {len(points)}: {label(point, set(point))}")
        run = job.open_run(at, workdir)[0] if number > 1 else run
        rows.append(_measured(point, run, mesh, judge, workdir, folder, make_batches))
    if jax.process_index() == 0:
        _write(config, judge, rows, workdir, folder)
    return 0


def _config_at(config: ConfigDict, point: dict[str, str]) -> ConfigDict:
    at = copy.deepcopy(config)
    config_lib.override(at, list(point.items()))
    try:
        build.validate(at, trained=True)
    except InputError as error:
        raise InputError(f"eval.sweep: at {label(point, set(point))}: {error}") from error
    return at


def _name(config: ConfigDict, judge: Judge) -> str:
    """Names the folder by what is measured, not by the points."""
    options = {name: vars(metric) for name, metric in judge.metrics.items()}
    reference = {
        k: v for k, v in judge.provenance.get("reference", {}).items() if k != "statistics"
    }
    decided = (judge.provenance["features"], reference, options, config.sample.num_images)
    return hashlib.sha256(repr(decided).encode()).hexdigest()[:10]


def _sharing_programs() -> MakeBatches:
    """Returns what makes compiled samplers, one for all points that need no other program."""
    made: dict[str, DrawBatch] = {}

    def make(run: Run, mesh: jax.sharding.Mesh, batch_size: int, bar: ImagesBar) -> DrawBatch:
        del bar  # What it shows would be part of the program.
        key = f"{sampling.program_key(run)} {batch_size}"
        if key not in made:
            program = sampling.make_draw(run)
            made[key] = make_batch_sampler(program, mesh, batch_size, num_classes=run.label_classes)
        return made[key]

    return make


def _measured(
    point: dict[str, str],
    run: Run,
    mesh: jax.sharding.Mesh,
    judge: Judge,
    workdir: Path,
    folder: Path,
    make_batches: MakeBatches,
) -> _Row:
    """Returns the figures of a point, measured unless an earlier start has done so."""
    name = job.job_name(run, num_images=run.config.sample.num_images)
    path = folder / f"{name}.json"
    kept = broadcast_from_first("a point of the sweep", lambda: _read(path))
    if kept is not None:
        return _Row(point, kept["nfe"], kept["figures"])
    images = measured_images.draw(run, mesh, workdir, make_batches)
    of_features = folder / f"{name}-features"
    figures = measured_images.figures_of(judge, images, run.config, of_features)
    nfe = images.record.get("nfe")
    nfe = nfe["mean"] if isinstance(nfe, dict) else nfe
    nfe = None if nfe is None else float(nfe)

    def keep() -> None:
        record = {"point": point, "nfe": nfe, "figures": figures, "images": images.record}
        results.write_text(path, json.dumps(record, indent=2) + "\n")
        remove(of_features)  # Of many points they would fill the disk.

    run_on_first("keep a point of the sweep", keep)
    return _Row(point, nfe, figures)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        kept = json_text.parse_object(read_regular(path), finite=False)
        return {name: kept[name] for name in ("nfe", "figures")}
    except (OSError, ValueError, KeyError):
        return None


def _write(
    config: ConfigDict, judge: Judge, rows: Sequence[_Row], workdir: Path, folder: Path
) -> None:
    """Writes the table and the picture, and says what is best."""
    names = judge.figure_names
    header = [*rows[0].point, "nfe", *(n for name in names for n in (name, f"{name}_stderr"))]
    table = [
        [
            *row.point.values(),
            row.nfe,
            *(row.figures.get(name) for name in header[len(row.point) + 1 :]),
        ]
        for row in rows
    ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *table])
    results.write_text(folder / "table.csv", text.getvalue())
    points, axis = _sweep_points(rows)
    save_sweep(folder / "sweep.png", points, names, axis)
    best = {name: _best(rows, name) for name in names}
    record = {
        "sweep": config.eval.sweep,
        "num_images": config.sample.num_images,
        **judge.provenance,
        "table": [dict(zip(header, line, strict=True)) for line in table],
        "best": best,
        "files": [f"sweep/{folder.name}/{name}" for name in ("table.csv", "sweep.png")],
    }
    path = results.add_result(workdir, "sweep", record)
    _say(_as_text(rows, names))
    for name, point in best.items():
        if point is not None:
            _say(f"best {name}: {label(point, set(point))}")
    _say(f"results {path}\ntable {folder / 'table.csv'}\npicture {folder / 'sweep.png'}")


def _best(rows: Sequence[_Row], name: str) -> dict[str, str] | None:
    """Returns the point with the best value of a figure; None if none is finite."""
    sign = -1 if more_is_better(name) else 1
    known = [row for row in rows if row.figures.get(name) == row.figures.get(name) is not None]
    return min(known, key=lambda row: sign * row.figures[name]).point if known else None


def _sweep_points(rows: Sequence[_Row]) -> tuple[list[SweepPoint], str]:
    """Returns the points for the picture, and what their x is.

    That is the evaluations if the number of steps varies along a line, or else the last field that varies in numbers.
    """
    varied = [name for name in rows[0].point if len({row.point[name] for row in rows}) > 1]
    if "sampler.num_steps" in varied:
        along, axis = "sampler.num_steps", "network evaluations an image"
        xs = [row.nfe for row in rows]
    else:
        numbers = {name: [_number(row.point[name]) for row in rows] for name in varied}
        known = [name for name, values in numbers.items() if None not in values]
        along = known[-1] if known else ""
        axis = along.rpartition(".")[2] or "network evaluations an image"
        xs = numbers.get(along, [row.nfe for row in rows])
    across = set(varied) - {along}
    points = [
        SweepPoint(label(row.point, across), label(row.point, {along} or across), x, row.figures)
        for row, x in zip(rows, xs, strict=True)
    ]
    return points, axis


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _as_text(rows: Sequence[_Row], names: Sequence[str]) -> str:
    """Returns a table in Markdown."""
    header = [*(name.rpartition(".")[2] for name in rows[0].point), "nfe", *names]
    lines = [
        [
            *row.point.values(),
            "" if row.nfe is None else f"{row.nfe:g}",
            *(_shown(row.figures, name) for name in names),
        ]
        for row in rows
    ]
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])


def _shown(figures: dict[str, float], name: str) -> str:
    value, stderr = figures.get(name), figures.get(f"{name}_stderr")
    if value is None:
        return ""
    return f"{value:.4g}" + ("" if stderr is None or stderr != stderr else f" ± {stderr:.2g}")


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr)
