"""A small denoiser for low-dimensional data."""

from __future__ import annotations

from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.models.networks.embeddings import ClassEmbedding, time_embedding
from diffusion_jax.models.networks.layers import Dense, Dropout, Dtype, default_init, zero_init
from diffusion_jax.models.networks.shared_options import CHANNELS, DROPOUT, DTYPE, NUM_RES_BLOCKS


class MLP(nn.Module):
    """Residual multilayer perceptron on the flattened input; same call as `UNet`.

    Attributes:
      channels: Width of the hidden layers.
      num_res_blocks: Number of residual layers.
      dropout: Rate inside the residual layers, where dropout keys are given.
      num_classes: Number of classes to condition on; 0 for none. Label `num_classes` stands for no class.
      out_channels: Channels of the output; None: those of the input.
      dtype: Type of the computation. Parameters, norms and output stay float32.
    """

    channels: Annotated[int, CHANNELS] = 128
    num_res_blocks: Annotated[int, NUM_RES_BLOCKS] = 2
    dropout: Annotated[float, DROPOUT] = 0.0
    num_classes: int = 0
    out_channels: int | None = None
    dtype: Annotated[Dtype, DTYPE] = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        labels: Int[Array, " b"] | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b h w d"]:
        def dense(width: int, name: str, init: nn.initializers.Initializer = default_init):
            return Dense(width, kernel_init=init, dtype=self.dtype, name=name)

        emb = dense(self.channels, "time_dense")(time_embedding(t, self.channels))
        if self.num_classes > 0:
            classes = ClassEmbedding(self.num_classes, self.channels, self.dtype, name="class")
            emb = emb + classes(labels)
        emb = nn.swish(emb)

        h = dense(self.channels, "dense_in")(x.reshape(x.shape[0], -1))
        for i in range(self.num_res_blocks):
            r = nn.LayerNorm(dtype=jnp.float32, name=f"norm_{i}")(h)
            r = nn.swish(
                dense(self.channels, f"dense_{i}_a")(r) + dense(self.channels, f"time_{i}")(emb)
            )
            r = Dropout(self.dropout, name=f"dropout_{i}")(r, dropout_keys)
            h = h + dense(self.channels, f"dense_{i}_b", zero_init)(r)
        h = nn.swish(nn.LayerNorm(dtype=jnp.float32, name="norm_out")(h))
        b, height, width, channels = x.shape
        outputs = channels if self.out_channels is None else self.out_channels
        out = dense(height * width * outputs, "dense_out", zero_init)(h)
        return out.reshape(b, height, width, outputs).astype(jnp.float32)
