"""Progress reports from a compiled loop to the host."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jaxtyping import Array, Int


def report(
    progress: Callable[[int], object], done: Int[Array, ""], every: int, total: int | Array
) -> None:
    """Calls progress(done) on the host at every `every`-th step and at the last one, `total`.

    Call this in the body of a compiled loop; inside `jax.shard_map` every device reports. A program with
    host callbacks is not stored in JAX's persistent compilation cache.
    """

    def call(done: Array) -> None:
        progress(int(done))

    jax.lax.cond(
        (done % every == 0) | (done == total),
        lambda: jax.debug.callback(call, done),
        lambda: None,
    )
