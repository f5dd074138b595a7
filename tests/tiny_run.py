"""Runs the command, in this process or in another one, on runs that take seconds."""

import contextlib
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from etils import epath
from matplotlib.figure import Figure

from diffusion_jax import data
from diffusion_jax.checkpoints.store import CheckpointStore
from diffusion_jax.main import main
from diffusion_jax.reading.metrics_rows import read_rows

# A perceptron compiles in seconds; the cosine schedule warns of no small T.
TINY = """
from diffusion_jax.config import default_config

def get_config():
    config = default_config()
    config.model.name = "mlp"
    config.model.channels = 16
    config.model.num_res_blocks = 1
    config.process.schedule = "cosine"
    config.process.num_timesteps = 20
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 5
    config.train.num_steps = 12
    config.train.batch_size = 16
    config.train.log_every = 3
    config.train.checkpoint_every = 4
    config.train.sample_images = 4
    config.train.eval_every = 0
    config.sample.num_images = 4
    config.mesh.data = 1
    return config
"""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command left: its exit status and what it printed."""

    status: int
    out: str
    err: str


def write_config(folder: Path, more: str = "") -> Path:
    """Writes tiny.py: TINY with more lines such as "config.train.num_steps = 3"."""
    path = folder / "tiny.py"
    lines = "".join(f"    {line}\n" for line in more.splitlines())
    path.write_text(TINY.replace("    return config\n", f"{lines}    return config\n"))
    return path


@contextlib.contextmanager
def _process_as_it_was() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers, show = [signal.getsignal(number) for number in numbers], warnings.showwarning
    try:
        yield
    finally:
        warnings.showwarning = show
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


def run(*arguments: str | Path) -> Outcome:
    """Runs the command in this process. An exception that it lets through fails the test."""
    out, err = io.StringIO(), io.StringIO()
    with _process_as_it_was(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            assert isinstance(stop.code, int)
            status = stop.code
    return Outcome(status, out.getvalue(), err.getvalue())


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """Returns the environment of another process: the CPU, and this process's caches."""
    return {
        **os.environ,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": jax.config.values["jax_compilation_cache_dir"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        **more,
    }


def start(
    arguments: Sequence[str | Path], variables: dict[str, str], prologue: str = ""
) -> "subprocess.Popen[str]":
    """Starts the command in another process, after lines of Python that may set traps in it."""
    program = f"{prologue}\nimport sys\nfrom diffusion_jax.main import main\nsys.exit(main())\n"
    head = ["-c", program] if prologue else ["-m", "diffusion_jax.main"]
    return subprocess.Popen(
        [sys.executable, *head, *map(str, arguments)],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]", timeout: float = 240) -> Outcome:
    """Waits for a started command; kills it if it takes too long."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"still running after {timeout} s:\n{out}{err}") from None
    return Outcome(process.returncode, out, err)


def finish_all(processes: "Sequence[subprocess.Popen[str]]", timeout: float = 600) -> list[Outcome]:
    """Waits for processes that work together; if one takes too long, shows what each has printed.

    Their pipes are read at once, since a full one would hold up its process, and with it the others.
    """
    outputs: list[tuple[str, str]] = [("", "")] * len(processes)

    def read(i: int) -> None:
        outputs[i] = processes[i].communicate()

    readers = [threading.Thread(target=read, args=(i,)) for i in range(len(processes))]
    for reader in readers:
        reader.start()
    deadline = time.monotonic() + timeout
    for reader in readers:
        reader.join(max(0.0, deadline - time.monotonic()))
    late = [i for i, process in enumerate(processes) if process.poll() is None]
    for process in processes:
        process.kill()
    for reader in readers:
        reader.join()
    outcomes = [
        Outcome(process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]
    assert not late, f"processes {late} still ran after {timeout} s: {outcomes}"
    return outcomes


def rows(workdir: Path) -> list[dict[str, Any]]:
    """Returns the rows of metrics.jsonl, none of which may be damaged."""
    path = workdir / "metrics.jsonl"
    found = read_rows(path)
    assert len(found) == path.read_text().count("\n")
    return found


def results(workdir: Path, mode: str) -> dict[str, Any]:
    """Returns results/<mode>.json."""
    return json.loads((workdir / "results" / f"{mode}.json").read_text())


def checkpoint_steps(workdir: Path) -> list[int]:
    """Returns the steps of the checkpoints, ascending."""
    return CheckpointStore(workdir / "checkpoints").steps()


def state_of(workdir: Path, step: int | None = None) -> dict[str, Any]:
    """Returns the arrays of a checkpoint, the newest by default, as Orbax itself reads them."""
    import orbax.checkpoint as ocp

    folder = epath.Path(workdir) / "checkpoints" / str(step or checkpoint_steps(workdir)[-1])
    handler = ocp.PyTreeCheckpointHandler()

    def read(part: str) -> Any:
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(folder / part).tree
        )
        return handler.restore(folder / part, args=ocp.args.PyTreeRestore(restore_args=as_numpy))

    return {part: read(part) for part in ("params", "ema/default", "training")}


def assert_same_run(one: Path, other: Path) -> None:
    """Asserts that two runs ended with the same losses and, bit for bit, the same arrays."""
    assert [(row["step"], row["loss"]) for row in rows(one)] == [
        (row["step"], row["loss"]) for row in rows(other)
    ]
    assert checkpoint_steps(one)[-1] == checkpoint_steps(other)[-1]
    state, theirs = state_of(one), state_of(other)
    assert len(jax.tree.leaves(state)) > 10  # Parameters, their average, Adam's moments.
    chex.assert_trees_all_equal_dtypes(state, theirs)
    # The bits: numbers may be equal and differ in sign (0), or be unequal to themselves (NaN).
    chex.assert_trees_all_equal(*(jax.tree.map(_bits, tree) for tree in (state, theirs)))


def _bits(array: np.ndarray) -> np.ndarray:
    return np.atleast_1d(array).view(np.uint8)


@contextlib.contextmanager
def digits_in(cache: Path, plots: bool = False) -> Iterator[Path]:
    """Prepares the digits in a cache folder, which is the commands' within the block; there plots may be drawn."""
    data.load("digits", "train", cache_dir=cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFUSION_JAX_CACHE", str(cache))
        if not plots:  # Laying out their text takes as long as all else that a tiny run does.
            patch.setattr(Figure, "savefig", lambda self, path, **_: Path(path).touch())
        yield cache
