"""The sections of the page, in its order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from diffusion_jax.report.blocks import Block
from diffusion_jax.report.sections.comparison import comparison
from diffusion_jax.report.sections.inputs import Inputs
from diffusion_jax.report.sections.likelihood import likelihood
from diffusion_jax.report.sections.metrics import metrics
from diffusion_jax.report.sections.neighbors import neighbors
from diffusion_jax.report.sections.paper import paper
from diffusion_jax.report.sections.recipe import recipe
from diffusion_jax.report.sections.reverse import reverse
from diffusion_jax.report.sections.samples import samples
from diffusion_jax.report.sections.sweeps import sweeps
from diffusion_jax.report.sections.training import training


class Section(NamedTuple):
    """A section of the page.

    Attributes:
      name: Its id.
      title: Its heading.
      make: What it shows, or a note on what makes it.
    """

    name: str
    title: str
    make: Callable[[Inputs], Sequence[Block]]


SECTIONS = (
    Section("samples", "Samples over the training", samples),
    Section("reverse", "The reverse process", reverse),
    Section("training", "Training", training),
    Section("neighbors", "Nearest training images", neighbors),
    Section("metrics", "Metrics", metrics),
    Section("likelihood", "Bits per dimension", likelihood),
    Section("sweeps", "Quality, speed and guidance", sweeps),
    Section("comparison", "Comparison of runs", comparison),
    Section("paper", "The paper's figures and tables", paper),
    Section("recipe", "Recipe and environment", recipe),
)
