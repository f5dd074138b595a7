"""The search for what makes a training fit: which changes, in which order, until which."""

from typing import Any

import pytest

from diffusion_jax.planning import fit
from diffusion_jax.planning.program import Compiled, DoesNotFit


def compiled(total: int) -> Compiled:
    return Compiled({}, 0, {"parameters": 0}, 0, total, 0, 0, 0, 0.0, 0.0, {}, {}, 0, 0.0)


NOW = {"train.accumulate": 1, "model.remat": "none", "mesh.fsdp": 1}


def memory_model(changes: fit.Changes) -> Compiled:
    """A made-up machine: a state of 100 that fsdp divides, activations of 100 that the others make smaller."""
    fields = NOW | changes
    kept = {"none": 1.0, ("conv", "attention"): 0.6, "blocks": 0.3}[fields["model.remat"]]
    return compiled(int(100 / fields["mesh.fsdp"] + 100 * kept / fields["train.accumulate"]))


def candidates(num_devices: int = 4, **fields: Any) -> list[fit.Changes]:
    """Returns those of a U-Net with eight images a device, of which nothing is changed yet."""
    now = {"batch_size": 32, "accumulate": 1, "remat": "none", "data": -1, "fsdp": 1}
    return fit.candidates(num_devices, **{**now, **fields})


MICRO = [{"train.accumulate": count} for count in (2, 4, 8)]
REMAT = [{"model.remat": ("conv", "attention")}, {"model.remat": "blocks"}]
DIVIDED = [{"mesh.fsdp": 2}, {"mesh.fsdp": 4}]


def test_changes_are_tried_from_the_cheapest_and_then_together():
    least = {"model.remat": "blocks"}
    assert candidates() == [
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
    tried = list(fit.search(memory_model, memory, candidates()))
    assert tried[-1].changes == last and tried[-1].fits
    assert len(tried) == number and not any(attempt.fits for attempt in tried[:-1])


def test_nothing_fits_if_nothing_does():
    tried = list(fit.search(memory_model, 10, candidates()))
    assert len(tried) == 11 and not any(attempt.fits for attempt in tried)


def test_a_program_that_the_compiler_refuses_is_an_attempt_that_does_not_fit():
    def refuse(changes: fit.Changes) -> Compiled:
        if (NOW | changes)["train.accumulate"] < 4:
            raise DoesNotFit(30, 16)
        return compiled(7)

    assert fit.attempt(refuse, None) == fit.Attempt({}, None, 30, False)
    tried = list(fit.search(refuse, None, candidates()))
    assert [attempt.fits for attempt in tried] == [False, True]


def test_only_what_is_left_to_change_is_tried():
    rows = 3  # Which no micro-batches divide.
    left = candidates(batch_size=4 * rows, remat="blocks", data=2, fsdp=2)
    assert left == [{"mesh.fsdp": 4, "mesh.data": 1}]
    # A row a device; eight do not divide twelve.
    assert candidates(12, batch_size=12, remat="blocks", data=2, fsdp=4) == []


def test_changes_are_written_as_flags():
    changes = {"model.remat": ("conv", "attention"), "mesh.fsdp": 2}
    assert fit.flags(changes) == "--config.model.remat=conv,attention --config.mesh.fsdp=2"
