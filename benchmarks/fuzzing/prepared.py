"""Data that were prepared as array_record: our own, and a user's."""

from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.data import prepare, reader
from diffusion_jax.data.sources.base import Contents
from fuzzing.loader import RIGHT, UNKNOWABLE, WRONG, Loader, same
from fuzzing.mutations import Rng, damage, pick

SHAPE, COUNT = (6, 5, 3), 9


class Own(Loader):
    """What `prepare` has written, in the cache; it is ours alone, so all damage can be known."""

    name = "prepared sets"

    def make(self, folder: Path) -> None:
        images = np.random.default_rng(0).integers(0, 256, (COUNT, *SHAPE), np.uint8)
        splits = {
            name: [(image, i % 3) for i, image in enumerate(part)]
            for name, part in (("train", images[:6]), ("test", images[6:]))
        }
        prepare.write_images(
            folder, Contents(SHAPE, ("a", "b", "c"), COUNT, splits, {"x.png": "damaged"})
        )

    def read(self, folder: Path) -> Any:
        found = {}
        for name in ("train", "test"):
            split, left_out = reader.open_prepared(prepare.directory_in(folder), prepare.NAME, name)
            found[name] = (
                dict(split.read(np.arange(split.num_images))),
                split.class_names,
                dict(left_out),
            )
        return found


class Users(Own):
    """What a user has prepared, as tfds:NAME. Its JSON and text have no checksum: what else it says cannot be known."""

    name = "tfds:NAME"

    def mutate(self, folder: Path, rng: Rng) -> str:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        path = pick(rng, files)
        self.is_json = path.suffix in (".json", ".txt")
        return f"{path.name}: {damage(path, rng)}"

    def read(self, folder: Path) -> Any:
        found = {}
        for name in ("train", "test"):
            split = reader.open_user(prepare.NAME, folder, name, None)
            found[name] = (dict(split.read(np.arange(split.num_images))), split.class_names)
        return found

    def judge(self, value: Any, said: str, folder: Path) -> str:
        if same(value, self.expected):
            return RIGHT
        return UNKNOWABLE if self.is_json else WRONG


LOADERS = (Own, Users)
