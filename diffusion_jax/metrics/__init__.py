"""Metrics of a trained model on a data set (`METRICS`) and of images beside others (`IMAGE_METRICS`); one file each."""

from __future__ import annotations

from typing import Any

from diffusion_jax.metrics.base import MeanStdErr, Metric, Shard, make_measure, mean_stderr
from diffusion_jax.metrics.bpd import VariationalBits
from diffusion_jax.metrics.copies import Copies, NearestTraining, find_copies
from diffusion_jax.metrics.feature_set import FeatureSet, extract
from diffusion_jax.metrics.frechet import (
    FrechetDistance,
    FrechetInfinity,
    frechet_distance,
    frechet_infinity,
)
from diffusion_jax.metrics.image_metric import ImageMetric, Measured
from diffusion_jax.metrics.inception_score import InceptionScore, inception_score
from diffusion_jax.metrics.kid import KernelDistance, kernel_distance
from diffusion_jax.metrics.mean import MeanMetric
from diffusion_jax.metrics.moments import Statistics, statistics_of
from diffusion_jax.metrics.ode_bpd import FlowBits
from diffusion_jax.metrics.precision_recall import Manifolds, PrecisionRecall, precision_recall
from diffusion_jax.options import Component, Registry

__all__ = [
    "IMAGE_METRICS",
    "METRICS",
    "Copies",
    "FeatureSet",
    "FlowBits",
    "FrechetDistance",
    "FrechetInfinity",
    "ImageMetric",
    "InceptionScore",
    "KernelDistance",
    "Manifolds",
    "MeanMetric",
    "MeanStdErr",
    "Measured",
    "Metric",
    "NearestTraining",
    "PrecisionRecall",
    "Shard",
    "Statistics",
    "VariationalBits",
    "extract",
    "find_copies",
    "frechet_distance",
    "frechet_infinity",
    "inception_score",
    "kernel_distance",
    "make_measure",
    "mean_stderr",
    "more_is_better",
    "precision_recall",
    "statistics_of",
]

METRICS: Registry[Component[Metric[Any, Any]]] = Registry(
    "metric",
    {
        "bpd": Component(VariationalBits, "bits/dim by the variational bound"),
        "ode_bpd": Component(FlowBits, "bits/dim, exact, by the ODE"),
    },
    given=("process", "denoiser", "seed"),
)
IMAGE_METRICS: Registry[Component[ImageMetric]] = Registry(
    "metric",
    {
        "fd": Component(FrechetDistance, "Fréchet distance, FID with the features inception"),
        "fd_inf": Component(FrechetInfinity, "the same at infinitely many images"),
        "kid": Component(KernelDistance, "kernel distance"),
        "is": Component(InceptionScore, "Inception score"),
        "pr": Component(Manifolds, "precision, recall, density and coverage"),
        "nearest": Component(NearestTraining, "nearest training images and copies"),
    },
    given=("seed",),
)


def more_is_better(name: str) -> bool:
    """Whether larger values of a figure in results, such as precision_lite0, mean better images."""
    better = (c.make for c in IMAGE_METRICS.values() if getattr(c.make, "higher_is_better", False))
    return any(name.startswith(f"{figure}_") for make in better for figure in make.figures)  # pyright: ignore
