"""The other side of `parity/edm.py`, run by the peer's own interpreter: EDM's `edm_sampler` with a known denoiser.

Arguments: the folder of a checkout of NVlabs/edm; an npz file of the runs, each with its unit noise and the options of
the sampler; the npz file for the images. The denoiser is E[x_0 | x] of pixels from N(-0.5, 0.2^2) or N(0.5, 0.2^2), as
often.
"""

# pyright: reportMissingImports=false

import ast
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Denoiser:
    """Stands for EDM's network: called as `net(x, sigma, labels)`, it returns the denoised image."""

    sigma_min = 0.0

    def __init__(self, sigma_max: float) -> None:
        self.sigma_max = sigma_max

    def round_sigma(self, sigma: Any) -> torch.Tensor:
        """Returns sigma itself: this network is defined at all noise levels."""
        return torch.as_tensor(sigma)

    def __call__(self, x: torch.Tensor, sigma: Any, class_labels: object = None) -> torch.Tensor:
        """Returns E[x_0 | x]: the mode's mean, and the part of the way to x that its variance is of both."""
        noise = torch.as_tensor(sigma) ** 2
        mode = 0.5 * torch.tanh(0.5 * x / (0.04 + noise))
        return mode + 0.04 / (0.04 + noise) * (x - mode)


def edm_sampler(folder: str) -> Any:
    """Returns that function of generate.py, without the imports that the rest of the file needs."""
    tree = ast.parse((Path(folder) / "generate.py").read_text())
    found: list[ast.stmt] = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == "edm_sampler"
    ]
    scope: dict[str, Any] = {"np": np, "torch": torch}
    exec(compile(ast.Module(found, []), "generate.py", "exec"), scope)
    return scope["edm_sampler"]


def main() -> None:
    """Writes the images of every run."""
    folder, given, output = sys.argv[1:]
    sampler, images = edm_sampler(folder), {}
    for name, array in np.load(given).items():
        options = json.loads(name)
        net = Denoiser(options.pop("net_sigma_max"))
        noise = torch.from_numpy(array.astype(np.float64))
        images[name] = sampler(net, noise, **options).numpy()
    np.savez(output, **images)


if __name__ == "__main__":
    main()
