"""From a config to objects: what is built is what the config says."""

import warnings

import pytest

from diffusion_jax import build
from diffusion_jax.config import default_config, override
from diffusion_jax.processes.process import Grid
from diffusion_jax.samplers import SAMPLERS, Sampler, ancestral


def experiment(*assignments: tuple[str, str]) -> build.Experiment:
    """Returns what the defaults on a small network stand for, with these fields as on the command line."""
    config = default_config()
    override(config, [("model.name", "mlp"), ("model.channels", "8"), *assignments])
    build.validate(config)
    return build.build(config, (2, 2, 1), 0)


# ---- a warning ---------------------------------------------------------------------------------------

FEW = ("sampler.num_steps", "10")


def test_few_steps_with_the_variance_of_many_are_warned_of() -> None:
    # With the betas 1e-4 + 0.0199 t / 999, 1 - alpha_bar is 1e-4 at t = 0 and 0.12639 at t = 111, the next of ten.
    message = "in 10 of 1000 steps the variance fixed_large is up to 1,264 times the posterior's; set --config"
    with pytest.warns(UserWarning, match=message) as caught:
        experiment(FEW, ("process.variance", "fixed_large")).sampler()
    with pytest.warns(UserWarning, match=message):
        experiment(
            FEW, ("process.variance", "fixed_small"), ("sampler.variance", "fixed_large")
        ).sampler()
    assert len(caught) == 1


@pytest.mark.parametrize(
    "assignments",
    [
        (),
        (("sampler.num_steps", "1000"),),
        (("sampler.num_steps", "1"),),  # It adds no noise.
        (FEW, ("sampler.variance", "fixed_small")),
        (FEW, ("process.variance", "fixed_small")),
    ],
)
def test_other_steps_and_variances_are_not_warned_of(assignments: tuple) -> None:
    with warnings.catch_warnings(action="error"):
        experiment(*assignments).sampler()


def test_a_sampler_that_takes_no_variance_is_not_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def quiet(grid: Grid) -> Sampler:
        return ancestral(grid)

    monkeypatch.setitem(SAMPLERS, "ancestral", quiet)
    with warnings.catch_warnings(action="error"):
        assert experiment(FEW).sampler().nfe == 10
