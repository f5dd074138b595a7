"""Options that networks share."""

from __future__ import annotations

from diffusion_jax.options import Option
from diffusion_jax.options.kinds import Choice, Float, Int

CHANNELS = Option(Int(4, 16_384, factor=4), "width of the first level")
NUM_RES_BLOCKS = Option(Int(1, 1_000), "residual blocks per level (U-Net) or in all (MLP)")
DROPOUT = Option(Float(0, 0.99), "rate of dropout while training")
DTYPE = Option(
    Choice(("float32", "bfloat16")), "of the computation; parameters: float32", default="float32"
)
