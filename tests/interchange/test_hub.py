"""Checkpoints on the hub, with the real client and a server on this machine: what is fetched, said and refused."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from hub_server import TOKEN, Hub, serve
from huggingface_hub import constants

from diffusion_jax.errors import InputError
from diffusion_jax.interchange import hub as hub_lib
from diffusion_jax.main import main
from diffusion_jax.runs import load_run

FIXTURE = Path(__file__).parent / "fixtures/diffusers_tiny"
FILES = {
    str(path.relative_to(FIXTURE)): path.read_bytes()
    for path in FIXTURE.rglob("*")
    if path.suffix in (".json", ".safetensors")
}
OTHERS = {"README.md": b"no", "text_encoder/model.safetensors": b"large", "unet/x.bin": b"large"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Yields a hub with one repository, which the client takes for the real one, and an empty cache."""
    hub = Hub()
    hub.commit("them/model", {**FILES, **OTHERS})
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serve(hub) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield hub


def no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the client ask where nobody answers."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def of_folder(path: Path) -> dict[str, bytes]:
    files = [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.mark.parametrize(
    ("text", "repository", "revision", "path"),
    [
        ("hf://a/b", "a/b", None, ""),
        ("hf://a/b/", "a/b", None, ""),
        ("hf://a/b.c-d@v1.0", "a/b.c-d", "v1.0", ""),
        ("hf://a/b@refs/pr/3/c", "a/b", "refs/pr/3", "c"),
        ("hf://a/b/c/d.pt", "a/b", None, "c/d.pt"),
        ("hf://a/b@main/c/", "a/b", "main", "c"),
    ],
)
def test_an_address_is_a_repository_a_revision_and_a_path(text, repository, revision, path):
    address = hub_lib.parse(text)
    assert address == hub_lib.Address(repository, revision, path)
    assert str(address) == text.rstrip("/")


@pytest.mark.parametrize("text", ["hf://a", "hf://a/b/../c", "hf:///b", "hf://a/b@", "hf://a b/c"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(InputError, match="is no address hf://OWNER/NAME"):
        hub_lib.parse(text)


def test_a_reader_needs_configs_and_one_format_of_tensors():
    names = ["config.json", "a.pth", "b.bin", "README.md", "unet/c.safetensors", "unet/d.bin"]
    assert hub_lib.wanted(names, "") == ["config.json", "a.pth", "b.bin", "unet/c.safetensors"]
    assert hub_lib.wanted(names, "unet") == ["unet/c.safetensors"]
    assert hub_lib.wanted(names, "unet/d.bin") == ["unet/d.bin"]
    variants = ["a.safetensors", "a.fp16.safetensors"]
    assert hub_lib.wanted(variants, "") == ["a.safetensors"]
    assert hub_lib.wanted(variants[1:], "") == ["a.fp16.safetensors"]


def test_a_branch_becomes_its_commit_and_what_no_reader_needs_stays_there(hub):
    first = hub.branches["them/model"]["main"]
    fetched = hub_lib.fetch("hf://them/model")
    assert fetched.revision == first and not fetched.notes
    assert of_folder(fetched.path) == FILES

    second = hub.commit("them/model", {"unet/config.json": b"{}"})
    assert hub_lib.fetch("hf://them/model").revision == second
    pinned = hub_lib.fetch(f"hf://them/model@{first}/unet")
    assert pinned.revision == first
    assert (pinned.path / "config.json").read_bytes() == FILES["unet/config.json"]


def test_what_the_cache_has_is_not_downloaded_again(hub):
    hub_lib.fetch("hf://them/model")
    assert any("resolve" in request for request in hub.asked)
    hub.asked.clear()
    hub_lib.fetch("hf://them/model")
    assert hub.asked and not any("resolve" in request for request in hub.asked)


@pytest.mark.parametrize("status", [0, 503])
def test_without_an_answer_the_cache_is_used_and_this_is_said(hub, monkeypatch, status):
    fetched = hub_lib.fetch("hf://them/model/unet")
    hub.failing = status
    if not status:
        no_connection(monkeypatch)
    again = hub_lib.fetch("hf://them/model/unet")
    assert (again.path, again.revision) == (fetched.path, fetched.revision)
    (note,) = again.notes
    assert "the hub cannot" in note and f"its cache, commit {fetched.revision}" in note
    with pytest.raises(InputError, match="which has no text_encoder"):
        hub_lib.fetch("hf://them/model/text_encoder")
    with pytest.raises(InputError, match="its cache has no hf://them/other"):
        hub_lib.fetch("hf://them/other")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://them/other", "there is no them/other on the hub, or it is private"),
        ("hf://them/private", "there is no them/private on the hub, or it is private"),
        ("hf://them/model@v2", "them/model on the hub has no revision 'v2'"),
        ("hf://them/model/vae", "them/model has no vae"),
        ("hf://them/model/README.md", "looks like no checkpoint"),
        ("hf://them", "is no address"),
    ],
)
def test_an_import_of_what_is_not_there_is_one_line_and_leaves_no_workdir(
    hub, tmp_path, capsys, address, message
):
    hub.commit("them/private", FILES)
    hub.private.add("them/private")
    workdir = tmp_path / "run"
    assert main(["--mode=import", f"--source={address}", f"--workdir={workdir}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error and not workdir.exists()


def test_an_import_from_the_hub_keeps_the_commit(hub, tmp_path, monkeypatch):
    hub.private.add("them/model")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    runs = [tmp_path / "online", tmp_path / "offline"]
    for run in runs:
        assert main(["--mode=import", "--source=hf://them/model", f"--workdir={run}"]) == 0
        no_connection(monkeypatch)
    online, offline = (json.loads((run / "results/import.json").read_text()) for run in runs)
    assert online["source"] == "hf://them/model"
    assert online["revision"] == offline["revision"] == hub.branches["them/model"]["main"]
    assert online["sha256"] == offline["sha256"] and not online["notes"]
    assert "from its cache" in offline["notes"][0]
    (meta,) = runs[0].glob("checkpoints/*/meta.json")
    assert json.loads(meta.read_text())["meta"]["imported"]["revision"] == online["revision"]
    assert not any(TOKEN.encode() in data for data in of_folder(runs[0]).values())


def test_without_the_package_one_line_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    flags = ["--mode=import", "--source=hf://a/b", f"--workdir={tmp_path / 'run'}"]
    assert main(flags) == 2
    assert "pip install 'diffusion_jax[hub]'" in capsys.readouterr().err


def test_an_uploaded_folder_is_a_commit_whose_address_gives_it_back(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    address = hub_lib.upload(FIXTURE, hub_lib.parse("hf://me/mine"))
    commit = hub.branches["me/mine"]["main"]
    assert address == f"hf://me/mine@{commit}"
    assert of_folder(hub_lib.fetch(address).path) == FILES
    deeper = hub_lib.upload(FIXTURE / "unet", hub_lib.parse("hf://me/mine/more"))
    assert of_folder(hub_lib.fetch(deeper).path)["config.json"] == FILES["unet/config.json"]
    assert hub_lib.fetch(deeper).path.name == "more"


def test_an_export_to_the_hub_is_imported_again_with_the_same_parameters(
    hub, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    runs = [tmp_path / "first", tmp_path / "second"]
    assert main(["--mode=import", f"--source={FIXTURE}", f"--workdir={runs[0]}"]) == 0
    export = ["--mode=export", "--format=single", f"--workdir={runs[0]}"]
    assert main([*export, "--target=hf://me/mine"]) == 0
    address = f"hf://me/mine@{hub.branches['me/mine']['main']}"
    assert capsys.readouterr().err.rstrip().endswith(f"as single to {address}")
    assert b"# mine" in hub.commits[address.rpartition("@")[2]]["README.md"]
    assert main(["--mode=import", f"--source={address}", f"--workdir={runs[1]}"]) == 0
    first, second = (load_run(run).params for run in runs)
    jax.tree.map(np.testing.assert_array_equal, first, second)

    hub.read_only.add("me/mine")
    assert main([*export, "--target=hf://me/mine"]) == 2
    assert "no permission (403)" in capsys.readouterr().err


def test_an_upload_that_the_hub_refuses_is_one_line(hub, monkeypatch):
    with pytest.raises(InputError, match=r"no permission \(401\): log in") as error:
        hub_lib.upload(FIXTURE, hub_lib.parse("hf://me/mine"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.read_only.add("them/model")
    with pytest.raises(InputError, match=r"no permission \(403\)"):
        hub_lib.upload(FIXTURE, hub_lib.parse("hf://them/model"))
    with pytest.raises(InputError, match="has no revision 'dev'"):
        hub_lib.upload(FIXTURE, hub_lib.parse("hf://me/mine@dev"))
    no_connection(monkeypatch)
    with pytest.raises(InputError, match="cannot be reached .* so nothing is at") as offline:
        hub_lib.upload(FIXTURE, hub_lib.parse("hf://me/mine"))
    assert TOKEN not in str(error.value) + str(offline.value)
