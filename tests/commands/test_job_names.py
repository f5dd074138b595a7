"""A job is named by what decides its images, as earlier versions named it: they are found and continued."""

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import pytest

from diffusion_jax import config as config_lib
from diffusion_jax.commands import inpaint
from diffusion_jax.commands.edit_inputs import Inputs
from diffusion_jax.commands.job import job_name
from diffusion_jax.commands.modes import MODES
from diffusion_jax.config import default_config
from diffusion_jax.experiment import build, editing
from diffusion_jax.options import Option, kinds
from diffusion_jax.runs import Run
from diffusion_jax.samplers import CONSTRAINTS, Constraint
from diffusion_jax.samplers.editing import ConstraintKind

SHAPE = (8, 8, 3)
INPUTS = Inputs(np.zeros((1, *SHAPE), np.uint8), None)


def run_of(**fields: Any) -> Run:
    """Returns a run of which only the config is of interest; in names of fields, "__" is for the point."""
    config = config_lib.default_config()
    for name, value in {"model__name": "mlp", **fields}.items():
        config_lib.select(config, name.replace("__", "."), value)
    experiment = vars(build.build(config, SHAPE, 0))
    return Run(**experiment, params=None, step=7, digest="digest", training_config=config)


def edit_name(**fields: Any) -> str:
    mask = None if "edit__keep" in fields else np.ones((2, 2), bool)
    options = {"start": 0, "resamplings": 1, "jump": 10}
    return inpaint._job_name(run_of(**fields), INPUTS, mask, options)


@pytest.fixture
def rings() -> Iterator[None]:
    """A constraint with an option is registered."""

    def project_rings(
        radius: Annotated[int, Option(kinds.Int(1, 9), "pixels of a ring")] = 3,
    ) -> Constraint:
        return lambda images, given: images + radius

    def misfit(shape: tuple[int, int, int], options: Any) -> str | None:
        return f"edit.radius is {options['radius']}" if options["radius"] > shape[0] else None

    CONSTRAINTS["rings"] = ConstraintKind(project_rings, "rings", misfit=misfit)
    yield
    del CONSTRAINTS["rings"]


@pytest.mark.usefixtures("rings")
def test_an_option_of_a_new_constraint_is_passed_on_names_the_job_and_can_be_set() -> None:
    run = run_of(edit__keep="rings", edit__radius=5)
    constraint: Any = editing.make_constraint(run, None)
    assert constraint(2, 0) == 7
    with pytest.raises(ValueError, match="^edit.radius is 9$"):
        editing.make_constraint(run_of(edit__keep="rings", edit__radius=9), None)
    assert edit_name(edit__keep="rings", edit__radius=5) != edit_name(edit__keep="rings")
    assert MODES["inpaint"].decides("edit.radius") and not MODES["sample"].decides("edit.radius")


@pytest.mark.parametrize(
    ("fields", "digest"),
    [
        ({}, "eb8b60d9f2"),
        ({"edit__keep": "coarse", "edit__factor": 2}, "56aacf9ee8"),
        ({"edit__keep": "nothing"}, "ff2d8592a3"),
        ({"edit__keep": "grey"}, "d18b7025a8"),
        ({"edit__keep": "gray"}, "d18b7025a8"),
    ],
)
def test_edits_are_named_as_they_were(fields: dict[str, Any], digest: str) -> None:
    assert edit_name(**fields) == f"step00000007-ancestral-seed0-{digest}"


@pytest.mark.parametrize(
    ("sampler", "name"),
    [
        ("ancestral", "step00000007-ancestral-seed0-deaeac9d2b"),
        ("ddim", "step00000007-ddim-seed0-d2ed910337"),
        ("pc", "step00000007-pc-seed0-b0a25d9958"),
        ("predictor_corrector", "step00000007-pc-seed0-b0a25d9958"),
    ],
)
def test_samples_are_named_as_they_were_by_either_name_of_the_sampler(
    sampler: str, name: str
) -> None:
    assert job_name(run_of(sampler__name=sampler)) == name


def test_samples_of_other_averages_have_other_names_and_those_of_the_old_choices_have_the_old() -> (
    None
):
    names = [
        job_name(run_of(**fields))
        for fields in (
            {"sample__ema": True},
            {"sample__ema": False},
            {"sample__ema": 0.5},
            {"sample__ema": 0.999},
            {"sample__ema_length": 0.1},
            {"sample__ema_length": 0.05},
        )
    ]
    assert names[0] == "step00000007-ancestral-seed0-deaeac9d2b"
    assert names[1] == "step00000007-ancestral-seed0-cb190d9f99"
    assert len(set(names)) == len(names)
    main = default_config().optimizer.ema_decay
    assert job_name(run_of(sample__ema=main)) == names[0]
