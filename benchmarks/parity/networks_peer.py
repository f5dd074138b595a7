"""What the scripts of the peers share: random weights, the inputs, the forward pass, and answers with its time.

It runs in an environment with torch, without this project.
"""

# pyright: reportMissingImports=false

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch


class Denoised(NamedTuple):
    """Noised images, the time of our process, and the library's prediction of the clean images."""

    x_t: torch.Tensor
    time: Any
    x0: torch.Tensor


def randomize(model: Any) -> None:
    """Draws every parameter, such that activations keep their size; numbers that float16 holds."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn_like(parameter)
            if parameter.ndim == 1:
                drawn = 0.3 * drawn + 0.5
            else:
                drawn = drawn / np.sqrt(np.prod(parameter.shape[1:]))
            parameter.copy_(drawn.half().float())
    model.eval()


def images(case: dict[str, Any]) -> torch.Tensor:
    """Returns random images, channels first."""
    size, batch = case["size"], case.get("batch", 2)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, size, size, generator=generator)


def write(
    folder: str,
    x: torch.Tensor,
    t: Any,
    forward: Callable[[], torch.Tensor],
    labels: Any = None,
    denoised: Denoised | None = None,
) -> None:
    """Writes io.npz: images and output channels last, and the time as our network is given it.

    The output may be logits. With `denoised`, also what the library makes of noised images, in our terms.
    """
    with torch.inference_mode():
        output = forward()
    arrays = {
        "x": x.permute(0, 2, 3, 1).numpy(),
        "t": np.asarray(t, np.float32),
        "output": (output.permute(0, 2, 3, 1) if output.ndim == 4 else output).numpy(),
    }
    if denoised is not None:
        arrays["noised"] = denoised.x_t.permute(0, 2, 3, 1).numpy()
        arrays["time"] = np.asarray(denoised.time, np.float32)
        arrays["denoised"] = denoised.x0.permute(0, 2, 3, 1).numpy()
    if labels is not None:
        arrays["labels"] = np.asarray(labels, np.int32)
    np.savez(Path(folder) / "io.npz", **arrays)


def serve(
    case: dict[str, Any], forward: Callable[[], torch.Tensor], model: torch.nn.Module
) -> None:
    """Answers each line of the standard input, "forward" or "step", by the seconds of one, if the case asks for it.

    A step is the gradient of the mean squared output by all parameters, and Adam.
    """
    if not case.get("serve"):
        return
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        if line.strip() == "forward":
            with torch.inference_mode():
                forward()
        else:
            optimizer.zero_grad()
            forward().square().mean().backward()
            optimizer.step()
        print(json.dumps(time.perf_counter() - started), flush=True)
