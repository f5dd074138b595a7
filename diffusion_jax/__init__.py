"""Denoising diffusion models of images in JAX and Flax.

The most common names are available here; all others are in the packages, such as `processes.SubVP` and
`samplers.heun`. A module is imported when one of its names is first used.
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
