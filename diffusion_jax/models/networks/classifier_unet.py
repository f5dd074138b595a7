"""The classifier of noisy images of Dhariwal & Nichol (2021): the first half of the U-Net, and a head."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.errors import InputError, choose
from diffusion_jax.models.networks.layers import Dense, zero_init
from diffusion_jax.models.networks.unet import UNet
from diffusion_jax.ops.attention import attention

POOLS = ("adaptive", "attention", "spatial", "spatial_v2")
HIDDEN = 2048  # Width of the heads on the means of all feature maps.


class ClassifierUNet(UNet):
    """Classifier of x_t at time t: `UNet`'s encoder and middle, then a head; its output is logits, float32.

    It has the options of `UNet` but for those of the decoder. `num_classes` is the number of classes that it is told,
    0 if none, not of those that it tells apart.

    Attributes:
      out_channels: Number of logits.
      pool: Head: "adaptive": the mean over the pixels, after norm and swish, and a linear map; "attention": the mean's
        attention to itself and all pixels; "spatial" and "spatial_v2": a perceptron, without or with a norm, on the
        means of all feature maps.

    Example:
      >>> module = dj.models.ClassifierUNet(channels=32, channel_mult=(1, 2), out_channels=10)
      >>> network = dj.as_functions(module, (16, 16, 3))
      >>> params = network.init(jax.random.key(0))
      >>> network.apply(params, jnp.zeros((2, 16, 16, 3)), jnp.zeros(2)).shape
      (2, 10)
    """

    pool: str = "attention"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        labels: Int[Array, " b"] | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b k"]:
        emb = self._embedding(t, labels)
        maps = self._encoder(x, emb, dropout_keys)
        maps.append(self._middle(maps[-1], emb, dropout_keys))
        if self.pool.startswith("spatial"):
            return self._of_all(maps)
        h = self._norm(swish=True, name="norm_out")(maps[-1])
        if self.pool == "adaptive":
            return Dense(self._logits, kernel_init=zero_init, name="logits")(h.mean((1, 2)))
        return AttentionPool(self._logits, self._heads(h.shape[-1]), name="pool")(h)

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises an InputError for images whose size the levels do not divide, or options without an effect."""
        super().check(image_shape)
        choose("pool", self.pool, dict.fromkeys(POOLS))
        if self.out_channels is None:
            raise InputError(
                "out_channels is None; it must be the number of classes of the classifier"
            )
        for name in ("decoder_attention", "output_pyramid"):
            if getattr(self, name) != getattr(UNet, name):
                raise InputError(
                    f"{name} is {getattr(self, name)!r}, but a classifier has no decoder; leave it unset"
                )

    @property
    def _logits(self) -> int:
        assert self.out_channels is not None
        return self.out_channels

    def _of_all(self, maps: list[Array]) -> Array:
        """Returns the logits of the heads that see all feature maps."""
        h = jnp.concatenate([h.astype(jnp.float32).mean((1, 2)) for h in maps], axis=-1)
        h = Dense(HIDDEN, name="hidden")(h)
        if self.pool == "spatial":
            h = nn.relu(h)
        else:
            h = self._norm(swish=True, name="norm_hidden")(h[:, None, None, :])[:, 0, 0]
        return Dense(self._logits, name="logits")(h)


class AttentionPool(nn.Module):
    """Self-attention over the pixels and their mean, of which the mean's part is mapped to the output (CLIP's pooling).

    Attributes:
      features: Length of the output.
      heads: Number of heads, a divisor of the channels.
    """

    features: int
    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        b, h, w, c = x.shape
        pixels = x.astype(jnp.float32).reshape(b, h * w, c)
        tokens = jnp.concatenate([pixels.mean(1, keepdims=True), pixels], axis=1)
        init = nn.initializers.normal(c**-0.5)
        tokens = tokens + self.param("positions", init, (h * w + 1, c))[None]
        q, k, v = jnp.split(Dense(3 * c, name="qkv")(tokens), 3, axis=-1)
        attended = attention(q[:, :1], k, v, self.heads)  # Of the mean alone.
        return Dense(self.features, name="out")(attended[:, 0])
