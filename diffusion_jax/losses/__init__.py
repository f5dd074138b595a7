"""Training objectives, by name."""

from collections.abc import Callable

from diffusion_jax.denoiser import Network, parameterization
from diffusion_jax.errors import choose
from diffusion_jax.losses.objective import Draws, Objective
from diffusion_jax.losses.simple import simple, simple_loss
from diffusion_jax.losses.times import draw_uniform
from diffusion_jax.processes.process import Process

__all__ = [
    "OBJECTIVES",
    "Draws",
    "Objective",
    "draw_uniform",
    "loss_function",
    "simple",
    "simple_loss",
]

# (process, prediction, network) -> Objective
OBJECTIVES: dict[str, Callable[[Process, str, Network], Objective]] = {"simple": simple}


def loss_function(name: str, process: Process, prediction: str, network: Network) -> Objective:
    """Returns the objective of that name.

    Args:
      name: A key of `OBJECTIVES`.
      process: The forward process.
      prediction: What the network predicts, a key of `PARAMETERIZATIONS`.
      network: (params, x_t, time, labels, dropout_keys) -> output.

    Raises:
      InputError: Unknown name or prediction.
    """
    parameterization(prediction, process)
    return choose("loss", name, OBJECTIVES)(process, prediction, network)
