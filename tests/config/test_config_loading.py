"""Configs from a file, from the command line and from JSON."""

import json
from pathlib import Path
from typing import Annotated, Any

import pytest
from ml_collections import ConfigDict

from diffusion_jax.config import (
    FIELDS,
    check_used,
    default_config,
    fields,
    from_dict,
    load_file,
    locate,
    options_of,
    override,
    to_json,
    validate,
)
from diffusion_jax.config.reference import help_text
from diffusion_jax.errors import InputError
from diffusion_jax.lifecycle.stopping import Stopped
from diffusion_jax.options import Option
from diffusion_jax.options.kinds import Int
from diffusion_jax.processes.process import Grid
from diffusion_jax.samplers import SAMPLERS, Sampler, UpdateRule


def get(config: ConfigDict, name: str) -> Any:
    group, leaf = locate(config, name)
    return group[leaf]


SEVERAL = "values separated by commas, each an integer from"


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
        ("data.random_flip", "True", True),
        ("data.random_flip", "1", True),
        ("data.random_flip", "false", False),
        ("model.remat", "blocks", "blocks"),
        ("model.remat", "attention", ("attention",)),
        ("data.name", "tfds:my set", "tfds:my set"),
        ("data.source_dir", "/tmp/x=1,2", "/tmp/x=1,2"),
        ("model.channel_mult", "1,2,2", (1, 2, 2)),
        ("model.channel_mult", "(1, 2)", (1, 2)),
        ("model.channel_mult", "[4]", (4,)),
        ("model.attention_resolutions", "16", (16,)),
        ("model.attention_resolutions", "()", ()),
        ("sample.labels", "3,1", (3, 1)),
        ("sample.labels", "cat, 1,sea lion,-1", ("cat", 1, "sea lion", "-1")),
        ("model.num_classes", "auto", "auto"),
        ("model.num_classes", "10", 10),
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
        ("seed", "one", "an integer from 0 to 4294967295"),
        ("train.num_steps", "3.5", "an integer from 1 to 2147483647"),
        ("train.num_steps", "inf", "an integer from 1 to 2147483647"),
        ("train.num_steps", "none", "an integer from 1 to 2147483647"),
        ("data.image_size", "large", "an integer from 1 to 16384, or none"),
        ("optimizer.learning_rate", "fast", "a finite number of at least 0"),
        ("process.beta_end", "1e", "a number in (0, 1), or none"),
        ("data.random_flip", "yes", "true or false"),
        (
            "model.remat",
            "true",
            "one of none, blocks; or values separated by commas, each one of conv, attention",
        ),
        ("model.channel_mult", "1,two", f"at most 14 {SEVERAL} 1 to 1024"),
        ("model.channel_mult", "1,2.5", f"at most 14 {SEVERAL} 1 to 1024"),
        ("model.channel_mult", "(1,2", f"at most 14 {SEVERAL} 1 to 1024"),
        ("model.channel_mult", "", f"at most 14 {SEVERAL} 1 to 1024"),
        ("sample.labels", "3,,1", f"{SEVERAL} 0 to 1000000; or a class's name, or none"),
        ("model.num_classes", "all", "an integer from 0 to 1000000; or auto"),
    ],
)
def test_a_value_of_another_type_is_refused(name, text, allowed):
    with pytest.raises(InputError) as error:
        overridden((name, text))
    assert str(error.value) == f"{name} is {text!r}; it must be {allowed}"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("train.num_step", "Did you mean 'train.num_steps'?"),
        ("optimizer.lerning_rate", "Did you mean 'optimizer.learning_rate'?"),
        ("model", "It is a group of fields."),
        ("sed", "Did you mean 'seed'?"),
        ("eval.step", "It is now 'sample.step', for all modes."),
        ("eval.ema", "It is now 'sample.ema', for all modes."),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_name(name, hint):
    with pytest.raises(InputError) as error:
        overridden((name, "1"))
    assert str(error.value) == f"unknown config field {name!r}. {hint}"


def test_every_field_reads_its_own_default_from_text() -> None:
    for name, field in FIELDS.items():
        value = field.default
        text = ",".join(map(str, value)) or "()" if isinstance(value, tuple) else str(value)
        assert get(overridden((name, text)), name) == value


