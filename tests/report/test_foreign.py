"""Files that another program wrote: whatever they say, each section of the page is made."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import PROVENANCE, write_json, write_rest, write_training
from slow import slow_after

from diffusion_jax import recipes
from diffusion_jax.report.album import Album
from diffusion_jax.report.blocks import Note
from diffusion_jax.report.run_folder import RunFolder
from diffusion_jax.report.sections.inputs import Inputs
from diffusion_jax.report.sections.registry import SECTIONS

FOREIGN = (7, -1.5, 10**400, True, None, "text", [], [None], {}, {"value": {}}, float("nan"))
PLAN = {
    "batch_size": 128,
    "dtype": "float32",
    "image_shape": [8, 8, 1],
    "plans": [{"memory": {"parameters": 4938268}, "mesh": {"fsdp": 1}, "gflop_per_image": 0.5}],
}


@pytest.fixture(autouse=True)
def no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "names", lambda: [])  # Reading all of them takes long.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = write_rest(write_training(tmp_path_factory.mktemp("runs") / "run", 5))
    write_json(workdir / "results" / "plan.json", PLAN)
    record = json.loads((workdir / "results" / "train.json").read_text())
    record |= {
        "train_seconds": 60.0,
        "provenance": {**PROVENANCE, "device": "1 x NVIDIA H100 (gpu)"},
    }
    write_json(workdir / "results" / "train.json", record)
    return workdir


class NoAlbum(Album):
    """Encodes no picture, which takes most of a page's time."""

    def file(self, path: Path, alt: str, caption: str = "", *, limit: int = 0) -> Note:
        return Note(alt)

    def array(self, pixels: np.ndarray, alt: str, caption: str = "", *, limit: int = 0) -> Note:
        assert pixels.dtype == np.uint8 and pixels.size and pixels.shape[2] in (1, 3)
        return Note(alt)


def make_sections(workdir: Path) -> None:
    run = RunFolder(workdir)
    inputs = Inputs(run, [run], NoAlbum(), True)
    for section in SECTIONS:
        assert section.make(inputs), section.name


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path of each part of a JSON value, its own first."""
    yield path
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, part in inner:
        yield from places(part, (*path, name))


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    made = copy.deepcopy(value)
    holder = made
    for name in path[:-1]:
        holder = holder[name]
    holder[path[-1]] = by
    return made


@pytest.mark.parametrize("name", slow_after(2, ["train", "evaluate", "sweep", "plan", "config"]))
def test_no_value_of_a_result_keeps_the_page_from_being_written(name: str, run: Path) -> None:
    """Parts evenly over the file are of other kinds, of which a fifth are tried at each."""
    path = run / "config.json" if name == "config" else run / "results" / f"{name}.json"
    content = path.read_text()
    every = list(places(json.loads(content)))
    try:
        for i, place in enumerate(every[:: max(1, len(every) // 9)]):
            for by in FOREIGN[i % 5 :: 5]:
                path.write_text(json.dumps(replaced(json.loads(content), place, by)))
                make_sections(run)
    finally:
        path.write_text(content)


ARRAYS = {
    "a number": np.float64(1),
    "nothing": np.empty((0,)),
    "text": np.array(["a", "b"]),
    "truth": np.ones((5, 2), bool),
    "long": np.ones((5, 3, 4, 2, 1), np.uint8),
    "flat": np.ones((5, 2, 1, 100, 3), np.uint8),
    "not finite": np.full(12, np.nan),
}


@pytest.mark.parametrize("file", ["report/reverse.npz", "report/nearest.npz", "bpd/bpd.npz"])
@pytest.mark.parametrize("kind", ARRAYS)
def test_no_array_keeps_the_page_from_being_written(file: str, kind: str, run: Path) -> None:
    path = run / "results" / file
    content = path.read_bytes() if path.exists() else None
    names = ("images", "neighbors", "rms")
    arrays = dict(np.load(path)) if content else {n: np.ones(3, np.uint8) for n in names}
    try:
        for names in (tuple(arrays)[:1], tuple(arrays)[-1:], tuple(arrays)):
            np.savez(path, **{**arrays, **dict.fromkeys(names, ARRAYS[kind])})
            make_sections(run)
    finally:
        path.unlink()
        if content:
            path.write_bytes(content)
