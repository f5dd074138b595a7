"""`--mode=report` as a command: what it takes, refuses and leaves."""

import sys
from pathlib import Path

from tiny_run import run

sys.path.append(str(Path(__file__).parents[1] / "report"))
from run_folders import write_training


def test_the_command_writes_a_page_and_says_where_it_is(tmp_path: Path) -> None:
    workdir, other = write_training(tmp_path / "run"), write_training(tmp_path / "other")
    before = {path.name for path in workdir.iterdir()}
    outcome = run("--mode=report", f"--workdir={workdir}", f"--config.report.runs={other}")
    assert outcome.status == 0, outcome.err
    assert outcome.err.startswith(f"report {workdir / 'report.html'} (0.")
    assert {path.name for path in workdir.iterdir()} - before == {"report.html"}


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    outcome = run("--mode=report", f"--workdir={tmp_path}")
    assert outcome.status == 2 and f"no trained run in {tmp_path}" in outcome.err
    workdir, empty = write_training(tmp_path / "run"), tmp_path / "empty"
    outcome = run("--mode=report", f"--workdir={workdir}", f"--config.report.runs={empty}")
    said = f"report.runs: no run in {empty} (there is neither config.json nor metrics.jsonl)"
    assert outcome.status == 2 and said in outcome.err and outcome.err.count("\n") == 1
    assert not (workdir / "report.html").exists()


def test_a_folder_in_the_pages_place_is_refused(tmp_path: Path) -> None:
    workdir = write_training(tmp_path / "run")
    (workdir / "report.html").mkdir()
    outcome = run("--mode=report", f"--workdir={workdir}")
    assert outcome.status == 2 and "report.html is not a file; move it away" in outcome.err
