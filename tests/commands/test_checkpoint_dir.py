"""A run's checkpoints may be elsewhere than in its workdir; whoever uses the run finds them."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_run import Outcome, digits_in, results, run, write_config

from diffusion_jax.addresses import resolve
from diffusion_jax.checkpoints.store import CheckpointStore
from diffusion_jax.errors import InputError
from diffusion_jax.writing.writable import check_writable


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with digits_in(tmp_path_factory.mktemp("cache")) as folder:
        yield folder


def train(tmp_path: Path, where: object, *fields: str) -> Outcome:
    flags = [f"--config.{field}" for field in (f"train.checkpoint_dir={where}", *fields)]
    return run(f"--config={write_config(tmp_path)}", f"--workdir={tmp_path / 'run'}", *flags)


def assert_refused(outcome: Outcome, *fragments: str) -> None:
    assert outcome.status == 2, outcome.err
    (line,) = outcome.err.splitlines()
    for fragment in ("error: ", *fragments):
        assert fragment in line


def test_a_run_goes_on_and_is_sampled_from_the_folder_that_it_names(tmp_path: Path) -> None:
    elsewhere, workdir = tmp_path / "elsewhere", tmp_path / "run"
    assert train(tmp_path, elsewhere, "train.num_steps=4").status == 0
    assert CheckpointStore(elsewhere).steps() == [4]
    assert not (workdir / "checkpoints").exists()
    # A run whose folder has moved is told so before anything else; moved along, it goes on.
    moved = tmp_path / "moved"
    refused = train(tmp_path, moved, "train.num_steps=8")
    assert_refused(refused, str(elsewhere), str(moved), "move them")
    moved.rmdir()
    shutil.move(elsewhere, moved)
    resumed = train(tmp_path, moved, "train.num_steps=8")
    assert resumed.status == 0 and "resuming at step 4" in resumed.err
    flags = ("--mode=sample", f"--workdir={workdir}", "--config.sample.num_images=2")
    assert run(*flags).status == 0
    assert results(workdir, "sample")["step"] == 8


@pytest.mark.parametrize(
    ("where", "fragments"),
    [
        ("runs/one", ("train.checkpoint_dir is 'runs/one'", "full path")),
        ("s3://bucket/run", ("gs://BUCKET/PATH", "s3://bucket/run is not supported")),
        ("/proc/checkpoints", ("cannot write checkpoints to /proc/checkpoints: ",)),
    ],
)
def test_a_place_where_nothing_can_be_written_is_refused_before_training(
    tmp_path: Path, where: str, fragments: tuple[str, ...]
) -> None:
    assert_refused(train(tmp_path, where), *fragments)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_bucket_needs_a_package_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'gs://bucket/run needs .* "diffusion_jax\[gcs\]"'):
        CheckpointStore("gs://bucket/run")


def test_a_bucket_that_says_no_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    bucket = resolve("gs://bucket/run")
    assert str(bucket) == "gs://bucket/run"

    class Forbidden(Exception):
        """As a bucket's library may raise it."""

    def write_text(*_: object) -> None:
        raise Forbidden("Caller lacks storage.objects.create\nmore")

    monkeypatch.setattr(type(bucket), "write_text", write_text)
    expected = "cannot write checkpoints to gs://bucket/run: Forbidden: Caller lacks storage"
    with pytest.raises(InputError, match=f"^{expected}.objects.create$"):
        check_writable(bucket, "cannot write checkpoints to")
