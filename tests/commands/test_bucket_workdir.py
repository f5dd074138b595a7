"""A workdir in a bucket, which a folder stands for: nothing is lost with the machine that worked on it."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from etils import epath
from tiny_run import run, write_config

from diffusion_jax import addresses
from diffusion_jax.commands import bucket_workdir
from diffusion_jax.errors import RunError
from diffusion_jax.reading.metrics_rows import read_rows

ADDRESS = "gs://mine/runs/tiny"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the bucket's."""
    folder = tmp_path / "bucket"
    local = addresses.resolve

    def resolve(address: Any) -> epath.Path:
        text = str(address)
        if text.startswith("gs://mine"):
            return epath.Path(folder / text.removeprefix("gs://mine/"))
        return local(address)

    for module in ("addresses", "checkpoints.store", "commands.bucket_workdir.addresses"):
        monkeypatch.setattr(f"diffusion_jax.{module}.resolve", resolve)
    monkeypatch.setattr(bucket_workdir, "_PAUSES", (0.0, 0.0))
    monkeypatch.setenv("DIFFUSION_JAX_CACHE", str(tmp_path / "cache"))
    folder.mkdir()
    return folder / "runs" / "tiny"


def new_machine(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "cache")


def test_a_run_is_trained_continued_and_sampled_on_machines_that_know_its_address_alone(
    bucket: Path, tmp_path: Path
):
    config = write_config(tmp_path)
    first = run(f"--config={config}", f"--workdir={ADDRESS}", "--config.train.num_steps=6")
    assert first.status == 0, first.err
    assert f"--workdir={ADDRESS}" in first.err and str(tmp_path / "cache") not in first.out
    assert (bucket / "checkpoints" / "6").is_dir() and (bucket / "report.html").is_file()
    assert not list((tmp_path / "cache" / "workdirs").iterdir())  # All of it is in the bucket.
    new_machine(tmp_path)
    again = run(f"--workdir={ADDRESS}", "--config.train.num_steps=9")
    assert again.status == 0, again.err
    steps = [row["step"] for row in read_rows(bucket / "metrics.jsonl") if "loss" in row]
    assert steps == [3, 6, 9]
    new_machine(tmp_path)
    # A copy of the bucket's folder is a run of its own.
    bucket.rename(bucket.with_name("moved"))
    moved = f"{ADDRESS.rpartition('/')[0]}/moved"
    drawn = run("--mode=sample", f"--workdir={moved}", "--config.sampler.num_steps=2")
    assert drawn.status == 0, drawn.err
    assert list((bucket.with_name("moved") / "samples").glob("*/grid.png"))


def test_files_are_copied_whole_when_they_have_changed_and_deleted_when_they_are_gone(
    bucket: Path, tmp_path: Path
):
    (bucket / "deep").mkdir(parents=True)
    (bucket / "deep" / "old").write_text("old")
    (bucket / "checkpoints").mkdir()
    (bucket / "checkpoints" / "large").write_text("large")
    with bucket_workdir.local_folder(ADDRESS, tmp_path / "cache") as folder:
        assert {p.name for p in folder.rglob("*")} == {".copied", "deep", "old"}
        (folder / "deep" / "old").unlink()
        (folder / "new").write_text("new")
        for name in ("lock.json", ".probe-1", "grid.png.part"):
            (folder / name).write_text("not of the run")
    files = {
        p.relative_to(bucket).as_posix(): p.read_text() for p in bucket.rglob("*") if p.is_file()
    }
    assert files == {"new": "new", "checkpoints/large": "large"}


def test_what_is_written_meanwhile_is_in_the_bucket_before_the_end(
    bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bucket_workdir, "SECONDS", 0.01)
    with bucket_workdir.local_folder(ADDRESS, tmp_path / "cache") as folder:
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1}))
        ends = time.monotonic() + 20
        while not (bucket / "metrics.jsonl").exists() and time.monotonic() < ends:
            time.sleep(0.01)
        assert (bucket / "metrics.jsonl").exists()


def test_a_bucket_that_cannot_be_written_is_an_error_that_says_where_the_files_are(
    bucket: Path, tmp_path: Path
):
    with (
        pytest.raises(RunError, match=f"cannot write to --workdir={ADDRESS}.*is in {tmp_path}"),
        bucket_workdir.local_folder(ADDRESS, tmp_path / "cache") as folder,
    ):
        (folder / "new").write_text("new")
        bucket.parent.mkdir()
        bucket.write_text("a file, where there should be a folder")
    (left,) = (tmp_path / "cache" / "workdirs").glob("*/*/new")
    assert left.read_text() == "new"


def test_a_folder_that_is_gone_deletes_nothing_in_the_bucket(bucket: Path, tmp_path: Path):
    bucket.mkdir(parents=True)
    (bucket / "config.json").write_text("{}")
    with (
        pytest.raises(RunError, match="cannot write to"),
        bucket_workdir.local_folder(ADDRESS, tmp_path / "cache") as folder,
    ):
        shutil.rmtree(folder)
    assert (bucket / "config.json").read_text() == "{}"


def test_what_stopped_a_command_is_reported_even_if_the_bucket_cannot_be_written(
    bucket: Path, tmp_path: Path
):
    with (
        pytest.warns(UserWarning, match=f"cannot write to --workdir={ADDRESS}"),
        pytest.raises(KeyError, match="the command's own"),
        bucket_workdir.local_folder(ADDRESS, tmp_path / "cache") as folder,
    ):
        (folder / "new").write_text("new")
        bucket.parent.mkdir()
        bucket.write_text("a file, where there should be a folder")
        raise KeyError("the command's own")


def test_one_file_that_cannot_be_written_keeps_no_other_from_it(bucket: Path, tmp_path: Path):
    bucket.mkdir(parents=True)
    with (
        pytest.raises(RunError),
        bucket_workdir.local_folder(ADDRESS, tmp_path / "cache") as folder,
    ):
        (bucket / "a").mkdir()
        (folder / "a").write_text("where a folder is")
        (folder / "b").write_text("whole")
    assert (bucket / "b").read_text() == "whole"


def test_a_folder_that_a_killed_command_left_is_named(bucket: Path, tmp_path: Path):
    left = tmp_path / "cache" / "workdirs" / "tiny-old"
    left.mkdir(parents=True)
    (left / "owner.txt").write_text(f"999999999 {ADDRESS}")
    with (
        pytest.warns(UserWarning, match=f"has left {left / 'tiny'}"),
        bucket_workdir.local_folder(ADDRESS, tmp_path / "cache"),
    ):
        pass


def test_an_import_and_other_addresses_are_refused(bucket: Path):
    outcome = run("--mode=import", "--source=x", f"--workdir={ADDRESS}")
    assert outcome.status == 2 and "--mode=import makes its run in a folder" in outcome.err
    outcome = run("--config=digits", "--workdir=s3://bucket/run")
    assert outcome.status == 2 and "s3://bucket/run is not supported" in outcome.err
