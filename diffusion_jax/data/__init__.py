"""Image data: named sources, prepared once as TFDS data, and batches that depend on (seed, k) alone."""

from __future__ import annotations

from diffusion_jax.data.loading import SOURCES, default_cache_dir, load
from diffusion_jax.data.pipeline import batch_indices, batches
from diffusion_jax.data.split import (
    Batch,
    Split,
    content_digest,
    fingerprint,
    from_arrays,
    in_memory,
    subset,
)
from diffusion_jax.data.transforms import random_flip, to_model_range, to_uint8

__all__ = [
    "SOURCES",
    "Batch",
    "Split",
    "batch_indices",
    "batches",
    "content_digest",
    "default_cache_dir",
    "fingerprint",
    "from_arrays",
    "in_memory",
    "load",
    "random_flip",
    "subset",
    "to_model_range",
    "to_uint8",
]
