"""The search for what makes a training fit: which changes, in which order, until which."""

import pytest
from ml_collections import ConfigDict

from diffusion_jax.config import default_config
from diffusion_jax.planning import fit
from diffusion_jax.planning.program import Compiled, DoesNotFit


def compiled(total: int) -> Compiled:
    return Compiled({}, {"parameters": 0}, 0, total, 0, 0, 0, 0.0, 0.0, {}, {}, 0, 0.0)


def memory_model(config: ConfigDict) -> Compiled:
    """A made-up machine: a state of 100 that fsdp divides, activations of 100 that the others make smaller."""
    kept = {"none": 1.0, ("conv", "attention"): 0.6, "blocks": 0.3}[config.model.remat]
    return compiled(int(100 / config.mesh.fsdp + 100 * kept / config.train.accumulate))


def unet(rows: int = 8) -> ConfigDict:
    config = default_config()
    config.train.batch_size = 4 * rows
    return config


MICRO = [{"train.accumulate": count} for count in (2, 4, 8)]
REMAT = [{"model.remat": ("conv", "attention")}, {"model.remat": "blocks"}]
DIVIDED = [{"mesh.fsdp": 2}, {"mesh.fsdp": 4}]


def test_changes_are_tried_from_the_cheapest_and_then_together():
    least = {"model.remat": "blocks"}
    assert fit.candidates(unet(), 4) == [
        *MICRO,
        *REMAT,
        *DIVIDED,
        *[{**least, **divided} for divided in DIVIDED],
        {"train.accumulate": 8, **least},
        {"train.accumulate": 8, **least, "mesh.fsdp": 4},
    ]


@pytest.mark.parametrize(
    "memory, last, number",
    [
        (155, MICRO[0], 1),
        (120, MICRO[2], 3),
        (100, {"model.remat": "blocks", "mesh.fsdp": 2}, 8),
        (30, {"train.accumulate": 8, "model.remat": "blocks", "mesh.fsdp": 4}, 11),
    ],
)
def test_the_search_ends_at_the_first_change_that_fits(memory: int, last: fit.Changes, number: int):
    tried = list(fit.search(memory_model, unet(), memory, 4))
    assert tried[-1].changes == last and tried[-1].fits
    assert len(tried) == number and not any(attempt.fits for attempt in tried[:-1])


def test_nothing_fits_if_nothing_does():
    tried = list(fit.search(memory_model, unet(), 10, 4))
    assert len(tried) == 11 and not any(attempt.fits for attempt in tried)


def test_a_program_that_the_compiler_refuses_is_an_attempt_that_does_not_fit():
    def refuse(config: ConfigDict) -> Compiled:
        if config.train.accumulate < 4:
            raise DoesNotFit(30, 16)
        return compiled(7)

    config = unet()
    assert fit.attempt(refuse, config, None) == fit.Attempt({}, None, 30, False)
    tried = list(fit.search(refuse, config, None, 4))
    assert [attempt.fits for attempt in tried] == [False, True]
    assert config.train.accumulate == 1  # The config itself is left as it was.


def test_only_what_is_left_to_change_is_tried():
    config = unet(rows=3)  # Which no micro-batches divide.
    config.model.remat = "blocks"
    config.mesh.data, config.mesh.fsdp = 2, 2
    assert fit.candidates(config, 4) == [{"mesh.fsdp": 4, "mesh.data": 1}]
    config.model.name, config.model.remat, config.mesh.fsdp = "mlp", "none", 4
    assert fit.candidates(config, 12) == []  # A row a device; eight do not divide twelve.


def test_changes_are_written_as_flags():
    changes = {"model.remat": ("conv", "attention"), "mesh.fsdp": 2}
    assert fit.flags(changes) == "--config.model.remat=conv,attention --config.mesh.fsdp=2"
