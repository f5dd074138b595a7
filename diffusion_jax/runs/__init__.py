"""Trained runs: loading them from a workdir, and resuming them."""

from __future__ import annotations

from diffusion_jax.runs.run import Run, load_run

__all__ = ["Run", "load_run"]
