"""The parameters of a checkpoint: as they are, an average that was tracked, or one reconstructed from snapshots."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from diffusion_jax.checkpoints.store import Checkpoint, CheckpointStore
from diffusion_jax.errors import InputError
from diffusion_jax.experiment.checks import check_average
from diffusion_jax.training.averages import PowerFunction, Profile, fit, weighted_sum
from diffusion_jax.training.state import average_part
from diffusion_jax.training.tracked import Tracked

LARGEST_ERROR = 0.05  # Of a profile, above which a reconstruction is warned of,
LARGEST_AMPLIFICATION = 100  # and of the rounding.


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """How an average that was not tracked was made.

    Attributes:
      lengths: Relative lengths of the power-function averages that it is a sum of.
      steps: Steps of these; the last is the checkpoint's own.
      error: Error of the weights of the steps, as in `training.Fit`.
      amplification: What the rounding of the saved averages is multiplied by.
    """

    lengths: tuple[float, ...]
    steps: tuple[int, ...]
    error: float
    amplification: float

    def __str__(self) -> str:
        """Describes it in one line."""
        lengths = ", ".join(map(str, self.lengths))
        return (
            f"reconstructed from the averages of length {lengths} at {len(self.steps)} steps, {self.steps[0]} to "
            f"{self.steps[-1]}; relative error of the steps' weights {self.error:.2g}, rounding times "
            f"{self.amplification:.2g}"
        )

    def problem(self) -> str | None:
        """Returns a description of what makes it inexact, and what would help; None if nothing does."""
        advice = "more snapshots (optimizer.ema_snapshot_every) and "
        advice += "other" if len(self.lengths) > 1 else "two or more"
        advice += " lengths (optimizer.ema_lengths) make it exact"
        if self.error > LARGEST_ERROR:
            return (
                f"the error of its weights is {self.error:.1%}, above {LARGEST_ERROR:.0%}: {advice}"
            )
        if self.amplification > LARGEST_AMPLIFICATION:
            return f"it multiplies rounding by {self.amplification:.0f}: {advice}"
        return None


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Parameters, and where they come from.

    Attributes:
      params: The parameters.
      checkpoint: The checkpoint; of its parts, those that were needed.
      digest: Hash of all files that they were made of.
      reconstruction: How they were made; None if the checkpoint has them.
    """

    params: Any
    checkpoint: Checkpoint
    digest: str
    reconstruction: Reconstruction | None = None


def load_parameters(
    store: CheckpointStore,
    tracked: Tracked,
    template: Any,
    step: int | None,
    ema: bool | float,
    ema_length: float | None,
) -> Loaded:
    """Loads parameters or an average of them.

    Args:
      store: The run's checkpoints.
      tracked: The averages that its training tracks.
      template: Shapes, types and shardings of the parameters.
      step: Step of the checkpoint; None: the newest.
      ema: Whether to load the main average, or the decay of another one.
      ema_length: Relative length of a power-function average, in place of `ema`.

    Raises:
      InputError: An average that was neither tracked nor can be reconstructed; no such checkpoint.
      RunError: No checkpoint is sound, or a snapshot is not.
    """
    check_average(ema, ema_length)
    name = tracked.name(ema, ema_length)
    if name is None or name in tracked.make():
        part = "params" if name is None else average_part(name)
        checkpoint = _restore(store, {part: template}, step)
        return Loaded(checkpoint.parts[part], checkpoint, checkpoint.digest)
    asked = f"sample.ema={ema}" if ema_length is None else f"sample.ema_length={ema_length}"
    parts = {average_part(name): template for name in tracked.length_names.values()}
    checkpoint = _restore(store, parts or {"params": template}, step)
    with contextlib.closing(snapshot_store(store)) as snapshots:
        earlier = [s for s in snapshots.steps() if s < checkpoint.step]
        if not (parts and earlier):
            raise InputError(
                f"{asked} was not tracked, and step {checkpoint.step} has no snapshots before it to reconstruct it "
                f"from (optimizer.ema_snapshot_every); tracked: {tracked}"
            )
        profile, lengths = tracked.profile(ema, ema_length), tuple(tracked.length_names)
        loaded = _reconstruct(checkpoint, snapshots, earlier, lengths, parts, profile)
    if problem := loaded.reconstruction and loaded.reconstruction.problem():
        warnings.warn(f"{asked} of step {checkpoint.step} is inexact: {problem}", stacklevel=3)
    return loaded


def snapshot_store(checkpoints: CheckpointStore) -> CheckpointStore:
    """Returns the store of a run's snapshots of averages, of which none is deleted.

    Args:
      checkpoints: The run's checkpoints, beside which they are.
    """
    return CheckpointStore(checkpoints.directory / "snapshots", keep_every=1)


def _restore(store: CheckpointStore, template: dict[str, Any], step: int | None) -> Checkpoint:
    checkpoint = store.restore(template, step)
    if checkpoint is None:
        raise InputError(f"no checkpoint in {store.directory}")
    return checkpoint


def _reconstruct(
    checkpoint: Checkpoint,
    snapshots: CheckpointStore,
    earlier: Sequence[int],
    lengths: tuple[float, ...],
    parts: dict[str, Any],
    target: Profile,
) -> Loaded:
    """Returns the sum of the power-function averages of a checkpoint and of earlier snapshots, nearest to a target."""
    steps = (*earlier, checkpoint.step)
    averages = [(PowerFunction(length), step) for step in steps for length in lengths]
    found = fit(averages, target, checkpoint.step)
    digests = []

    def saved() -> Iterator[Any]:
        """Yields the averages of one step after another, so that no more are in memory."""
        for step in steps:
            one = checkpoint if step == checkpoint.step else _restore(snapshots, parts, step)
            digests.append(one.digest)
            yield from (one.parts[part] for part in parts)

    template = next(iter(parts.values()))
    params = jax.tree.map(_placed, weighted_sum(saved(), found.coefficients), template)
    digest = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    made = Reconstruction(lengths, steps, found.error, found.amplification)
    return Loaded(params, checkpoint, digest, made)


def _placed(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns an array of the host, which is the same on all, with the sharding of a template."""
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: array[index])
