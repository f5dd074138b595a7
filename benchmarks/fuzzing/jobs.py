"""What a job of images or a measurement leaves: batches, finished files, parts, pictures' arrays."""

import dataclasses
import io
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from diffusion_jax.commands import sample_pictures
from diffusion_jax.commands.image_files import FORMATS, ImageFiles
from diffusion_jax.metrics.base import Shard, is_shard
from diffusion_jax.parallel import resumable
from diffusion_jax.reporting import results
from fuzzing.loader import NOTICED, RIGHT, UNKNOWABLE, WRONG, Loader, same
from fuzzing.mutations import Rng, damage, pick

SHAPE, COUNT, BATCH, CLASSES = (6, 5, 3), 11, 4, ("a", "b", "c")
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, *SHAPE), np.uint8)
LABELS = np.arange(COUNT) % len(CLASSES)


def resealed(path: Path, rng: Rng) -> str:
    """Writes other arrays with right checksums: other shapes, types, names, contents."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file}
    name = pick(rng, sorted(arrays))
    array = np.atleast_1d(arrays[name])
    what = pick(
        rng,
        [
            "type",
            "cut",
            "negative",
            "empty",
            "name",
            "gone",
            "more",
            "order",
            "rank",
            "twice",
            "object",
        ],
    )
    match what:
        case "type":
            kind = pick(rng, ["f8", "i8", "u2", "i1", "b1", "U3", "M8[s]", "c16"])
            array = array.astype(kind) if array.dtype.kind in "biufc" else array
        case "cut":
            array = array[: len(array) // 2]
        case "negative":
            array = -array if array.dtype.kind in "if" else array
        case "empty":
            array = array[:0]
        case "rank":
            array = array[..., None]
        case "order":
            array = np.asfortranarray(array)
        case "more":
            arrays[f"{name}s"] = array
        case "object":
            array = np.array([b"cos\nsystem\n(S'true'\ntR."], object)
    del arrays[name]
    if what not in ("gone", "name"):
        arrays[name] = array
    if what == "name":
        arrays[name + "x"] = array
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    if what == "twice" and arrays:
        with zipfile.ZipFile(buffer, "a") as archive:
            inside = io.BytesIO()
            np.save(inside, np.atleast_1d(arrays[pick(rng, sorted(arrays))])[:1])
            try:
                archive.writestr(f"{name}.npy", inside.getvalue())
            except UserWarning:
                pass
    path.write_bytes(buffer.getvalue())
    return what


def _drawn(indices: np.ndarray) -> dict[str, np.ndarray]:
    return {"images": IMAGES[indices]}


class _Job(Loader):
    """A job of images that is gone on with: what is missing is drawn, then all files are written."""

    finished: ClassVar[str | None] = None

    def make(self, folder: Path) -> None:
        files = self._files(folder)
        list(files.parts.compute(_drawn, BATCH, np.zeros(0, np.int64)))
        if self.finished:
            files.write((self.finished,), LABELS, CLASSES)

    def _files(self, folder: Path) -> ImageFiles:
        return ImageFiles(folder, COUNT, SHAPE)

    def mutate(self, folder: Path, rng: Rng) -> str:
        self.is_resealed = False
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        path = pick(rng, files)
        if rng.integers(10) == 0 and len(files) > 1:
            path.write_bytes(pick(rng, files).read_bytes())
            self.is_resealed = path.suffix == ".png"
            return f"another file at {path.name}"
        if path.suffix == ".npz" and rng.integers(6) == 0:
            self.is_resealed = True
            return f"resealed {path.name}: {resealed(path, rng)}"
        return f"{path.relative_to(folder)}: {damage(path, rng)}"

    def read(self, folder: Path) -> dict[str, Any]:
        files = self._files(folder)
        finished = files.finished()
        list(files.parts.compute(_drawn, BATCH, finished))
        head = self._files(folder).head(COUNT)
        wanted = {self.finished or "npz", "npz"}
        self._files(folder).write(sorted(wanted), LABELS, CLASSES)
        with np.load(folder / "images.npz") as file:
            arrays = {name: file[name] for name in file}
        if self.finished:
            kind = FORMATS[self.finished]
            arrays["read"] = np.concatenate(list(kind.read(folder / kind.path)))
        return {"count": len(finished), "head": head, **arrays}

    def judge(self, value: dict[str, Any], said: str, folder: Path) -> str:
        if same({**value, "count": COUNT}, self.expected):
            return RIGHT if value["count"] == COUNT else NOTICED
        return UNKNOWABLE if self.is_resealed else WRONG


class Batches(_Job):
    """parts/*.npz. Files that were written anew with right checksums and sound forms: cannot be known."""

    name = "image parts"


class Npz(_Job):
    """images.npz of a finished job."""

    name = "images.npz"
    finished = "npz"


class Png(_Job):
    """png/ of a finished job."""

    name = "png jobs"
    finished = "png"


class ArrayRecord(_Job):
    """array_record/ of a finished job."""

    name = "array_record jobs"
    finished = "array_record"


@dataclasses.dataclass(frozen=True)
class _Bits(Shard):
    bits: Float[np.ndarray, "k b"]


class Measured(Loader):
    """The parts of an evaluation. Files that were written anew with right checksums: cannot be known."""

    name = "evaluation parts"

    def make(self, folder: Path) -> None:
        bits = np.random.default_rng(1).random((2, COUNT))
        for first in range(0, COUNT, BATCH):
            indices = np.arange(first, min(first + BATCH, COUNT))
            self._batches(folder).write({"indices": indices, "bits": bits[:, indices]})

    def mutate(self, folder: Path, rng: Rng) -> str:
        path = pick(rng, sorted(folder.iterdir()))
        self.is_resealed = rng.integers(6) == 0
        if self.is_resealed:
            return f"resealed {path.name}: {resealed(path, rng)}"
        if rng.integers(10) == 0:
            (folder / f"{rng.integers(99):08}-x.npz").write_bytes(path.read_bytes())
            return "a copy"
        return damage(path, rng)

    def read(self, folder: Path) -> dict[str, Any]:
        read = list(self._batches(folder).read())
        indices = np.concatenate([part["indices"] for part in read] or [np.zeros(0, np.int64)])
        bits = np.concatenate([part["bits"] for part in read] or [np.zeros((2, 0))], axis=1)
        order = np.argsort(indices)
        return {"indices": indices[order], "bits": bits[:, order]}

    def _batches(self, folder: Path) -> resumable.Batches:
        return resumable.Batches(
            folder,
            COUNT,
            lambda arrays: is_shard(arrays, _Bits, lambda shard: len(shard.bits) == 2),
        )

    def judge(self, value: dict[str, Any], said: str, folder: Path) -> str:
        if same(value, self.expected):
            return RIGHT
        if self.is_resealed:
            return UNKNOWABLE
        indices = value["indices"]
        if len(set(indices.tolist())) < len(indices):
            return WRONG
        sound = self.expected["bits"][:, indices]
        return NOTICED if len(indices) < COUNT and same(value["bits"], sound) else WRONG


class Pictured(Loader):
    """progressive.npz and shared.npz. Files that were written anew with right checksums: cannot be known."""

    name = "progressive and shared npz"
    times = np.array([0.5, 0.25])

    def make(self, folder: Path) -> None:
        for name in ("x.png", "shared.png"):
            (folder / name).write_bytes(b"")
        images = np.stack([IMAGES[:2]] * 2)
        arrays = {"x_t": images, "x0_hat": images, "samples": images[:, :, None]}
        results.write_npz(folder / "shared.npz", times=self.times, labels=LABELS[:2], **arrays)
        results.write_npz(folder / "progressive.npz", frames=images, times=self.times)

    def mutate(self, folder: Path, rng: Rng) -> str:
        path = folder / pick(rng, ["shared.npz", "progressive.npz"])
        self.is_resealed = rng.integers(6) == 0
        if self.is_resealed:
            return f"resealed {path.name}: {resealed(path, rng)}"
        return f"{path.name}: {damage(path, rng)}"

    def read(self, folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = {"shared": sample_pictures._has_shared(folder, self.times)}
        found["progressive"] = {"frames", "times"} <= sample_pictures._sound(
            folder / "progressive.npz"
        ).keys()
        for name in ("shared", "progressive"):
            if found[name]:
                with np.load(folder / f"{name}.npz") as file:
                    found[name] = {key: file[key] for key in file}
        return found

    def judge(self, value: dict[str, Any], said: str, folder: Path) -> str:
        if same(value, self.expected):
            return RIGHT
        if self.is_resealed:
            return UNKNOWABLE
        drawn_anew = {name for name in value if value[name] is False}
        rest = {name: self.expected[name] for name in value.keys() - drawn_anew}
        return NOTICED if same({name: value[name] for name in rest}, rest) else WRONG


LOADERS = (Batches, Npz, Png, ArrayRecord, Measured, Pictured)
