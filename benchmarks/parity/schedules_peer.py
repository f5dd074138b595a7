"""The other side of `parity/schedules.py`, run by the peer's own interpreter: alpha_bar of diffusers' DDPMScheduler.

Arguments: what each scheduler is constructed with, by name, as JSON; the npz file for alpha_bar.
"""

# pyright: reportMissingImports=false

import json
import sys
from typing import Any

import diffusers
import numpy as np


def main() -> None:
    """Writes alpha_bar of every scheduler, and the version."""
    given, output = sys.argv[1:]
    found: dict[str, Any] = {
        name: diffusers.DDPMScheduler(**options).alphas_cumprod.numpy()
        for name, options in json.loads(given).items()
    }
    np.savez(output, versions=np.array(f"diffusers {diffusers.__version__}"), **found)


if __name__ == "__main__":
    main()
