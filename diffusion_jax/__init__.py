"""Denoising diffusion models of images in JAX and Flax.

The names that most programs need stand here; all others stand in the packages, such as `processes.SubVP` and
`samplers.heun`. A module is loaded when a name of it is first used.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
