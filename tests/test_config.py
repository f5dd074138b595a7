"""The config: overriding, saving, comparing; and every file in configs/."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

from diffusion_jax.build import RANGES, build, make_optimizer_of, validate
from diffusion_jax.config import (
    FREE_FIELDS,
    FREE_GROUPS,
    changes,
    config_hash,
    default_config,
    fields,
    from_dict,
    is_free,
    load_file,
    locate,
    override,
    to_json,
)
from diffusion_jax.errors import InputError
from diffusion_jax.models import count_parameters

FILES = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def get(config: ConfigDict, name: str) -> Any:
    group, leaf = locate(config, name)
    return group[leaf]


def overridden(*assignments: tuple[str, str]) -> ConfigDict:
    config = default_config()
    override(config, assignments)
    return config


# ---- overriding --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("seed", "7", 7),
        ("train.num_steps", "1e5", 100_000),
        ("train.sample_every", "0", 0),
        ("optimizer.learning_rate", "3e-4", 3e-4),
        ("optimizer.grad_clip", "2", 2.0),
        ("model.remat", "True", True),
        ("model.remat", "1", True),
        ("data.random_flip", "false", False),
        ("data.name", "tfds:my set", "tfds:my set"),
        ("data.source_dir", "/tmp/x=1,2", "/tmp/x=1,2"),
        ("model.channel_mult", "1,2,2", (1, 2, 2)),
        ("model.channel_mult", "(1, 2)", (1, 2)),
        ("model.channel_mult", "[4]", (4,)),
        ("model.attention_resolutions", "16", (16,)),
        ("model.attention_resolutions", "()", ()),
        ("sample.labels", "3,1", (3, 1)),
        ("sample.labels", "None", None),
        ("process.beta_start", "1e-4", 1e-4),
        ("process.beta_start", "none", None),
        ("data.image_size", "64", 64),
    ],
)
def test_a_value_on_the_command_line_gets_the_type_of_its_field(name, text, value):
    result = get(overridden((name, text)), name)
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("seed", "one", "int"),
        ("train.num_steps", "3.5", "int"),
        ("train.num_steps", "inf", "int"),
        ("train.num_steps", "none", "int"),
        ("data.image_size", "large", "int"),
        ("optimizer.learning_rate", "fast", "float"),
        ("process.beta_end", "1e", "float"),
        ("model.remat", "yes", "bool"),
        ("model.channel_mult", "1,two", "tuple"),
        ("model.channel_mult", "1,2.5", "tuple"),
        ("model.channel_mult", "(1,2", "tuple"),
        ("model.channel_mult", "", "tuple"),
        ("sample.labels", "cat", "tuple"),
    ],
)
def test_a_value_of_another_type_is_refused(name, text, allowed):
    with pytest.raises(InputError) as error:
        overridden((name, text))
    assert str(error.value) == f"config field {name} is {text!r}; it must be {allowed}"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("train.num_step", "Did you mean 'train.num_steps'?"),
        ("optimiser.learning_rate", "Did you mean 'optimizer.learning_rate'?"),
        ("model", "It is a group of fields."),
        ("sed", "Did you mean 'seed'?"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_name(name, hint):
    with pytest.raises(InputError) as error:
        overridden((name, "1"))
    assert str(error.value) == f"unknown config field {name!r}. {hint}"


def test_of_two_values_the_last_counts():
    config = overridden(("train.num_steps", "5"), ("train.num_steps", "6"))
    assert get(config, "train.num_steps") == 6


def test_a_field_that_a_file_has_set_can_be_unset():
    config = overridden(("data.image_size", "64"))
    override(config, [("data.image_size", "none")])
    assert get(config, "data.image_size") is None


# ---- validation --------------------------------------------------------------------------------------


def test_every_range_is_that_of_a_field_whose_default_lies_in_it():
    known = dict(fields(default_config()))
    assert set(RANGES) <= set(known)
    validate(default_config())


def test_numbers_without_a_range_are_checked_elsewhere():
    numbers = {
        name
        for name, value in fields(default_config())
        if issubclass(locate(default_config(), name)[0].get_type(name.split(".")[-1]), (int, float))
        and not isinstance(value, bool)
    }
    # make_schedule checks the betas.
    assert numbers - set(RANGES) == {"process.beta_start", "process.beta_end"}


@pytest.mark.parametrize("name", RANGES)
def test_a_number_out_of_its_range_is_refused_by_name_and_value(name):
    config = default_config()
    group, leaf = locate(config, name)
    group[leaf] = group.get_type(leaf)(-7)
    with pytest.raises(InputError, match=f"^{name} is -7.*; it must be (at least|from) "):
        validate(config)


@pytest.mark.parametrize(
    "name", ["train.batch_size", "seed", "model.name", "model.channel_mult", "model.remat"]
)
def test_a_field_that_must_have_a_value_cannot_be_none(name):
    config = default_config()
    group, leaf = locate(config, name)
    group[leaf] = None
    with pytest.raises(InputError, match=f"^{name} is None; it must be set$"):
        validate(config)


# ---- saving and comparing ----------------------------------------------------------------------------


def changed(name: str) -> ConfigDict:
    """Returns the default config with another value, of the same type, in one field."""
    config = default_config()
    group, leaf = locate(config, name)
    other = {int: 3, float: 0.25, str: "another", bool: True, tuple: (3,)}[group.get_type(leaf)]
    group[leaf] = (not group[leaf]) if isinstance(group[leaf], bool) else other
    return config


NAMES = [name for name, _ in fields(default_config())]


@pytest.mark.parametrize("name", NAMES)
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
        assert config_hash(default) != config_hash(config)


def test_what_a_resume_may_change_is_what_was_agreed():
    assert {name.split(".")[0] for name in NAMES} >= set(FREE_GROUPS)
    assert set(FREE_FIELDS) <= set(NAMES)
    free = {name for name in NAMES if is_free(name)}
    assert {"train.num_steps", "train.checkpoint_every", "train.eval_every", "mesh.data"} <= free
    assert {"sampler.name", "sampler.num_steps", "sample.seed", "eval.num_images"} <= free
    decisive = {"seed", "data.name", "data.random_flip", "model.channels", "process.schedule",
                "optimizer.ema_decay", "train.batch_size", "train.accumulate"}  # fmt: skip
    assert not decisive & free


def test_a_config_saved_before_a_field_existed_gets_its_default():
    saved = json.loads(to_json(default_config()))
    del saved["train"]["accumulate"], saved["mesh"]
    assert dict(fields(from_dict(saved))) == dict(fields(default_config()))


def test_a_saved_config_with_a_wrong_field_is_refused():
    saved = json.loads(to_json(default_config()))
    saved["train"]["num_stepps"] = 3
    with pytest.raises(InputError, match="unknown field 'train.num_stepps'.*'train.num_steps'"):
        from_dict(saved)
    del saved["train"]["num_stepps"]
    saved["train"]["num_steps"] = "many"
    with pytest.raises(InputError, match="train.num_steps is 'many'; it must be int"):
        from_dict(saved)


# ---- files -------------------------------------------------------------------------------------------


def write(tmp_path: Path, body: str) -> str:
    path = tmp_path / "config.py"
    path.write_text(f"from diffusion_jax.config import default_config\n{body}")
    return str(path)


def test_a_config_file_is_loaded(tmp_path):
    lines = "def get_config():\n    c = default_config()\n    c.seed = 5\n    return c\n"
    assert load_file(write(tmp_path, lines)).seed == 5


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("get_config = 3 +", "invalid syntax"),
        ("", "has no attribute 'get_config'"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("def get_config():\n  return {}", r"must return a ConfigDict"),
        ("def get_config():\n  c = default_config()\n  c.train.num_stepps = 1", "num_stepps"),
        ("def get_config():\n  c = default_config()\n  c.train.num_steps = 'x'", "num_steps"),
        (
            "from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({'seed': 1})",
            "lacks data.cache_dir, .*; start from default_config",
        ),
    ],
)
def test_a_wrong_config_file_is_named_with_the_reason_in_one_line(tmp_path, body, message):
    path = write(tmp_path, body)
    with pytest.raises(InputError, match=f"^--config: .*{message}") as error:
        load_file(path)
    assert path in str(error.value) and "\n" not in str(error.value)


def test_a_missing_config_file_is_named():
    with pytest.raises(InputError, match="^--config: no such file: nowhere/it.py$"):
        load_file("nowhere/it.py")


SHAPES = {
    "digits": ((8, 8, 1), 10),
    "fashion_mnist": ((28, 28, 1), 10),
    "cifar10": ((32, 32, 3), 10),
}
PARAMETERS = {"cifar10": 35_746_307, "celebahq256": 113_673_219, "lsun256": 113_673_219}


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_every_config_file_is_valid_and_its_network_can_be_built(path):
    config = load_file(str(path))
    validate(config)
    name, size = get(config, "data.name"), get(config, "data.image_size")
    shape, classes = SHAPES.get(name) or ((size, size, 3), get(config, "model.num_classes"))
    experiment = build(config, shape, classes)
    experiment.loss_fn()
    experiment.sample_fn()
    make_optimizer_of(config)
    params = jax.eval_shape(experiment.model.init, jax.random.key(0))
    if path.stem in PARAMETERS:
        assert count_parameters(params) == PARAMETERS[path.stem]


def test_an_infinite_rate_is_refused() -> None:
    config = default_config()
    config.optimizer.learning_rate = math.inf
    with pytest.raises(InputError, match="learning_rate is inf; it must be finite"):
        validate(config)
