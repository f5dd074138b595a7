"""The config of a trained run: what counts when the command names a config file too."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_run import Outcome, checkpoint_steps, digits_in, results, run, write_config

from diffusion_jax.commands.modes import MODES
from diffusion_jax.commands.run_config import describe_ignored_fields, load_config
from diffusion_jax.config import (
    FIELDS,
    default_config,
    group_of,
    is_settable,
    locate,
    to_json,
)
from diffusion_jax.errors import InputError
from diffusion_jax.runs.run import saved_checkpoint_dir

LINE = re.compile(
    r"note: --config differs from the run in (.*); the run's own values are used "
    r"\(--config.FIELD=VALUE may set sampler, sample, edit, eval, report, mesh\)"
)


def fields_in(note: str | None) -> list[str]:
    """Returns the fields that a note names; [] if there is none."""
    if note is None:
        return []
    match = LINE.fullmatch(note)
    assert match, note
    return match[1].split(", ")


# What the training's length, intervals and folders are matters to no other mode.
SILENT = {
    *(name for name in FIELDS if name.startswith("train.")),
    *("data.source_dir", "data.cache_dir"),
} - {"train.batch_size", "train.label_dropout", "train.accumulate", "train.init_from"}


@pytest.mark.parametrize("name", FIELDS)
def test_a_file_that_differs_in_a_field_is_told_of_it_unless_no_other_mode_uses_it(
    name: str,
) -> None:
    file, config = default_config(), default_config()
    group, leaf = locate(file, name)
    other = {int: 12_345, float: 0.25, str: "another", tuple: (3,), object: (3,)}
    other[bool] = not group[leaf]
    group[leaf] = other[group.get_type(leaf)]
    assert fields_in(describe_ignored_fields(file, config, [])) == (
        [] if name in SILENT else [name]
    )
    assert describe_ignored_fields(file, config, [(name, "whatever")]) is None


def test_what_a_file_leaves_to_the_data_does_not_differ_from_what_they_said() -> None:
    file, config = default_config(), default_config()
    file.model.num_classes, file.sample.labels = "auto", ("cat", 1)
    config.model.num_classes, config.sample.labels = 3, (0, 1)
    assert describe_ignored_fields(file, config, []) is None


def test_all_differing_fields_are_told_in_one_line() -> None:
    file = default_config()
    file.model.channels, file.sample.num_images, file.seed = 64, 5, 1
    note = describe_ignored_fields(file, default_config(), [])
    assert fields_in(note) == ["seed", "model.channels", "sample.num_images"]


def test_the_runs_own_values_count_but_for_what_the_command_line_sets(tmp_path: Path) -> None:
    saved = default_config()
    saved.sample.num_images, saved.sample.seed, saved.model.channels = 7, 8, 64
    (tmp_path / "config.json").write_text(to_json(saved))
    config = load_config(tmp_path, [("sample.seed", "9")], MODES["sample"])
    assert (config.sample.num_images, config.sample.seed, config.model.channels) == (7, 9, 64)


def test_every_settable_field_is_for_some_mode_and_no_mode_names_another() -> None:
    settable = {name for name in FIELDS if is_settable(name)}
    named = {name for mode in MODES.values() for name in mode.uses}
    groups = {group_of(name) for name in settable}
    assert named <= settable | groups
    used = {name for name in settable if {name, group_of(name)} & named}
    assert settable == used | {"report.every"}  # Of training alone.


@pytest.mark.parametrize(
    ("mode", "field", "others"),
    [
        ("sample", "edit.keep", "--mode=inpaint"),
        ("inpaint", "edit.times", "--mode=interpolate"),
        ("inpaint", "sample.progressive", "--mode=sample"),
        ("interpolate", "edit.mask", "--mode=inpaint"),
        ("interpolate", "sample.formats", "--mode=sample, --mode=inpaint"),
        ("evaluate", "edit.latents", "--mode=interpolate"),
    ],
)
def test_a_field_that_decides_nothing_in_a_mode_is_refused(
    mode: str, field: str, others: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(to_json(default_config()))
    value = {"edit.keep": "coarse", "edit.times": "3", "edit.mask": "m", "sample.formats": "npz"}
    message = f"config field {field} decides nothing in --mode={mode}; it is for {others}"
    with pytest.raises(InputError, match=f"^{message}$"):
        load_config(tmp_path, [(field, value.get(field, "true"))], MODES[mode])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The workdir of a run of two steps, two of whose fields the command line has set."""
    with digits_in(tmp_path_factory.mktemp("cache")):
        workdir = tmp_path_factory.mktemp("run")
        tiny = write_config(tmp_path_factory.mktemp("config"))
        fields = ("train.num_steps=2", "sampler.num_steps=2", "sample.num_images=2")
        flags = [f"--config.{field}" for field in fields]
        outcome = run(f"--config={tiny}", f"--workdir={workdir}", *flags)
        assert outcome.status == 0, outcome.err
        yield workdir


