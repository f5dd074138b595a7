"""Likelihoods of images under a model: the variational bound and its terms, and the exact likelihood."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
