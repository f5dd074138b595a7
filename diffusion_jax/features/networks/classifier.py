"""A small convolutional classifier, whose layer before the last gives features."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.models.networks.layers import Conv, Dense, GroupNorm


class Classifier(nn.Module):
    """Three 3×3 convolutions with stride 2, but for the first one of small images, and two linear layers.

    Attributes:
      num_classes: Number of classes.
      num_features: Length of the features.
      channels: Channels of the convolutions.
    """

    num_classes: int
    num_features: int = 64
    channels: tuple[int, ...] = (24, 48, 96)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "b k"]]:
        """Returns features and logits of images in [-1, 1]."""
        small = min(x.shape[1:3]) < 16
        for i, channels in enumerate(self.channels):
            x = Conv(channels, stride=1 if small and i == 0 else 2, name=f"conv_{i}")(x)
            x = GroupNorm(swish=True, name=f"norm_{i}")(x)
        # Where something is counts for an image's quality, so pixels are not averaged.
        features = Dense(self.num_features, name="features")(x.reshape(x.shape[0], -1))
        features = nn.swish(features).astype(jnp.float32)
        return features, Dense(self.num_classes, name="logits")(features)