@pytest.fixture(scope="module")
def sample(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """Samples the run with these lines more in its config file."""

    def sample(lines: str | None, *flags: str) -> Outcome:
        if lines is not None:
            file = write_config(tmp_path_factory.mktemp("other"), lines)
            flags = (f"--config={file}", *flags)
        outcome = run("--mode=sample", f"--workdir={trained}", *flags)
        assert outcome.status == 0, outcome.err
        assert results(trained, "sample")["num_images"] == 2
        return outcome

    return sample


@pytest.mark.slow
def test_the_workdir_alone_continues_a_run_with_its_own_config(
    trained: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    outcome = run(f"--workdir={workdir}", "--config.train.num_steps=4")
    assert outcome.status == 0 and "resuming at step 2" in outcome.err, outcome.err
    assert checkpoint_steps(workdir)[-1] == 4
    saved, before = (
        json.loads((folder / "config.json").read_text()) for folder in (workdir, trained)
    )
    before["train"]["num_steps"] = 4
    assert saved == before
    refused = run(f"--workdir={workdir}", "--config.train.num_steps=4", "--config.model.channels=8")
    assert refused.status == 2 and "model.channels: 16 -> 8" in refused.err, refused.err


def test_a_plan_takes_the_config_of_the_run_in_the_workdir(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = []
    monkeypatch.setattr(
        "diffusion_jax.commands.plan.plan", lambda config, *_, **__: planned.append(config) or 0
    )
    assert run(f"--workdir={trained}", "--mode=plan").status == 0
    assert planned[0].sampler.num_steps == 2 and planned[0].model.name == "mlp"


def notes(outcome: Outcome) -> list[str]:
    return [line for line in outcome.err.splitlines() if line.startswith("note: ")]


def test_sampling_says_on_one_line_which_fields_of_the_file_are_passed_over(
    sample: Callable[..., Outcome],
) -> None:
    same = "config.sampler.num_steps = 2\nconfig.sample.num_images = 2"
    assert notes(sample(None)) == notes(sample(same)) == []
    other = "config.sampler.num_steps = 3\nconfig.sample.num_images = 5\nconfig.model.channels = 8"
    (note,) = notes(sample(other))
    assert fields_in(note) == ["model.channels", "sampler.num_steps", "sample.num_images"]
    (note,) = notes(sample(other, "--config.sampler.num_steps=2"))
    assert fields_in(note) == ["model.channels", "sample.num_images"]


def test_sampling_leaves_the_runs_config_as_it_was(sample: Callable[..., Outcome]) -> None:
    outcome = sample("config.sampler.num_steps = 3", "--config.sample.seed=4")
    folder = Path(outcome.err.split(" in ")[-1].splitlines()[0])
    saved = json.loads((folder.parents[1] / "config.json").read_text())
    assert (saved["sample"]["seed"], saved["sampler"]["num_steps"]) == (0, 2)


def test_a_run_that_was_trained_on_many_devices_is_used_on_those_that_are_here(
    tmp_path: Path,
) -> None:
    config = default_config()
    config.mesh.data, config.mesh.fsdp = 16, 4
    (tmp_path / "config.json").write_text(to_json(config))
    assert load_config(tmp_path, [], MODES["sample"]).mesh.to_dict() == {"data": -1, "fsdp": 1}
    asked = load_config(tmp_path, [("mesh.fsdp", "2")], MODES["sample"]).mesh
    assert asked.to_dict() == {"data": -1, "fsdp": 2}


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"3", b"[" * 10**5, b'{"a":' * 10**5, b"\xff", b'{"seed": NaN}', b'{"seed": 1e999}',
     b'{"__init__": 1}', b'{"train": {"__class__": 1}}', b'{"seed": 0, "seed": 1}', b"9" * 5000, None],
)  # fmt: skip
def test_a_damaged_config_json_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "config.json"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json: ") as error:
        load_config(tmp_path, [], MODES["sample"])
    assert "\n" not in str(error.value)
    assert saved_checkpoint_dir(tmp_path) is None