def test_of_two_values_the_last_counts():
    config = overridden(("train.num_steps", "5"), ("train.num_steps", "6"))
    assert get(config, "train.num_steps") == 6


def test_a_field_that_a_file_has_set_can_be_unset():
    config = overridden(("data.image_size", "64"))
    override(config, [("data.image_size", "none")])
    assert get(config, "data.image_size") is None


# ---- files -------------------------------------------------------------------------------------------


def write(tmp_path: Path, body: str) -> str:
    path = tmp_path / "config.py"
    path.write_text(f"from diffusion_jax.config import default_config\n{body}")
    return str(path)


def test_a_config_file_is_loaded(tmp_path):
    lines = "def get_config():\n    c = default_config()\n    c.seed = 5\n    return c\n"
    assert load_file(write(tmp_path, lines)).seed == 5


def test_a_list_in_a_config_file_becomes_a_tuple(tmp_path):
    lines = "def get_config():\n    c = default_config()\n    c.model.channel_mult = [1, 2]\n"
    lines += "    c.sample.labels = [3]\n    return c\n"
    config = load_file(write(tmp_path, lines))
    assert (config.model.channel_mult, config.sample.labels) == ((1, 2), (3,))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("get_config = 3 +", "invalid syntax"),
        ("", "has no attribute 'get_config'"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("def get_config():\n  return {}", r"must return a ConfigDict"),
        (
            "def get_config():\n  c = default_config()\n  c.train.num_stepps = 1",
            "unknown field 'num_stepps'. Did you mean 'num_steps'.$",
        ),
        (
            "def get_config():\n  c = default_config()\n  c.eval.ema = False",
            "unknown field 'ema'. Did you mean 'sample.ema'.$",
        ),
        ("def get_config():\n  c = default_config()\n  c.train.num_steps = 'x'", "num_steps"),
        (
            "from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({'seed': 1})",
            "lacks data.cache_dir, .*; start from default_config",
        ),
        (
            "def get_config():\n  c = default_config()\n  c.train.unlock().more = 1\n  return c",
            "unknown field 'train.more'",
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


# ---- JSON --------------------------------------------------------------------------------------------


def test_a_config_saved_before_a_field_existed_gets_its_default():
    saved = json.loads(to_json(default_config()))
    del saved["train"]["accumulate"], saved["mesh"]
    assert dict(fields(from_dict(saved))) == dict(fields(default_config()))


@pytest.mark.parametrize(("saved", "now"), [(True, "blocks"), (False, "none")])
def test_a_config_saved_when_recomputing_was_a_flag_is_read(saved, now):
    config = default_config().to_dict()
    config["model"]["remat"] = saved
    assert from_dict(config).model.remat == now


def test_a_saved_config_may_have_fields_that_are_gone() -> None:
    saved = json.loads(to_json(default_config()))
    saved["eval"] |= {"ema": False, "step": 5}
    assert dict(fields(from_dict(saved))) == dict(fields(default_config()))


def test_a_saved_config_with_a_wrong_field_is_refused():
    saved = json.loads(to_json(default_config()))
    saved["train"]["num_stepps"] = 3
    with pytest.raises(InputError, match="unknown field 'train.num_stepps'.*'train.num_steps'"):
        from_dict(saved)
    del saved["train"]["num_stepps"]
    saved["train"]["num_steps"] = "many"
    with pytest.raises(InputError, match="train.num_steps is 'many'; it must be an integer from 1"):
        from_dict(saved)
    saved["train"]["num_steps"] = 3
    saved["optimizer"]["learning_rate"] = 10**400
    with pytest.raises(
        InputError, match="learning_rate is 10* ... .401 characters.; it must be a finite number"
    ):
        from_dict(saved)


# ---- hostile and damaged content -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "saved",
    [
        {"__init__": 1},
        {"__class__": {"a": 1}},
        {"_fields": {}},
        {"train": {"__class__": 3}},
        {"train": {"lock": 1}},
        {"train": {"num_steps": {"a": 1}}},
        {"model": {"remat": {"__class__": 1}}},
        {"train.num_steps": 5},
        {"train": 5},
        {"seed": {"seed": 1}},
        {"": 1},
        {"": {"seed": 1}},
        {"optimizer": {"learning_rate": 10**400}},
        {"train": {"num_steps": "x" * 100_000}},
    ],
    ids=lambda saved: str(saved)[:40],
)
def test_no_saved_key_or_value_is_more_than_a_field(saved):
    with pytest.raises(InputError) as error:
        from_dict(saved)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


BAD_FILES = {
    "import sys\nsys.exit(0)": "it calls sys.exit",
    "def get_config():\n  raise SystemExit": "it calls sys.exit",
    "def get_config():\n  raise GeneratorExit": "GeneratorExit",
    "class Own(BaseException): pass\nraise Own('one\\ntwo')": "one two",
    "def get_config():\n  return get_config()": "recursion",
    "(" * 500: "nested parentheses",
    "\0": "null bytes",
    """from diffusion_jax.config import default_config
def get_config():
    config = default_config().unlock()
    config.train.more = config
    return config""": "holds itself",
    """from diffusion_jax.config import default_config
def get_config():
    config = default_config()
    config.optimizer.learning_rate = 10**400
    return config""": "too large",
}


@pytest.mark.parametrize("text", BAD_FILES, ids=lambda text: text[-30:])
def test_whatever_a_config_file_raises_is_one_line(tmp_path, text):
    (tmp_path / "config.py").write_text(text)
    with pytest.raises(InputError, match=BAD_FILES[text]) as error:
        load_file(str(tmp_path / "config.py"))
    assert str(error.value).startswith("--config: ") and "\n" not in str(error.value)


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize("stop", [KeyboardInterrupt, Stopped])
def test_a_user_who_stops_the_command_while_a_config_is_read_is_heeded(tmp_path, monkeypatch, stop):
    (tmp_path / "config.py").write_text("import builtins\nraise builtins.stop")
    monkeypatch.setattr("builtins.stop", stop("SIGINT"), raising=False)
    with pytest.raises(stop):
        load_file(str(tmp_path / "config.py"))


def test_choosing_a_component_drops_the_options_of_the_one_before() -> None:
    config = default_config()
    config.sampler.name, config.sampler.churn = "heun", 9.0
    override(config, [("sampler.eta", "0.5"), ("sampler.name", "ddim")])
    assert (config.sampler.name, config.sampler.churn, config.sampler.eta) == ("ddim", 0.0, 0.5)
    override(config, [("sampler.name", "pc")])
    assert (config.sampler.eta, config.sampler.snr) == (0.0, 0.16)


@pytest.mark.parametrize(
    ("before", "chosen", "dropped"),
    [
        (
            [("loss.weighting", "min_snr"), ("loss.min_snr_gamma", "3")],
            ("loss.name", "vlb"),
            ["loss.weighting", "loss.min_snr_gamma"],
        ),
        ([("edit.keep", "coarse"), ("edit.factor", "8")], ("edit.keep", "mask"), ["edit.factor"]),
    ],
    ids=["options of an option", "a chooser without a word of its own"],
)
def test_choosing_a_component_drops_all_that_depends_on_the_one_before(
    before: list[tuple[str, str]], chosen: tuple[str, str], dropped: list[str]
) -> None:
    config = overridden(*before)
    override(config, [chosen])
    check_used(config)
    assert all(get(config, name) == FIELDS[name].default for name in dropped)


def test_an_option_that_was_asked_for_stays_and_is_refused_whatever_the_order() -> None:
    config = default_config()
    override(config, [("sampler.churn", "9"), ("sampler.name", "ddim")])
    message = "sampler.churn is 9.0, but the sampler 'ddim' has none; .* [(]it is for heun[)]"
    with pytest.raises(InputError, match=message):
        check_used(config)


def mine(grid: Grid, *, twist: Annotated[int, Option(Int(0, 7), "my own")] = 2) -> Sampler:
    raise NotImplementedError(grid, twist)


def test_a_config_from_before_a_registration_is_refused_with_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = default_config()
    monkeypatch.setitem(SAMPLERS, "mine", UpdateRule(mine, "my own rule"))
    with pytest.raises(InputError, match="the config lacks sampler.twist: .* register first"):
        validate(config)


def test_a_component_that_is_registered_later_is_a_choice_with_its_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(SAMPLERS, "mine", UpdateRule(mine, "my own rule"))
    config = default_config()
    override(config, [("sampler.name", "mine"), ("sampler.twist", "7")])
    validate(config)
    check_used(config)
    assert options_of(config, "sampler")["twist"] == 7 and "mine: my own" in help_text("sampler")
