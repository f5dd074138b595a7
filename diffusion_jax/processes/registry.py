"""All processes by name."""

from __future__ import annotations

import dataclasses

from diffusion_jax.options import Component, Registry
from diffusion_jax.processes.ddpm import discrete_chain
from diffusion_jax.processes.ncsn import NCSN
from diffusion_jax.processes.process import Process
from diffusion_jax.processes.sde import VE, VP, SubVP

_MORE_BETA = "process.beta_max larger, such as 20"
_MORE_SIGMA = "process.sigma_max to about the largest distance between two images"


@dataclasses.dataclass(frozen=True, eq=False)
class ProcessKind(Component[Process]):
    """A process; `make` maps its options to a `Process`.

    Attributes:
      less_signal: Fields to set for less signal at the last time: "FIELD larger".
      continuous: Whether grids and training start at a smallest u, which the config may set.
      chain: Whether the network is given the step of the chain of Ho et al. (2020), as published classifiers of noisy
        images are.
    """

    less_signal: str = ""
    continuous: bool = False
    chain: bool = False


PROCESSES: Registry[ProcessKind] = Registry(
    "process",
    {
        "ddpm": ProcessKind(
            discrete_chain,
            "the discrete chain",
            less_signal="process.num_timesteps or process.beta_end larger, or leave beta_start and beta_end unset",
            chain=True,
        ),
        "vp": ProcessKind(
            VP, "the variance-preserving SDE", less_signal=_MORE_BETA, continuous=True
        ),
        "subvp": ProcessKind(SubVP, "the sub-VP SDE", less_signal=_MORE_BETA, continuous=True),
        "ve": ProcessKind(
            VE, "the variance-exploding SDE", less_signal=_MORE_SIGMA, continuous=True
        ),
        "ncsn": ProcessKind(NCSN, "a ladder of noise levels", less_signal=_MORE_SIGMA),
    },
)
