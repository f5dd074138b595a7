"""Trained runs: what a workdir holds, loaded for use from a notebook or a command."""

from diffusion_jax.runs.run import Run, load_run

__all__ = ["Run", "load_run"]
