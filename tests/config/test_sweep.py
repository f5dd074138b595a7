"""Sweeps as they are written on the command line."""

import pytest

from diffusion_jax.config.sweep import label, points_of
from diffusion_jax.errors import InputError


def test_all_combinations_are_points_and_the_last_field_runs_fastest() -> None:
    found = points_of(" sampler.guidance_scale=1, 1.5;sampler.num_steps=10,20 ; ")
    assert [tuple(point.values()) for point in found] == [
        *(("1", "10"), ("1", "20"), ("1.5", "10"), ("1.5", "20"))
    ]
    assert list(found[0]) == ["sampler.guidance_scale", "sampler.num_steps"]


def test_values_with_commas_are_separated_by_bars() -> None:
    found = points_of("sampler.spacing=uniform|0,5,9; sample.ema_length=none,0.1")
    assert [tuple(point.values()) for point in found] == [
        *(("uniform", "none"), ("uniform", "0.1"), ("0,5,9", "none"), ("0,5,9", "0.1"))
    ]


def test_a_point_is_named_by_its_fields_without_their_groups() -> None:
    (point,) = points_of("sampler.num_steps=10; sample.ema=false")
    assert label(point, set(point)) == "num_steps=10, ema=false"
    assert label(point, {"sample.ema"}) == "ema=false"


HUNDRED = ",".join(map(str, range(1, 101)))


@pytest.mark.parametrize(
    "spec, message",
    [
        ("", "no FIELD=VALUE"),
        ("sampler.num_step=3", "unknown config field 'sampler.num_step'. Did you mean"),
        ("train.num_steps=3", "train.num_steps is no field to sweep"),
        ("eval.seed=1,2", "eval.seed is no field to sweep"),
        ("sampler.num_steps", "must be FIELD=VALUE"),
        ("sampler.num_steps=10,,20", "must be FIELD=VALUE"),
        ("sampler.num_steps=10,ten", "sampler.num_steps is 'ten'; it must be an integer"),
        ("sampler.num_steps=0", "sampler.num_steps is 0; it must be an integer from 1"),
        ("sampler.num_steps=none", None),
        ("sampler.name=ddim,dddim", "Did you mean 'ddim'?"),
        ("sampler.num_steps=10,10", "has a value twice"),
        ("sampler.num_steps=10; sampler.num_steps=20", "is there twice"),
        (f"sample.seed={HUNDRED},101; sampler.num_steps={HUNDRED}", "10100 points"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(spec: str, message: str | None) -> None:
    if message is None:
        assert points_of(spec)
        return
    with pytest.raises(InputError) as raised:
        points_of(spec)
    assert message in str(raised.value) and str(raised.value).startswith("eval.sweep: ")
