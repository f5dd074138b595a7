"""The forward processes q: x_t = signal x_0 + std eps, variance schedules, and the identities of all processes."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
