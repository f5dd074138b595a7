"""The table of fields: complete, consistent, and in step with what other modules register."""

import itertools
from collections.abc import Iterable
from typing import Annotated, Any

import pytest
from slow import slow

from diffusion_jax import data, losses
from diffusion_jax.config import FIELDS, GROUPS, Field, default_config, fields, validate
from diffusion_jax.config.table import group_of
from diffusion_jax.features import FEATURES
from diffusion_jax.likelihood.divergence import PROBES
from diffusion_jax.models.guidance import RESCALED
from diffusion_jax.models.inputs import INPUTS
from diffusion_jax.models.networks import NETWORKS
from diffusion_jax.models.networks.layers import SAVEABLE
from diffusion_jax.models.networks.unet_options import REMATS
from diffusion_jax.models.preconditioning import PREDICTIONS, PredictionKind
from diffusion_jax.options import Component, Option
from diffusion_jax.options.kinds import Choice, Either, Float, Int, Kind, Text, Tuple
from diffusion_jax.processes.grid import SPACINGS
from diffusion_jax.processes.registry import PROCESSES
from diffusion_jax.processes.reverse import VARIANCES
from diffusion_jax.processes.schedules import SCHEDULES
from diffusion_jax.samplers import CONSTRAINTS, PREDICTORS, SAMPLERS
from diffusion_jax.samplers.registry import UpdateRule
from diffusion_jax.training.optimizer import DECAYS

# What each choice of the table stands for.
REGISTRIES: dict[str, Iterable[str]] = {
    "data.name": set(data.SOURCES) - {"tfds:NAME"},
    "model.name": NETWORKS,
    "model.remat": REMATS,
    "process.name": PROCESSES,
    "process.schedule": SCHEDULES,
    "process.prediction": PREDICTIONS,
    "process.inputs": INPUTS,
    "process.variance": VARIANCES,
    "loss.name": losses.LOSSES,
    "loss.times": losses.TIME_SAMPLERS,
    "loss.weighting": losses.WEIGHTINGS,
    "optimizer.decay": DECAYS,
    "sampler.name": SAMPLERS,
    "sampler.predictor": PREDICTORS,
    "sampler.clip_keeps": ("eps",),
    "sampler.guidance_rescale_of": RESCALED,
    "sampler.spacing": SPACINGS,
    "sampler.variance": VARIANCES,
    "edit.keep": CONSTRAINTS,
    "eval.features": FEATURES,
    "eval.resize": ("pytorch", "clean", "tensorflow"),
    "eval.probes": PROBES,
    "eval.split": ("test", "train"),
    "eval.spacing": SPACINGS,
    "eval.variance": VARIANCES,
}


def test_the_choices_are_what_is_registered() -> None:
    kinds = {
        name: f.kind.first if isinstance(f.kind, Either) else f.kind for name, f in FIELDS.items()
    }
    choices = {
        name: kind.names
        for name, kind in kinds.items()
        # The options of networks with named values are no components.
        if isinstance(kind, Choice) and (name in REGISTRIES or not name.startswith("model."))
    }
    assert {name: sorted(names) for name, names in choices.items()} == {
        name: sorted(names) for name, names in REGISTRIES.items()
    }
    kind = FIELDS["data.name"].kind
    assert isinstance(kind, Choice) and kind.prefixes == ("tfds",)
    assert FIELDS["model.remat"].kind.accepts(SAVEABLE)
    assert not FIELDS["model.remat"].kind.accepts((*SAVEABLE, "other"))


def test_the_default_config_is_valid_and_has_the_fields_of_the_table_alone() -> None:
    values = dict(fields(default_config()))
    assert values == {name: field.default for name, field in FIELDS.items()}
    validate(default_config())


def test_every_group_has_a_meaning_and_its_fields_stand_together() -> None:
    groups = [group_of(name) for name in FIELDS]
    assert list(dict.fromkeys(groups)) == list(GROUPS) and all(GROUPS.values())
    assert groups == sorted(groups, key=list(GROUPS).index)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_a_meaning_of_one_line_that_explains_unset(name: str) -> None:
    field = FIELDS[name]
    assert field.meaning and "\n" not in field.meaning and not field.meaning.endswith(".")
    assert ("unset: " in field.meaning) == field.optional
    assert field.problem(field.default) is None


