"""The denoiser that a config samples with: limited, and guided by labels or a classifier."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.experiment.build import Experiment
from diffusion_jax.models.denoiser import Denoise
from diffusion_jax.models.guidance import (
    classifier_free,
    classifier_guided,
    clip_denoised,
    dynamic_threshold,
)


def denoiser_of(
    experiment: Experiment,
    fields: Any,
    params: Any,
    traced: dict[str, Any],
    classifier_params: Any,
    labels: Array | None,
) -> Denoise:
    """Returns the config's denoiser: guided without a classifier, then limited, then guided by a classifier.

    A classifier's gradient comes last, as in guided-diffusion, so x_0 may leave [-1, 1] by it.

    Args:
      experiment: The experiment.
      fields: Its sampler group.
      params: Parameters of the network.
      traced: Traced fields of the sampler group.
      classifier_params: Parameters of the classifier; None: there is none.
      labels: Class of each image; None: they have none.
    """
    denoise = _limited(fields, _unlimited(experiment, fields, params, traced, labels))
    classifier = experiment.classifier
    if classifier is None:
        return denoise
    assert labels is not None
    gradient = classifier.gradient(classifier_params, labels)
    return classifier_guided(denoise, gradient, traced.get("classifier_scale", 1.0))


def _unlimited(
    experiment: Experiment,
    fields: Any,
    params: Any,
    traced: dict[str, Any],
    labels: Array | None,
) -> Denoise:
    if fields.guidance_scale is None:
        return experiment.denoiser(params, labels if experiment.conditional else None)
    assert labels is not None
    no_class = jnp.full_like(labels, experiment.num_classes)
    return classifier_free(
        experiment.denoiser(params, jnp.concatenate([labels, no_class])),
        traced["guidance_scale"],
        interval=fields.guidance_interval,
        rescale=traced["guidance_rescale"],
        rescale_of=fields.guidance_rescale_of or "x0",
    )


def _limited(fields: Any, denoise: Denoise) -> Denoise:
    keep_eps = fields.clip_keeps == "eps"
    if fields.dynamic_threshold is not None:
        return dynamic_threshold(denoise, fields.dynamic_threshold, keep_eps=keep_eps)
    return clip_denoised(denoise, keep_eps=keep_eps) if fields.clip else denoise
