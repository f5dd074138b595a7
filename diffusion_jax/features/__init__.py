"""Feature extractors for metrics of sample quality: one file and one entry of `FEATURES` each."""

from __future__ import annotations

from diffusion_jax.features import classifier, dinov2, inception, lite0
from diffusion_jax.features.extractor import Extractor
from diffusion_jax.options import Component, Registry

__all__ = ["DOWNLOADS", "FEATURES", "Extractor"]

# Given: `cache_dir`, the folder of downloads and trained weights; `split`, () -> labeled training images of the data.
FEATURES: Registry[Component[Extractor]] = Registry(
    "features",
    {
        "inception": Component(
            inception.inception, "the Inception-v3 of 2015 whose distance is the FID"
        ),
        "dinov2": Component(dinov2.dinov2, "DINOv2 ViT-L/14, as EDM2 measures with"),
        "lite0": Component(
            lite0.lite0, "EfficientNet-Lite0, whose weights the extra [lite0] installs"
        ),
        "classifier": Component(
            classifier.classifier, "a small network trained on the data's own labels"
        ),
    },
    given=("cache_dir", "split"),
)

# Weights that features get from the network, unless `eval.weights` names a file.
DOWNLOADS = {"inception": inception.PUBLISHED, "dinov2": dinov2.PUBLISHED}
