"""What an objective is: how a batch's times are drawn, and the loss of each image."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Key


class Draws(NamedTuple):
    """The random numbers of a batch, drawn for all of it at once: its loss does not depend on how it is split.

    Attributes:
      u: Decides the time of each image, in [0, 1), least noisy first; rows are divided into quarters by it.
      eps: Standard normal noise.
      weight: By which the image's loss counts in the mean over the batch, 1 on average; 1 unless some times are
        drawn more often than others.
      keys: A key of each image, independent of its u and eps, for what else a loss draws; None where it draws nothing.
    """

    u: Float[Array, " b"]
    eps: Float[Array, " b *dims"]
    weight: Float[Array, " b"]
    keys: Key[Array, " b"] | None = None


# (params, x0, labels, draws, dropout_keys) -> loss of each image, not weighted
Loss = Callable[[Any, Array, Array | None, Draws, Array | None], Array]


class Objective(NamedTuple):
    """What is minimised, the mean of weight * loss, and how its times are drawn.

    Attributes:
      init: () -> aux, the objective's own state (a history of losses, say): a pytree of arrays, saved with
        the parameters.
      draw: (aux, key, shape of the batch of images) -> Draws.
      loss: (params, x0, labels, draws, dropout_keys) -> loss of each image, not weighted; x0 in [-1, 1], labels
        and dropout_keys, one an image, may be None.
      update: (aux, draws, losses) -> aux after the step; losses are not weighted.
    """

    init: Callable[[], Any]
    draw: Callable[[Any, Array, tuple[int, ...]], Draws]
    loss: Loss
    update: Callable[[Any, Draws, Array], Any]
