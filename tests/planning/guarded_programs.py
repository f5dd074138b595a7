"""What the compiler makes of four train steps, to notice where it makes more of one; writes the file.

    python tests/planning/guarded_programs.py [NAME ...]  # Only where a change is meant to move the figures.

Compilers differ, so a figure holds for one version of JAX, and on TPUs of libtpu: of another, nothing is compared.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("guarded_programs.json")
SMALL = (
    "model.channels=32",
    "model.channel_mult=1,2",
    "model.num_res_blocks=1",
    "train.batch_size=128",
)
# Of cifar10.py: a slice, or the CPU of this machine, and fields.
PROGRAMS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "small, cpu": (None, (*SMALL, "mesh.data=1")),
    "cifar10, cpu": (None, ("train.batch_size=8", "mesh.data=1")),
    "small, v5e:2x2": ("v5e:2x2", (*SMALL, "model.dtype=bfloat16")),
    "cifar10, v5e:4x4": ("v5e:4x4", ("train.batch_size=2048", "model.dtype=bfloat16")),
}


def compiler(name: str) -> str:
    """Returns the version of the compiler of a program."""
    versions = ["jax", "jaxlib", *(["libtpu"] if PROGRAMS[name][0] else [])]
    return ", ".join(f"{one} {importlib.metadata.version(one)}" for one in versions)


def figures(name: str) -> dict[str, Any]:
    """Compiles a program with `--mode=plan`; for a slice, in a process that does nothing else."""
    from diffusion_jax.main import main

    topology, fields = PROGRAMS[name]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        flags = [f"--config.{field}" for field in fields]
        flags += [f"--topology={topology}"] if topology else []
        status = main(["--mode=plan", "--config=cifar10", f"--workdir={folder}", *flags])
        assert status == 0
        plan = json.loads((Path(folder) / "results" / "plan.json").read_text())["plans"][0]
    moved = {kind: one["result_bytes"] for kind, one in plan["collectives"].items()}
    return {
        "flops": plan["flops"],
        "bytes": plan["bytes_accessed"],
        "temporaries": plan["memory"]["temporaries"],
        "collectives": moved,
        "cycles": sum(plan["cycles"].values()),
    }


def main() -> None:
    """Writes the figures of some programs, or of all."""
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in sys.argv[1:] or PROGRAMS:
        known[name] = {"compiler": compiler(name), **figures(name)}
        print(name, known[name])
        FILE.write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    main()
