"""Options of components, each declared once, in the signature of the component that has it.

A component is a function or a dataclass. An option is one of its keyword parameters, annotated with an `Option`, from
which the config's fields, their help and checks, names of jobs and arguments of compiled programs are derived.
"""

from __future__ import annotations

from diffusion_jax.options.component import Component, Option
from diffusion_jax.options.registry import Registry

__all__ = ["Component", "Option", "Registry"]
