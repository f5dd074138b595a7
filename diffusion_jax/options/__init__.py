"""Options: what a component can be told, declared once, where the component is defined.

A component is a function or a dataclass. An option is one of its keyword parameters, annotated with what the rest of
the package reads: the config's fields and their help, checks, refusals, names of jobs, arguments of compiled programs.
"""

from diffusion_jax.options.component import Component, Option
from diffusion_jax.options.registry import Registry

__all__ = ["Component", "Option", "Registry"]
