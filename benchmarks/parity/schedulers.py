"""The other side of `parity/samplers.py`, run by the peer's own interpreter: runs of diffusers' schedulers.

Arguments: an npz file of x_T, each step's noise (by the time at which it begins) and the mixture of the data; the runs
as JSON; the npz file for the images.
"""

# pyright: reportMissingImports=false

import inspect
import json
import sys
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch

BETAS = np.linspace(1e-4, 0.02, 1000)
ALPHA_BAR = np.cumprod(1 - BETAS)
LINEAR = {"beta_schedule": "linear", "beta_start": BETAS[0], "beta_end": BETAS[-1]}
Arrays = dict[str, np.ndarray]


def best_eps(x: np.ndarray, t: int, given: Arrays) -> np.ndarray:
    """Returns -std grad log q(x_t) of the mixture in float64, by the density's own derivative."""
    signal, std = np.sqrt(ALPHA_BAR[t]), np.sqrt(1 - ALPHA_BAR[t])
    gradient, density = np.zeros(x.shape), np.zeros(x.shape[:-1] + (1,))
    for weight, mean, width in zip(*(given[n] for n in ("weights", "means", "stds")), strict=True):
        variance = (signal * width) ** 2 + std**2
        away = x - signal * mean
        part = weight / variance * np.exp(-(away**2).sum(-1, keepdims=True) / (2 * variance))
        density += part
        gradient -= part / variance * away
    return -std * gradient / density


def run(case: dict, given: Arrays) -> np.ndarray:
    """Returns the images that one scheduler makes of x_T."""
    scheduler = getattr(diffusers, case["scheduler"])(**LINEAR, **case["config"])
    takes = inspect.signature(scheduler.set_timesteps).parameters
    times = {"timesteps": case["times"]} if "timesteps" in takes else {}
    scheduler.set_timesteps(**(times or {"num_inference_steps": len(case["times"])}))
    # PNDM's Runge-Kutta steps visit times between these.
    visited, wanted = set(scheduler.timesteps.tolist()), set(case["times"])
    if not wanted <= visited or (visited - wanted and case["scheduler"] != "PNDMScheduler"):
        raise ValueError(f"{case['name']}: {visited} visited in place of {wanted}")
    x = torch.from_numpy(given["x_T"])
    if case["scheduler"] == "HeunDiscreteScheduler":  # Its x is x_t / signal.
        x = x / np.sqrt(ALPHA_BAR[int(max(visited))])
    takes_noise = "variance_noise" in inspect.signature(scheduler.step).parameters
    for t in scheduler.timesteps:
        noise = torch.from_numpy(given.get(f"noise_{int(t)}", np.zeros(0)))
        scaled = scheduler.scale_model_input(x, t).numpy().astype(float)
        eps = torch.from_numpy(best_eps(scaled, int(t), given).astype(np.float32))
        options = {**case["step"], **({"variance_noise": noise} if takes_noise else {})}
        # DDPMScheduler takes no noise, but draws it by this function.
        with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", return_value=noise):
            x = scheduler.step(eps, t, x, **options).prev_sample
    return x.numpy()


def main() -> None:
    """Writes the images of every run, and the versions."""
    given, cases, output = sys.argv[1:]
    arrays = dict(np.load(given))
    images: dict[str, Any] = {case["name"]: run(case, arrays) for case in json.loads(cases)}
    versions = f"diffusers {diffusers.__version__}, torch {torch.__version__.partition('+')[0]}"
    np.savez(output, versions=np.array(versions), **images)


if __name__ == "__main__":
    main()