def test_only_text_is_without_a_range_or_choices() -> None:
    """A number that may be anything is a range that somebody forgot."""
    bare = {name for name, field in FIELDS.items() if field.allowed in ("an integer", "a number")}
    assert not bare
    texts = {name for name, field in FIELDS.items() if isinstance(field.kind, Text)}
    paths = {
        "data.source_dir",
        "data.cache_dir",
        "train.checkpoint_dir",
        "train.init_from",
        "edit.mask",
    }
    paths |= {"eval.images", "eval.reference", "eval.sweep", "eval.weights"}
    paths |= {"sampler.classifier", "sampler.classifier_settings"}
    assert texts == {*paths, "data.sha256", "train.wandb_project"}


# A field of a kind that no field of the table has yet.

METRICS = Field(("fid",), Tuple(Choice(("fid", "kid"))), "metrics")


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        (METRICS, ("fid", "kid"), None),
        (
            METRICS,
            ("kidd",),
            "is ('kidd',); it must be values separated by commas, each one of fid, kid, "
            "or () for none. Did you mean 'kid'?",
        ),
        (FIELDS["sampler.spacing"], (0, 5), None),
        (METRICS, None, "is None; it must be set"),
        (Field(None, Int(1), "steps"), None, None),
        (
            Field(None, Int(1), "steps"),
            0,
            "is 0; it must be an integer of at least 1, or none",
        ),
    ],
)
def test_a_field_says_what_is_wrong_with_a_value(
    field: Field, value: Any, problem: str | None
) -> None:
    assert field.problem(value) == problem


def integers(kind: Kind) -> list[Int]:
    """Returns the kinds of integers in a kind."""
    inner = {Tuple: ("item",), Either: ("first", "second")}.get(type(kind), ())
    found = [kind] if isinstance(kind, Int) else []
    return found + [one for name in inner for one in integers(getattr(kind, name))]


@pytest.mark.parametrize("name", FIELDS)
def test_every_integer_has_a_largest_value_that_an_array_can_have(name: str) -> None:
    for kind in integers(FIELDS[name].kind):
        assert -1 <= kind.low <= kind.high <= 2**32 - 1


@pytest.mark.parametrize(
    "value",
    [2**63, 10**5000, -(2**63), 1e308, -1e308, "x" * 10**6, slow([[]] * 10**5)],
    ids=["2^63", "5000 digits", "-2^63", "1e308", "-1e308", "text", "list"],
)
def test_no_value_is_too_large_to_be_refused_in_one_short_line(value: Any) -> None:
    forms = (value, (value,), (value, value))
    for (name, field), one in itertools.product(FIELDS.items(), forms):
        if field.kind.accepts(one):
            continue  # A path, of which the system says that it is too long; 2^63 as a float.
        said = field.problem(one)
        assert said is not None and "\n" not in said and len(said) < 1200, name


def test_a_smallest_u_is_for_the_time_samplers_that_have_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert set(FIELDS["loss.u_min"].owners) == {"process.name", "loss.name"}
    monkeypatch.setitem(losses.TIME_SAMPLERS, "mine", Component(lambda: losses.uniform(), "mine"))
    assert FIELDS["loss.u_min"].owners["loss.times"] == (
        "uniform",
        "stratified",
        "importance",
        "likelihood",
    )


def small_rule(grid: Any, *, clip: Annotated[float, Option(Float(0), "limit")] = 1.0) -> Any:
    raise NotImplementedError(grid, clip)


def slow_prediction(*, beta_min: Annotated[float, Option(Float(0), "mine")] = 0.5) -> Any:
    raise NotImplementedError(beta_min)


def probing(*, num_probes: Annotated[int, Option(Int(1), "mine")] = 7) -> Any:
    raise NotImplementedError(num_probes)


@pytest.mark.parametrize(
    ("registry", "component", "name"),
    [
        (SAMPLERS, UpdateRule(small_rule, "mine"), "sampler.clip"),
        (PREDICTIONS, PredictionKind(slow_prediction, "mine"), "process.beta_min"),
        (losses.WEIGHTINGS, Component(probing, "mine"), "loss.num_probes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_option_takes_the_place_of_another_field_of_its_group(
    monkeypatch: pytest.MonkeyPatch, registry: Any, component: Any, name: str
) -> None:
    before = FIELDS[name]
    monkeypatch.setitem(registry, "mine", component)
    with pytest.raises(TypeError, match=f"the field {name} is declared twice: .*mine: "):
        FIELDS[name]
    del registry["mine"]
    assert FIELDS[name] == before
