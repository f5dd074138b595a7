"""Diffusion models: networks, what surrounds them and what their outputs mean, and denoisers made of them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
