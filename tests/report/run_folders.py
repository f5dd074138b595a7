"""Folders of runs, written by hand: what a page is made of, without a training."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.config import default_config, to_json
from diffusion_jax.reading.metrics_rows import line_of
from diffusion_jax.reporting.pictures import save_png

PROVENANCE = {"diffusion_jax": "0.1.0", "jax": "0.10.2", "device": "2 x cpu (cpu)", "processes": 1}
JOB = {"job": "step1-ddim", "num_images": 9, "step": 40, "nfe": 20, "sampler": {"name": "ddim"}}


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def rows(number: int) -> list[dict[str, Any]]:
    """Returns rows of a training: a falling loss, and a held-out loss at every fifth."""
    made = []
    for i in range(1, number + 1):
        step, loss = 10 * i, 0.2 + math.exp(-i / 10)
        quarters = {f"loss_q{q}": loss / q for q in (1, 2, 3, 4)}
        made.append(
            {"step": step, "loss": loss, **quarters, "grad_norm": loss, "images_per_sec": 90.0}
        )
        if i % 5 == 0:
            made.append({"step": step, "eval_loss": loss + 0.01})
    return made


def write_rows(workdir: Path, made: list[dict[str, Any]]) -> None:
    (workdir / "metrics.jsonl").write_text("".join(map(line_of, made)))


def write_training(workdir: Path, number: int = 20, **fields: Any) -> Path:
    """Writes what a training leaves, but for checkpoints; `fields` are those of the group process."""
    workdir.mkdir(parents=True, exist_ok=True)
    config = default_config()
    for name, value in fields.items():
        config.process[name] = value
    (workdir / "config.json").write_text(to_json(config))
    write_rows(workdir, rows(number))
    data = {"name": "digits", "num_images": 90, "num_test_images": 10, "image_shape": [8, 8, 1]}
    record = {"step": 10 * number, "parameters": 1234567, "config_hash": "0123456789ab"}
    write_json(
        workdir / "results" / "train.json",
        {**record, "data": data, "provenance": PROVENANCE, "earlier": []},
    )
    (workdir / "samples").mkdir(exist_ok=True)
    for step in (50, 100, 200):
        save_png(workdir / "samples" / f"grid-{step:08}.png", noise(40, 40, 1, seed=step))
    return workdir


def write_rest(workdir: Path) -> Path:
    """Writes what sampling and evaluation leave: each section has its inputs."""
    results = workdir / "results"
    (results / "report").mkdir(parents=True)
    x_t, x0_hat = (noise(5 * 2 * 8, 8, 1, seed=s).reshape(5, 2, 8, 8, 1) for s in (1, 2))
    t = np.array([999.0, 750.0, 500.0, 250.0, 0.0])
    np.savez(results / "report" / "reverse.npz", x_t=x_t, x0_hat=x0_hat, t=t)
    (results / "nearest").mkdir()
    save_png(results / "nearest" / "nearest.png", noise(30, 20, 1))
    falling = np.linspace(1, 0.1, 12)
    arrays = {"time": np.arange(12.0)[::-1], "terms": falling, "rate": 1 - falling, "rmse": falling}
    (results / "bpd").mkdir()
    np.savez(results / "bpd" / "bpd.npz", count=np.ones(12), **arrays)
    of = {"features": {"name": "lite0"}, "reference": {"name": "train"}, "images": JOB}
    metrics = {
        "fd_lite0": {"value": 12.345, "stderr": 0.5, **of, "provenance": PROVENANCE},
        "pr_lite0": {"precision": {"value": 0.75, "stderr": None}, **of},
        "nearest_lite0": {"value": 0.9, "stderr": 0.1, **of, "files": ["nearest/nearest.png"]},
        "bpd": {"total": {"value": 3.21, "stderr": 0.02}, "files": ["bpd/bpd.npz"], "step": 40},
        "earlier": [{"fd_lite0": {"value": 99.5, "stderr": 1.0}}],
    }
    write_json(results / "evaluate.json", metrics)
    table = [
        {"sampler.name": name, "sampler.num_steps": str(n), "nfe": n, "fd_lite0": 100 / n}
        for name in ("ddim", "heun")
        for n in (5, 10, 20)
    ]
    guided = [
        {"sampler.guidance_scale": str(s), "nfe": 20, "fd_lite0": 5 + (s - 2) ** 2}
        for s in (1.0, 2.0, 4.0)
    ]
    write_json(results / "sweep.json", {"table": guided, "earlier": [{"table": table}]})
    return workdir


def noise(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
