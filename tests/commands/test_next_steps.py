"""What a command that has done its job says of the next one."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
from tiny_run import run

from diffusion_jax.commands import command_line
from diffusion_jax.commands.help_page import COMMAND
from diffusion_jax.commands.modes import MODES, Mode
from diffusion_jax.commands.next_steps import next_steps
from diffusion_jax.config import FIELDS
from diffusion_jax.lifecycle import stopping

sys.path.append(str(Path(__file__).parents[1] / "report"))
from run_folders import write_training


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A run that is planned too, in a folder whose name the shell would take apart."""
    folder = write_training(tmp_path / "my run")
    (folder / "results").mkdir(exist_ok=True)
    (folder / "results" / "plan.json").write_text(json.dumps({"flags": ""}))
    return folder


def commands(lines: list[str]) -> list[list[str]]:
    """Returns the arguments of the commands of such lines, as a shell splits them."""
    found = [line.partition(f": {COMMAND} ") for line in lines]
    assert all(what.startswith("next, ") and colon for what, colon, _ in found)
    return [shlex.split(arguments) for _, _, arguments in found]


# What follows an export is in its model card.
@pytest.mark.parametrize("mode", [name for name in MODES if name != "export"])
def test_the_proposed_commands_are_taken_with_the_workdir_filled_in(
    mode: str, workdir: Path
) -> None:
    proposed = commands(next_steps(MODES[mode], workdir, "configs/digits.py", []))
    assert proposed
    for arguments in proposed:
        flags, assignments = command_line.parse(arguments)
        assert Path(flags.workdir) == workdir and flags.mode in MODES
        for name, value in assignments:
            assert value in ("NUMBER", "FOLDER") or FIELDS[name].kind.parse(value)
            assert MODES[flags.mode].decides(name)


def test_a_measurement_is_proposed_with_the_fields_that_the_images_were_drawn_with(
    workdir: Path,
) -> None:
    fields = [("sampler.num_steps", "20"), ("sample.num_images", "500"), ("sample.seed", "3")]
    measured, page = commands(next_steps(MODES["sample"], workdir, None, fields))
    assert "--config.sampler.num_steps=20" in measured and "--config.sample.seed=3" in measured
    assert not any("num_images" in word for word in measured)
    assert page[:2] == ["--mode=report", f"--workdir={workdir}"]  # It draws, too.
    assert page[2:] == ["--config.sampler.num_steps=20", "--config.sample.seed=3"]


def test_what_trained_a_run_need_not_be_said_again_but_what_was_planned_must(workdir: Path) -> None:
    fields, file = [("train.num_steps", "9"), ("sampler.num_steps", "5")], "configs/digits.py"
    trained = commands(next_steps(MODES["train"], workdir, file, fields))
    assert trained[0] == ["--mode=sample", f"--workdir={workdir}"]
    (planned,) = commands(next_steps(MODES["plan"], workdir, file, fields))
    assigned = [f"--config.{name}={value}" for name, value in fields]
    assert planned == [f"--config={file}", f"--workdir={workdir}", *assigned]


@pytest.mark.parametrize("flags", ["--config.train.accumulate=2", None])
def test_a_training_is_proposed_as_it_fits_or_not_at_all(flags: str | None, workdir: Path) -> None:
    (workdir / "results" / "plan.json").write_text(json.dumps({"flags": flags}))
    proposed = commands(next_steps(MODES["plan"], workdir, "x.py", []))
    assert proposed == ([["--config=x.py", f"--workdir={workdir}", flags]] if flags else [])


def test_images_measured_without_a_run_have_no_page_of_one(tmp_path: Path) -> None:
    assert next_steps(MODES["evaluate"], tmp_path, None, [("eval.images", "x.npz")]) == []


@pytest.mark.parametrize("outcome", ["done", "stopped", "failed"])
def test_only_a_command_that_is_done_says_what_is_next(
    outcome: str, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object) -> int:
        if outcome == "failed":
            raise stopping.Stopped("SIGTERM")
        return {"done": 0, "stopped": 75}[outcome]

    monkeypatch.setattr(Mode, "run", end)
    said = run("--mode=report", f"--workdir={workdir}")
    assert said.status == (0 if outcome == "done" else 75)
    assert ("next, " in said.err) == (outcome == "done")
    assert said.out == ""


def saved(workdir: Path, classes: list[object], **fields: str) -> None:
    """Changes the saved config of a run: its classes, and fields of the group eval."""
    config = json.loads((workdir / "config.json").read_text())
    config["eval"] |= fields
    (workdir / "config.json").write_text(json.dumps({**config, "classes": classes}))


@pytest.mark.parametrize(
    ("classes", "fields", "flag", "said"),
    [
        ([], {}, None, "against the data (this downloads 96 MB of weights, once): "),
        ([{"label": 0}], {}, "--config.eval.features=classifier", "against the data: "),
        ([], {"weights": "x.pth"}, None, "against the data: "),
        ([{"label": 0}], {"features": "lite0"}, None, "against the data: "),
    ],
)
def test_a_measurement_that_downloads_weights_is_proposed_with_a_word_of_it(
    classes: list[object], fields: dict[str, str], flag: str | None, said: str, workdir: Path
) -> None:
    saved(workdir, classes, **fields)
    lines = next_steps(MODES["sample"], workdir, None, [])
    assert said in lines[0]
    measured = commands(lines)[0]
    assert [word for word in measured if "features" in word] == ([flag] if flag else [])


def test_the_page_that_a_training_wrote_is_not_proposed_again(workdir: Path) -> None:
    def proposed() -> set[str]:
        return {words[0] for words in commands(next_steps(MODES["train"], workdir, None, []))}

    assert "--mode=report" in proposed()
    (workdir / "report.html").write_text("")
    assert proposed() == {"--mode=sample", "--mode=evaluate"}
