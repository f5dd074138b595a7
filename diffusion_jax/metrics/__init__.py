"""Metrics of a trained model on a whole data set: one file and one entry of `METRICS` each."""

from typing import Any

from diffusion_jax.metrics.base import MeanStdErr, Metric, Shard, make_measure, mean_stderr
from diffusion_jax.metrics.bpd import VariationalBits
from diffusion_jax.metrics.mean import MeanMetric
from diffusion_jax.metrics.ode_bpd import FlowBits
from diffusion_jax.options import Component, Registry

__all__ = [
    "METRICS",
    "FlowBits",
    "MeanMetric",
    "MeanStdErr",
    "Metric",
    "Shard",
    "VariationalBits",
    "make_measure",
    "mean_stderr",
]

METRICS: Registry[Component[Metric[Any, Any]]] = Registry(
    "metric",
    {
        "bpd": Component(VariationalBits, "bits/dim by the variational bound"),
        "ode_bpd": Component(FlowBits, "bits/dim, exact, by the ODE"),
    },
    given=("process", "denoiser", "seed"),
)
