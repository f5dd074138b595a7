"""The sampler as a program that a process with JAX alone runs: StableHLO, by `jax.export`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from diffusion_jax.errors import InputError
from diffusion_jax.experiment.build import Experiment
from diffusion_jax.experiment.sampling import TracedOptions, make_draw, traced_options

PLATFORMS = ("cpu", "cuda", "tpu")
LARGEST = 2**31 - 2**26  # Bytes of the parameters: the file's format ends at 2 GiB.


def export_sampler(exp: Experiment, params: PyTree, platforms: Sequence[str] = PLATFORMS) -> bytes:
    """Returns the serialized function (seed, indices[, labels]) -> images, for any number b of images.

    Image i depends on its index, its label and the seed alone, as in `--mode=sample`: uint32 scalar, int32 (b,), int32
    (b,) -> uint8 (b, h, w, c). The parameters, and a classifier's, are part of it. It needs `jax.export.deserialize`,
    and no code of ours.

    Args:
      exp: The experiment with the sampler of its config.
      params: The parameters.
      platforms: Where it can run.

    Raises:
      InputError: The parameters have more than 2 GiB.
    """
    traced = traced_options(exp)
    constants, of_classifier = jax.tree.map(np.asarray, (params, traced.classifier))
    if (size := sum(leaf.nbytes for leaf in jax.tree.leaves((constants, of_classifier)))) > LARGEST:
        raise InputError(
            f"the parameters have {size:,} bytes; a program holds at most {LARGEST:,}: take --format=single"
        )
    draw = make_draw(exp)

    def sample(seed: Any, indices: Any, labels: Any = None) -> Any:
        options = TracedOptions(seed, traced.sampler, of_classifier)
        return draw(constants, options, indices, labels).images

    (batch,) = jax.export.symbolic_shape("b")
    of_images = jax.ShapeDtypeStruct((batch,), jnp.int32)
    arguments = [jax.ShapeDtypeStruct((), jnp.uint32), of_images]
    arguments += [of_images] if exp.label_classes else []
    program = jax.export.export(jax.jit(sample), platforms=tuple(platforms))(*arguments)
    return bytes(program.serialize())
