"""The metric bpd: bits per dimension by the variational bound, its terms, and their plots."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.keys import indexed, stream
from diffusion_jax.likelihood.decoder import discretized_gaussian
from diffusion_jax.likelihood.progressive import rate_distortion
from diffusion_jax.likelihood.vlb import VLB, variational_bound
from diffusion_jax.metrics import bound_totals
from diffusion_jax.metrics.base import U_MIN, Metric
from diffusion_jax.metrics.bound_totals import BitsPerDim, BoundShard
from diffusion_jax.models.denoiser import Denoise
from diffusion_jax.models.guidance import clip_denoised
from diffusion_jax.options import Option, kinds
from diffusion_jax.processes.grid import SPACING, make_grid
from diffusion_jax.processes.process import Grid, Process
from diffusion_jax.processes.reverse import VARIANCES
from diffusion_jax.reporting import bound_plots, results

NAMED_STEPS = 10


@dataclasses.dataclass(frozen=True, eq=False)
class VariationalBits(Metric[BoundShard, BitsPerDim]):
    """The bound on -log2 p(x_0) of the images, in bits per dimension.

    Attributes:
      process: The process that the denoiser was trained on.
      denoiser: (params, labels) -> denoiser, neither limited nor guided.
      seed: Seed of the noise and of the sampled terms.
      num_steps: Steps of the chain; None: all, or as many as `spacing` lists.
      spacing: Times of these steps, as in `make_grid`.
      u_min: Smallest u, as in `make_grid`.
      num_terms: Terms per image; None: all.
      variance: A key of `VARIANCES`.
      clip: Whether each prediction of x_0 is limited to [-1, 1].
      approximate_cdf: Whether the decoder uses the tanh approximation of older codes.
    """

    process: Process
    denoiser: Callable[[Any, Array | None], Denoise]
    seed: int = 0
    num_steps: Annotated[
        int | None,
        Option(
            kinds.Int(1, 1_000_000),
            "steps of the chain, at most process.num_timesteps for ddpm; unset: all, or as many as spacing lists",
        ),
    ] = None
    spacing: Annotated[
        str | tuple[float, ...],
        Option(
            SPACING,
            "times of these steps: a rule, or times; L_T is large without the last time",
        ),
    ] = "uniform"
    u_min: Annotated[float | None, U_MIN] = None
    num_terms: Annotated[
        int | None,
        Option(
            kinds.Int(1, 1_000_000),
            "terms per image, drawn half evenly and half where they are large, L_0 included; unset: all",
        ),
    ] = None
    variance: Annotated[
        str,
        Option(
            kinds.Choice(tuple(VARIANCES)),
            "variance of the steps, beta_t, the posterior's, or the network's; unset: process.variance",
            default=None,
            inherits="process.variance",
        ),
    ] = "fixed_large"
    clip: Annotated[bool, Option(kinds.Bool(), "limit each prediction of x_0 to [-1, 1]")] = True
    approximate_cdf: Annotated[
        bool, Option(kinds.Bool(), "the decoder's tanh approximation of older codes")
    ] = False

    axes: ClassVar = (0, 1, 1, 1, 1, 1)  # For prior, terms, steps, x0_mse, eps_mse and weights.
    shard_type: ClassVar = BoundShard

    @property
    def grid(self) -> Grid:
        """The grid of the steps that the bound sums over."""
        return self._grid

    @cached_property
    def _grid(self) -> Grid:
        return make_grid(self.process, self.num_steps, self.spacing, self.u_min)

    @property
    def passes(self) -> int:
        """Network evaluations per image."""
        return self.num_terms or self.grid.num_steps

    def bound(
        self,
        params: Any,
        x0: Float[Array, " b *dims"],
        labels: Int[Array, " b"] | None,
        keys: Key[Array, " b"],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> VLB:
        """Returns the bound of some images, each with the noise of its key."""
        denoise = self.denoiser(params, labels)
        return variational_bound(
            clip_denoised(denoise) if self.clip else denoise,
            self.grid,
            x0,
            keys,
            variance=self.variance,
            decoder=partial(discretized_gaussian, approximate_cdf=self.approximate_cdf),
            num_terms=self.num_terms,
            progress=progress,
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
        keys = indexed(stream(self.seed, "bound"), indices)
        return tuple(self.bound(params, x0, labels, keys, progress=progress))

    def shard(self, indices: Int[np.ndarray, " b"], *arrays: Any) -> BoundShard:
        return bound_totals.shard(indices, VLB(*arrays), self.grid.num_steps)

    def fits(self, shard: BoundShard) -> bool:
        return len(shard.count) == self.grid.num_steps and bound_totals.can_be(shard)

    def combine(self, shards: list[BoundShard]) -> BitsPerDim:
        return bound_totals.combine(shards)

    def problem(self, result: BitsPerDim) -> str | None:
        """Returns how many terms are not finite and at which times; None if all are."""
        wrong = np.flatnonzero(result.not_finite)
        if not len(wrong):
            return None
        times = [f"{t:g}" for t in self.grid.time[wrong][::-1]]
        named = ", ".join(times[:NAMED_STEPS]) + (", …" if len(times) > NAMED_STEPS else "")
        return f"{result.not_finite.sum()} terms of the bound are not finite, at t = {named}, so the mean is not either"

    def record(self, result: BitsPerDim) -> dict[str, Any]:
        times = zip(self.grid.time, result.not_finite, strict=False)
        return {
            **_totals(result),
            "num_images": result.num_images,
            "num_steps": self.grid.num_steps,
            "nfe": self.passes,
            "not_finite": {f"{time:g}": int(n) for time, n in times if n},
        }

    def summarize(self, record: dict[str, Any]) -> str:
        total, rate, distortion, rmse = (
            "not finite"
            if record[name]["value"] is None
            else f"{record[name]['value']:.4f} ± {record[name]['stderr'] or np.nan:.4f}"
            for name in ("total", "rate", "distortion", "rmse")
        )
        terms = (
            f"{record['nfe']} of {record['num_steps']}"
            if record["num_terms"]
            else f"all {record['nfe']}"
        )
        return (
            f"{total} bits/dim = rate {rate} + distortion {distortion}; RMSE {rmse} gray levels\n"
            f"of {record['num_images']} {record['split']} images, {terms} terms each, variance {record['variance']}, "
            f"checkpoint {record['step']}"
        )

    def save(self, folder: Path, result: BitsPerDim) -> list[Path]:
        """Writes bpd.npz and the plots of terms, progress, rate and distortion."""
        time, steps = self.grid.time[:-1], np.arange(self.grid.num_steps, dtype=np.float64)
        rate, rmse = rate_distortion(result.prior.value, result.contributions, result.x0_mse)
        path = folder / "bpd.npz"
        results.write_npz(
            path,
            time=time,
            terms=result.terms,
            terms_stderr=result.terms_stderr,
            prior=np.float64(result.prior.value),
            x0_mse=result.x0_mse,
            eps_mse=result.eps_mse,
            count=result.count,
            not_finite=result.not_finite,
            rate=rate,
            rmse=rmse,
        )
        # A step without draws leaves no gap: lines continue to the next one.
        drawn = (result.count > 0) | (result.not_finite > 0)
        time, steps, terms, rate, rmse = (a[drawn] for a in (time, steps, result.terms, rate, rmse))
        bound_plots.save_terms(folder / "bpd_terms.png", time, terms, result.prior.value)
        bound_plots.save_progress(folder / "bpd_progress.png", steps, rate, rmse)
        bound_plots.save_rate_distortion(folder / "bpd_rate_distortion.png", rate, rmse)
        return [path, *sorted(folder.glob("bpd_*.png"))]


def _totals(result: BitsPerDim) -> dict[str, Any]:
    """Returns the totals as JSON holds them, null where one is not finite."""

    def number(value: float) -> float | None:
        return float(value) if np.isfinite(value) else None

    names = ("total", "rate", "prior", "distortion", "rmse")
    means = {name: getattr(result, name) for name in names}
    return {
        name: {"value": number(mean.value), "stderr": number(mean.stderr)}
        for name, mean in means.items()
    }
