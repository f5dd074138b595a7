"""`--mode=report`: a page of what lies in the folder of a run, beside other runs."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
from ml_collections import ConfigDict

from diffusion_jax.errors import InputError
from diffusion_jax.report.page import write_page


def report(config: ConfigDict, workdir: Path) -> int:
    """Writes report.html from what the other commands have left; returns the exit status.

    Raises:
      InputError: A folder of `report.runs` holds no run.
    """
    others = [Path(folder).expanduser() for folder in config.report.runs or ()]
    for folder in others:
        if not any((folder / name).is_file() for name in ("config.json", "metrics.jsonl")):
            raise InputError(
                f"report.runs: no run in {folder} (there is neither config.json nor metrics.jsonl)"
            )
    if jax.process_index() == 0:
        path = write_page(workdir, others)
        print(f"report {path} ({path.stat().st_size / 1e6:.1f} MB)", file=sys.stderr)
    return 0
