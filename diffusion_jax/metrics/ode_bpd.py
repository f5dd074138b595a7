"""The metric ode_bpd: bits per dimension of the images by the exact likelihood of the probability-flow ODE."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion_jax.errors import InputError
from diffusion_jax.keys import indexed, stream
from diffusion_jax.likelihood.divergence import PROBES
from diffusion_jax.likelihood.exact import Likelihood, bits_per_dim, dequantized_likelihood
from diffusion_jax.metrics.base import U_MIN, MeanStdErr, Metric, Shard, mean_stderr
from diffusion_jax.models.denoiser import Denoise
from diffusion_jax.options import Option, kinds
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import Process, levels_of
from diffusion_jax.reporting import results

SMALLEST_U = 1e-5  # Start of the flow in Song et al. (2021).


@dataclasses.dataclass(frozen=True)
class ExactShard(Shard):
    """The contribution of some images, one row per dequantization.

    Attributes:
      bits: Bits per dimension, float64; NaN where the ODE was not solved.
      evaluations: Evaluations of the field.
      finished: Whether the ODE was solved.
      reached: The log(std / signal) that its solution reached.
    """

    bits: Float[np.ndarray, "k b"]
    evaluations: Int[np.ndarray, "k b"]
    finished: Bool[np.ndarray, "k b"]
    reached: Float[np.ndarray, "k b"]


@dataclasses.dataclass(frozen=True)
class ExactBits:
    """Bits per dimension of the images of a split.

    Attributes:
      total: Mean over the images of the mean over the dequantizations. Its standard error is over the images, and
        includes that of dequantizations and probes.
      of_estimator: Standard error of the total due to dequantizations and probes alone; NaN for one
        dequantization.
      bits: Mean of each image, in the order of their indices.
      evaluations: Mean number of evaluations of the field.
      most_evaluations: The largest number.
      unfinished: Number of solutions that did not reach the prior; the total is NaN if there is one.
      least_sigma: The smallest std / signal that such a solution reached; NaN if there is none.
    """

    total: MeanStdErr
    of_estimator: float
    bits: Float[np.ndarray, " n"]
    evaluations: float
    most_evaluations: int
    unfinished: int
    least_sigma: float


@dataclasses.dataclass(frozen=True, eq=False)
class FlowBits(Metric[ExactShard, ExactBits]):
    """The exact -log2 p(x) of dequantized images, in bits per dimension.

    Attributes:
      process: The process that the denoiser was trained on.
      denoiser: (params, labels) -> denoiser, neither limited nor guided.
      seed: Seed of dequantizations and probes.
      u_min: Smallest u of the flow; None: 1e-5. Must be None for discrete processes.
      num_dequantizations: Number of dequantizations per image, evaluated in turn.
      num_probes: Probes of the divergence.
      probes: A key of `PROBES`.
      rtol: Relative tolerance of a step.
      atol: Absolute tolerance of a step.
      max_steps: Maximum number of solver steps, rejected ones included.
    """

    process: Process
    denoiser: Callable[[Any, Array | None], Denoise]
    seed: int = 0
    u_min: Annotated[float | None, U_MIN] = None
    num_dequantizations: Annotated[
        int,
        Option(kinds.Int(1, 10_000), "dequantizations per image, each with its own probes"),
    ] = 1
    num_probes: Annotated[
        int,
        Option(kinds.Int(1, 10_000), "probes of the divergence per dequantization"),
    ] = 1
    probes: Annotated[
        str,
        Option(kinds.Choice(tuple(PROBES)), "distribution of the probes: signs, or normal"),
    ] = "rademacher"
    rtol: Annotated[
        float, Option(kinds.Float(1e-7, 1), "relative tolerance of a step of the ODE")
    ] = 1e-5
    atol: Annotated[
        float, Option(kinds.Float(1e-9, 1), "absolute tolerance of a step of the ODE")
    ] = 1e-5
    max_steps: Annotated[
        int,
        Option(
            kinds.Int(1, 1_000_000),
            "maximum number of steps of the ODE, rejected ones included",
        ),
    ] = 1000

    axes: ClassVar = (1, 1, 1, 1)
    shard_type: ClassVar = ExactShard

    def likelihood(
        self,
        params: Any,
        x0: Float[Array, " b *dims"],
        labels: Int[Array, " b"] | None,
        keys: Key[Array, " b"],
    ) -> Likelihood:
        """Returns the likelihood of one dequantization of each image, drawn with its key."""
        u_min = None if levels_of(self.process) is not None else self.u_min or SMALLEST_U
        return dequantized_likelihood(
            self.denoiser(params, labels),
            make_grid(self.process, 2, u_min=u_min),
            self.process,
            x0,
            keys,
            num_probes=self.num_probes,
            probes=self.probes,
            rtol=self.rtol,
            atol=self.atol,
            max_steps=self.max_steps,
        )

    def compute(
        self,
        params: Any,
        x0: Float[Array, " b *dims"],
        labels: Int[Array, " b"] | None,
        indices: Int[Array, " b"],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> tuple[Array, ...]:
        del progress  # The number of evaluations is not known in advance.
        dims, key = math.prod(x0.shape[1:]), stream(self.seed, "exact likelihood")

        def one(k: Int[Array, ""]) -> tuple[Array, ...]:
            keys = indexed(jax.random.fold_in(key, k), indices)
            result = self.likelihood(params, x0, labels, keys)
            return tuple(result._replace(log_likelihood=bits_per_dim(result.log_likelihood, dims)))

        return jax.lax.map(one, jnp.arange(self.num_dequantizations))

    def shard(self, indices: Int[np.ndarray, " b"], *arrays: Any) -> ExactShard:
        bits, *others = arrays
        return ExactShard(indices, np.asarray(bits, np.float64), *others)

    def fits(self, shard: ExactShard) -> bool:
        right_number = len(shard.bits) == self.num_dequantizations
        return right_number and bool((shard.evaluations >= 0).all())

    def combine(self, shards: list[ExactShard]) -> ExactBits:
        order = np.argsort(np.concatenate([shard.indices for shard in shards]))
        bits, evaluations, finished, reached = (
            np.concatenate([getattr(shard, name) for shard in shards], axis=1)[:, order]
            for name in ("bits", "evaluations", "finished", "reached")
        )
        count, num_images = bits.shape
        of_estimator = np.nan
        if count > 1:
            of_estimator = float(np.sqrt(bits.var(axis=0, ddof=1).sum() / count) / num_images)
        return ExactBits(
            total=mean_stderr(bits.mean(0)),
            of_estimator=of_estimator,
            bits=bits.mean(0),
            evaluations=float(evaluations.mean()),
            most_evaluations=int(evaluations.max()),
            unfinished=int((~finished).sum()),
            least_sigma=float(np.exp(reached[~finished].min())) if not finished.all() else np.nan,
        )

    def check(self, result: ExactBits) -> None:
        """Raises for images whose ODE was not solved within max_steps."""
        if result.unfinished:
            count = len(result.bits) * self.num_dequantizations
            raise InputError(
                f"eval.max_steps is {self.max_steps}: {result.unfinished} of {count} solutions of the ODE had not "
                f"reached the prior by then, the slowest std / signal = {result.least_sigma:.3g}, with "
                f"eval.rtol={self.rtol:g} and eval.atol={self.atol:g}; allow more steps, or a larger error"
            )

    def record(self, result: ExactBits) -> dict[str, Any]:
        known = np.isfinite(result.of_estimator)
        return {
            "total": result.total._asdict(),
            "stderr_of_estimator": result.of_estimator if known else None,
            "num_images": len(result.bits),
            "nfe": result.evaluations,
            "nfe_most": result.most_evaluations,
        }

    def summarize(self, record: dict[str, Any]) -> str:
        total, spread = record["total"], record["stderr_of_estimator"]
        of_estimator = (
            "" if spread is None else f" (of which dequantization and probes {spread:.4f})"
        )
        return (
            f"{total['value']:.4f} ± {total['stderr']:.4f}{of_estimator} bits/dim by the exact likelihood of the ODE\n"
            f"of {record['num_images']} {record['split']} images, {record['num_dequantizations']} dequantization(s) "
            f"with {record['num_probes']} probe(s) each, {record['nfe']:.0f} evaluations, checkpoint {record['step']}"
        )

    def save(self, folder: Path, result: ExactBits) -> list[Path]:
        """Writes the bits of each image."""
        path = folder / "ode_bpd.npz"
        results.write_npz(path, bits=result.bits)
        return [path]
