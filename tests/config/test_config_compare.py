"""Saving and comparing configs: what survives JSON, what a resume may change, what names a result."""

import json
from typing import Any

import pytest
from ml_collections import ConfigDict

from diffusion_jax.config import (
    FIELDS,
    changes,
    config_hash,
    default_config,
    differing,
    fields,
    from_dict,
    is_free,
    is_settable,
    locate,
    settable_groups,
    to_json,
)
from diffusion_jax.config.compare import ALWAYS_HASHED

# Written here once more: neither alters the trained parameters beyond float rounding.
SETTABLE_GROUPS = {"sampler", "sample", "edit", "eval", "mesh", "report"}
SETTABLE_GROUPS = {"sampler", "sample", "edit", "eval", "report", "mesh"}
RESUMABLE = {
    "data.source_dir",
    "data.cache_dir",
    "model.remat",
    "process.variance",
    "optimizer.ema_snapshot_every",
    "train.num_steps",
    "train.steps_per_dispatch",
    "train.step_timeout",
    "train.log_every",
    "train.checkpoint_every",
    "train.sample_every",
    "train.eval_every",
    "train.bpd_every",
    "train.metrics_every",
    "train.checkpoint_dir",
    "train.keep_last",
    "train.keep_every",
    "train.profile",
    "train.sample_images",
    "train.sample_steps",
    "train.loggers",
    "train.wandb_project",
}


def get(config: ConfigDict, name: str) -> Any:
    group, leaf = locate(config, name)
    return group[leaf]


def changed(name: str) -> ConfigDict:
    """Returns the default config with another value, of the same type, in one field."""
    config = default_config()
    group, leaf = locate(config, name)
    others = {int: (3, 4), float: (0.25, 0.75), str: ("another",), bool: (False, True)}
    others |= {tuple: ((3,),), object: ((3,),)}
    group[leaf] = next(value for value in others[group.get_type(leaf)] if value != group[leaf])
    return config


def choice_for(name: str) -> tuple[str, str] | None:
    """Returns the choice that an option needs where the default config has another, from its declaration."""
    for chooser, components in FIELDS[name].owners.items():
        if get(default_config(), chooser) not in components:
            return chooser, components[0]
    return None


# Options that count only where their component is chosen, and the choice that does so.
CHOSEN = {
    name: choice
    for name in FIELDS
    if not is_free(name) and name not in ALWAYS_HASHED and (choice := choice_for(name))
}


@pytest.mark.parametrize("name", FIELDS)
def test_each_field_survives_json_and_counts_unless_it_is_free(name):
    config, default = changed(name), default_config()
    saved = from_dict(json.loads(to_json(config)))
    assert dict(fields(saved)) == dict(fields(config))
    assert [type(v) for _, v in fields(saved)] == [type(v) for _, v in fields(config)]
    assert changes(saved, config) == [] and config_hash(saved) == config_hash(config)
    if is_free(name):
        assert changes(default, config) == []
        assert config_hash(default) == config_hash(config)
    else:
        assert changes(default, config) == [
            f"{name}: {get(default, name)!r} -> {get(config, name)!r}"
        ]
        assert (config_hash(default) == config_hash(config)) == (name in CHOSEN)


@pytest.mark.parametrize("name", CHOSEN)
def test_an_option_names_a_result_where_its_component_is_chosen(name: str) -> None:
    config, default = changed(name), default_config()
    chooser, choice = CHOSEN[name]
    for one in (config, default):
        group, leaf = locate(one, chooser)
        group[leaf] = choice
    assert config_hash(default) != config_hash(config)


def test_results_of_earlier_versions_keep_their_names() -> None:
    """Hashes as version 0.1.0 computed them; a new field must not change them."""
    config = default_config()
    assert config_hash(config) == "b07e840e1fad"
    config.optimizer.decay, config.process.variance, config.loss.name = (
        "cosine",
        "learned",
        "hybrid",
    )
    assert config_hash(config) == "66fc6e5a60e5"


def test_what_a_resume_may_change_is_what_was_agreed() -> None:
    settable = {name for name in FIELDS if name.split(".")[0] in SETTABLE_GROUPS}
    assert {name for name in FIELDS if is_settable(name)} == settable
    assert {name for name in FIELDS if is_free(name)} == settable | RESUMABLE


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_length_of_a_training_counts_only_if_the_learning_rate_decays(decay: str) -> None:
    def trained(decay: str, num_steps: int) -> ConfigDict:
        config = default_config()
        config.optimizer.decay, config.train.num_steps = decay, num_steps
        return config

    short, long = trained(decay, 10), trained(decay, 20)
    (change,) = changes(short, long)
    assert change.startswith("train.num_steps: 10 -> 20 (") and "learning rate" in change
    assert config_hash(short) != config_hash(long)
    assert changes(trained("constant", 10), trained("constant", 20)) == []
    # Whichever of the two decays: the steps that were done, or those to come, would be others.
    for one, other in ((trained("constant", 10), long), (short, trained("constant", 20))):
        assert [line.partition(":")[0] for line in changes(one, other)] == [
            "optimizer.decay",
            "train.num_steps",
        ]


def test_what_every_mode_may_set_is_said_by_groups() -> None:
    assert settable_groups() == ["sampler", "sample", "edit", "eval", "report", "mesh"]


def test_differing_names_the_fields_that_differ_in_the_order_of_the_table() -> None:
    config = default_config()
    assert differing(config, default_config()) == []
    config.sample.labels, config.seed, config.train.num_steps = (3,), 1, 7
    expected = ["seed", "train.num_steps", "sample.labels"]
    assert differing(config, default_config()) == expected
    assert differing(default_config(), config) == expected


@pytest.mark.parametrize(
    ("loss", "before", "after", "counts"),
    [
        ("simple", "fixed_large", "fixed_small", False),
        ("simple", "fixed_large", "learned", True),  # Other parameters.
        ("sliced", "fixed_large", "fixed_small", False),
        ("vlb", "fixed_large", "fixed_small", True),  # Another loss.
    ],
)
def test_the_variance_counts_where_the_parameters_depend_on_it(loss, before, after, counts):
    saved, current = default_config(), default_config()
    for config, variance in ((saved, before), (current, after)):
        config.loss.name, config.process.variance = loss, variance
    assert bool(changes(saved, current)) == counts
    assert (config_hash(saved) != config_hash(current)) == counts
