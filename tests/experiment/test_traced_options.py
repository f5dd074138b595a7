"""Options that a compiled program takes as arguments."""

from typing import Annotated, Any

import jax
import numpy as np
import pytest

from diffusion_jax.config import default_config, override
from diffusion_jax.experiment import build, sampling
from diffusion_jax.options import Option, kinds
from diffusion_jax.processes.process import Grid
from diffusion_jax.samplers import SAMPLERS, Sampler, UpdateRule, ddim

AMOUNT = Option(kinds.Float(0), "an amount; unset: 0.25", default=None, traced=True)


def test_unset_options_keep_the_samplers_default_in_a_program_and_integers_stay_integers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, Any] = {}

    def rule(
        grid: Grid,
        *,
        amount: Annotated[Any, AMOUNT] = 0.25,
        count: Annotated[Any, Option(kinds.Int(0), "a count", traced=True)] = 3,
    ) -> Sampler:
        seen.update(amount=amount, count=count)
        return ddim(grid)

    monkeypatch.setitem(SAMPLERS, "rule", UpdateRule(rule, "a rule"))

    def drawn_with(*assignments: tuple[str, str]) -> dict[str, Any]:
        config = default_config()
        override(config, [("model.name", "mlp"), ("sampler.name", "rule"), *assignments])
        experiment = build.build(config, (2, 2, 1), 0)

        def draw(traced: sampling.TracedOptions) -> Any:
            sampling.sampler_of(experiment, traced)
            return dict(seen)

        return jax.jit(draw)(sampling.traced_options(experiment))

    unset, given = drawn_with(), drawn_with(("sampler.amount", "2"), ("sampler.count", "5"))
    assert unset == {"amount": 0.25, "count": 3} and given == {"amount": 2, "count": 5}
    dtypes = {name: value.dtype for name, value in given.items()}
    assert dtypes == {"amount": np.float32, "count": np.int32}
