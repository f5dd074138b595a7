"""All samplers by name, with their processes, inverses and default numbers of steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from diffusion_jax.options import Component, Option, Registry
from diffusion_jax.processes.ode import Solution
from diffusion_jax.processes.process import Grid
from diffusion_jax.samplers.adaptive import more_steps, ode_adaptive, ode_decode, ode_encode
from diffusion_jax.samplers.ancestral import ancestral
from diffusion_jax.samplers.ddim import ddim
from diffusion_jax.samplers.dpm_solver import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m
from diffusion_jax.samplers.heun import empty_range, heun, long_steps
from diffusion_jax.samplers.inversion import encode
from diffusion_jax.samplers.langevin import langevin
from diffusion_jax.samplers.loop import Sampler
from diffusion_jax.samplers.ode_heun import ode_heun
from diffusion_jax.samplers.pndm import pndm, uneven_steps
from diffusion_jax.samplers.predictor_corrector import predictor_corrector
from diffusion_jax.samplers.predictors import euler_maruyama, reverse_diffusion
from diffusion_jax.samplers.unipc import unipc


@dataclasses.dataclass(frozen=True, eq=False)
class UpdateRule(Component[Sampler]):
    """A sampler; `make` maps a grid, the process if it asks for it, and its options to a `Sampler`.

    Attributes:
      processes: Names of the processes that it supports; empty: all.
      inverse: (denoise, grid, process if it asks for it, x0, its options) -> x_T, which the sampler maps back to x0;
        None: the sampler is not invertible.
      invertible_at: Values of options, by field, at which alone the sampler is invertible.
      decode: (denoise, grid, process if it asks for it, x_init, its options) -> the images of an x_T from `inverse`;
        None: the sampler itself decodes.
      num_steps: Default number of steps; None: that of the process's whole grid.
      keeps_eps: Whether other codes use `clip_denoised(keep_eps=True)` with this rule.
      unsuited: grid -> why this rule draws noise on it; None if it does not.
      check: options by field -> what is wrong with them together, in terms of the config; None if nothing is.
      advice: options by field -> how the solver was limited, and what to set, where it has not finished; "": nothing.
    """

    processes: tuple[str, ...] = ()
    inverse: Component[Solution] | None = None
    invertible_at: Mapping[str, float] = dataclasses.field(default_factory=dict)
    decode: Component[Solution] | None = None
    num_steps: int | None = None
    keeps_eps: bool = False
    unsuited: Callable[[Grid], str | None] = lambda grid: None
    check: Callable[[Mapping[str, Any]], str | None] = lambda options: None
    advice: Callable[[Mapping[str, Any]], str] = lambda options: ""

    @property
    def inversion_options(self) -> Mapping[str, Option]:
        """Options by field that `inverse` or `decode` has, but not the sampler itself."""
        parts = [part.options for part in (self.inverse, self.decode) if part is not None]
        return {
            name: option
            for options in parts
            for name, option in options.items()
            if name not in self.options
        }


SAMPLERS: Registry[UpdateRule] = Registry(
    "sampler",
    {
        "ancestral": UpdateRule(ancestral, "samples each reverse step"),
        "ddim": UpdateRule(
            ddim,
            "from deterministic to ancestral, by eta",
            inverse=Component(encode, "fixed-point inversion"),
            invertible_at={"eta": 0.0},
            keeps_eps=True,
        ),
        "dpmpp_2m": UpdateRule(dpmpp_2m, "DPM-Solver++ of order 2, for 10 to 20 steps"),
        "dpmpp_2m_sde": UpdateRule(dpmpp_2m_sde, "the same for the SDE"),
        "dpmpp_3m": UpdateRule(dpmpp_3m, "DPM-Solver++ of order 3"),
        "euler_maruyama": UpdateRule(euler_maruyama, "the Euler-Maruyama rule for the reverse SDE"),
        "heun": UpdateRule(
            heun,
            "Heun's method in sigma, two evaluations per step",
            unsuited=long_steps,
            check=empty_range,
        ),
        "langevin": UpdateRule(langevin, "annealed Langevin dynamics", processes=("ve", "ncsn")),
        "ode_adaptive": UpdateRule(
            ode_adaptive,
            "the probability-flow ODE to a tolerance",
            inverse=Component(ode_encode, "the flow, backward"),
            decode=Component(ode_decode, "the flow, without the sampler's denoising step"),
            num_steps=2,
            advice=more_steps,
        ),
        "ode_heun": UpdateRule(ode_heun, "Heun's method for the ODE in the process's time"),
        "pndm": UpdateRule(pndm, "pseudo linear multistep", unsuited=uneven_steps),
        "predictor_corrector": UpdateRule(
            predictor_corrector, "a rule, then Langevin moves; short: pc"
        ),
        "reverse_diffusion": UpdateRule(reverse_diffusion, "reverses each forward step"),
        "unipc": UpdateRule(unipc, "a multistep rule with a free corrector, for 5 to 15 steps"),
    },
    given=("grid", "process"),
    aliases={"pc": "predictor_corrector"},
)
