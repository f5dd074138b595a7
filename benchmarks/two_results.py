"""Compares the results of two checkouts of this project on fixed seeds, which a change of the code's shape must keep.

Each checkout runs the same commands in a process of its own: trainings of tiny networks on digits, samples by every
sampler, edits, the bound and the exact likelihood. All arrays that they write are compared bit by bit, as are logged
losses and the names of jobs. Then the newer checkout goes on with runs that the older one has trained.

  git worktree add ../before SOME_COMMIT
  python benchmarks/two_results.py --before=../before --out=results.json

It ends with status 1 if anything differs by more than --tolerance of the largest number of its array (0: by any bit),
or if a run of the older checkout cannot be loaded.
"""

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
# Run in either checkout: a list of command lines on standard input, run one after another in this process.
WORKER = """
import json, sys
from diffusion_jax.main import main
for command in json.load(sys.stdin):
    status = main(command)
    if status:
        sys.exit(f"status {status}: {' '.join(command)}")
"""
CONFIG = """
from diffusion_jax.config import default_config


def get_config():
    return default_config()
"""
SHOWN = 40  # Differences that are printed.
DIGEST = re.compile(r"-[0-9a-f]{10}(?=/)")
SMALL = [
    *("model.name=mlp", "model.channels=32", "model.num_res_blocks=1", "train.batch_size=64"),
    *(
        "train.num_steps=30",
        "train.log_every=10",
        "train.checkpoint_every=15",
        "optimizer.warmup_steps=0",
    ),
    *(
        "process.num_timesteps=50",
        "train.sample_images=4",
        "eval.num_images=40",
        "train.eval_every=15",
    ),
    *("sample.num_images=8", "sample.batch_size=8", "sample.formats=npz", "mesh.data=1"),
]
UNET = [
    *(
        "model.name=unet",
        "model.channels=8",
        "model.channel_mult=1,2",
        "model.attention_resolutions=4",
    ),
    "model.dropout=0.1",
]
LEARNED = ["process.variance=learned", "loss.name=hybrid"]
CLASSES = ["model.num_classes=10", "train.label_dropout=0.2"]
# Run -> fields beside SMALL.
RUNS = {
    "ddpm": [],
    "unet": [*UNET, "process.prediction=eps", "loss.weighting=min_snr"],
    "learned": [*LEARNED, "loss.times=importance"],
    "classes": [*CLASSES, "loss.times=stratified", "loss.weighting=p2"],
    "vlb": ["loss.name=vlb"],
    "vp": ["process.name=vp", "loss.times=likelihood", "loss.u_min=0.01"],
    "subvp": ["process.name=subvp", "process.prediction=x0"],
    "ve": ["process.name=ve", "process.prediction=score", "loss.name=sliced"],
    "ncsn": ["process.name=ncsn", "process.prediction=score"],
}
# Run -> what is drawn from it, as fields.
DRAWN = {
    "ddpm": [
        ["sampler.name=ancestral"],
        ["sampler.name=ancestral", "sampler.num_steps=10", "sampler.variance=fixed_small"],
        ["sampler.name=ddim", "sampler.num_steps=10"],
        ["sampler.name=ddim", "sampler.num_steps=10", "sampler.eta=0.5", "sampler.clip_keeps=eps"],
        *(
            [f"sampler.name={name}", "sampler.num_steps=10"]
            for name in ("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "unipc", "ode_heun")
        ),
        ["sampler.name=heun", "sampler.num_steps=10", "sampler.spacing=karras", "sampler.churn=5"],
        ["sampler.name=pndm", "sampler.num_steps=10", "sampler.spacing=leading"],
        ["sampler.name=ode_adaptive", "sampler.rtol=1e-3"],
    ],
    "unet": [["sampler.name=ddim", "sampler.num_steps=5"]],
    "learned": [["sampler.variance=learned", "sampler.num_steps=10"]],
    "classes": [
        ["sampler.guidance_scale=2", "sampler.guidance_rescale=0.5", "sampler.num_steps=10"]
    ],
    "vlb": [["sampler.num_steps=10", "sampler.dynamic_threshold=0.9"]],
    "vp": [
        ["sampler.name=euler_maruyama"],
        ["sampler.name=reverse_diffusion", "sampler.u_min=0.02"],
    ],
    "subvp": [["sampler.name=pc", "sampler.corrector_steps=2"]],
    "ve": [["sampler.name=pc", "sampler.predictor=euler_maruyama"]],
    "ncsn": [["sampler.name=langevin"], ["sampler.name=heun", "sampler.temperature=0.9"]],
}


def commands(folder: Path) -> list[list[str]]:
    """Returns the command lines of one side, each of which writes below its folder."""

    def command(run: str, mode: str, fields: list[str]) -> list[str]:
        config = [f"--config={file}"] if mode == "train" else []
        assigned = [f"--config.{field}" for field in fields]
        return [*config, f"--mode={mode}", f"--workdir={folder / run}", *assigned]

    file, lines = config_file(folder), []
    for run, fields in RUNS.items():
        lines.append(command(run, "train", [*SMALL, *fields]))
        # A seed each: without the digests in their names, jobs are told apart by it.
        drawn = ([*fields, f"sample.seed={seed}"] for seed, fields in enumerate(DRAWN[run]))
        lines += [command(run, "sample", fields) for fields in drawn]
        metrics = ["eval.metrics=bpd,ode_bpd", "eval.rtol=1e-3", "eval.atol=1e-3"]
        lines.append(command(run, "evaluate", metrics))
    few = ["sampler.name=ddim", "sampler.num_steps=8", "sample.num_images=4"]
    lines.append(
        command("ddpm", "inpaint", [*few, "edit.keep=coarse", "edit.resamplings=2", "edit.jump=3"])
    )
    lines.append(command("ddpm", "interpolate", [*few, "edit.latents=true", "edit.iterations=1"]))
    return lines


def config_file(folder: Path) -> Path:
    """Returns a file with the default config below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.py").write_text(CONFIG)
    return folder / "config.py"


def run(root: Path, lines: list[list[str]]) -> str:
    """Runs the commands in a checkout; returns what failed, or ""."""
    done = subprocess.run(
        [sys.executable, "-c", WORKER],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
        input=json.dumps(lines),
        text=True,
        capture_output=True,
    )
    return "" if done.returncode == 0 else done.stderr[-2000:]


def numbers(folder: Path) -> dict[str, np.ndarray]:
    """Returns all arrays below a folder, by file and name, and the losses of metrics.jsonl."""
    found = {}
    for path in sorted(folder.rglob("*.npz")):
        with np.load(path) as arrays:
            for name in arrays.files:
                if arrays[name].dtype.kind in "fiub":
                    found[f"{_plain(path.relative_to(folder))}/{name}"] = arrays[name]
    for path in sorted(folder.rglob("metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for name in ("loss", "grad_norm", "eval_loss"):
            values = [row[name] for row in rows if name in row]
            found[f"{path.relative_to(folder)}/{name}"] = np.array(values, np.float64)
    return found


def _plain(path: Path) -> str:
    """Returns a path without the digests of jobs, which depend on the bytes of a checkpoint's files."""
    return DIGEST.sub("", str(path))


def compare(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns the largest difference of each array over its largest number; NaN if it is on one side alone."""
    differences = {}
    for name in sorted(before.keys() | after.keys()):
        ours, theirs = before.get(name), after.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            differences[name] = float("nan")
        elif not np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f"):
            gap = np.abs(ours.astype(float) - theirs.astype(float)).max()
            differences[name] = float(gap / np.abs(ours.astype(float)).max())
        else:
            differences[name] = 0.0
    return differences


def carried_over(roots: dict[str, Path], trained: Path, folder: Path) -> dict[str, str]:
    """Returns what failed where both checkouts go on with runs of the older one: samples, and ten more steps.

    Jobs must have the same names; images and the losses of the further steps are the caller's to compare.
    """
    failed = {}
    for run_name, side in itertools.product(RUNS, roots):
        workdir = folder / side / run_name
        shutil.copytree(trained / run_name, workdir)
        fields = json.loads((workdir / "config.json").read_text())
        flat = [
            f"--config.{group}.{leaf}={show(value)}"
            for group, values in fields.items()
            if isinstance(values, dict)
            for leaf, value in values.items()
            if (group, leaf) != ("train", "num_steps")
        ]
        file = config_file(folder / side)
        more = [f"--config={file}", f"--workdir={workdir}", *flat, "--config.train.num_steps=40"]
        lines = [[f"--workdir={workdir}", "--mode=sample", "--config.sample.seed=50"], more]
        if problem := run(roots[side], lines):
            failed[f"{side}: {run_name}"] = problem
    jobs = [
        sorted(
            str(path.parent.relative_to(folder / side))
            for path in (folder / side).glob("*/samples/*/images.npz")
        )
        for side in roots
    ]
    if jobs[0] != jobs[1]:
        failed["names of jobs"] = str(sorted(set(jobs[0]) ^ set(jobs[1])))
    return failed


def show(value: object) -> str:
    """Returns a value of config.json as the command line takes it."""
    if isinstance(value, list):
        return ",".join(map(show, value)) or "()"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="the older checkout")
    parser.add_argument("--out", type=Path, help="where to write all differences as JSON")
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="largest difference that counts as none"
    )
    parser.add_argument(
        "--keep", type=Path, help="folder for what the commands write; else a temporary one"
    )
    arguments = parser.parse_args()
    folder = (arguments.keep or Path(tempfile.mkdtemp())).resolve()
    sides = {"before": arguments.before.resolve(), "after": ROOT}
    for name, root in sides.items():
        if not (folder / name).exists() and (problem := run(root, commands(folder / name))):
            sys.exit(f"{name}: {problem}")
    failed = {}
    if not (folder / "carried").exists():
        failed = carried_over(sides, folder / "before", folder / "carried")
    differences = compare(*(numbers(folder / name) for name in sides))
    carried = compare(*(numbers(folder / "carried" / name) for name in sides))
    differences |= {f"carried/{name}": gap for name, gap in carried.items()}
    changed = {name: gap for name, gap in differences.items() if not gap <= arguments.tolerance}
    largest = max((gap for gap in differences.values() if np.isfinite(gap)), default=0.0)
    print(
        f"{len(differences)} arrays, {sum(gap == 0 for gap in differences.values())} equal bit by bit;"
    )
    print(f"largest difference {largest:.1e} of the largest number of its array")
    for name, gap in sorted(changed.items(), key=lambda item: -item[1])[:SHOWN]:
        print(f"  {gap:.1e}  {name}")
    print(
        f"{len(RUNS)} runs of the older checkout were sampled from and trained on; failed: {len(failed)}"
    )
    for name, problem in failed.items():
        print(f"  {name}: {problem}")
    if arguments.out:
        text = json.dumps({"differences": differences, "failed": failed}, indent=2)
        arguments.out.write_text(text + "\n")
    if not arguments.keep:
        shutil.rmtree(folder)
    sys.exit(1 if changed or failed else 0)


if __name__ == "__main__":
    main()
