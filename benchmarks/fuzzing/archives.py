"""The published data sets as archives: CIFAR-10's pickles in a tar.gz, IDX files by gzip."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.data.sources import cifar10, fashion_mnist
from diffusion_jax.data.sources.base import Storage
from diffusion_jax.data.sources.batch_pickle import load_batch
from fuzzing.loader import RIGHT, UNKNOWABLE, WRONG, Loader, same
from fuzzing.mutations import Rng, damage, mutated, pick

ROWS = 3
NAMES = tuple(f"{i} class".encode() for i in range(10))


def batches() -> dict[str, dict[bytes, Any]]:
    """Returns two small batches to train on, one to test, and the names of the classes."""
    rng = np.random.default_rng(0)

    def batch(label: bytes) -> dict[bytes, Any]:
        data = rng.integers(0, 256, (ROWS, 3072), np.uint8)
        return {
            b"batch_label": label,
            b"labels": rng.integers(10, size=ROWS).tolist(),
            b"data": data,
        }

    train = {f"data_batch_{i}": batch(b"training batch %d of 2" % i) for i in (1, 2)}
    names = {b"label_names": list(NAMES), b"num_vis": 3072}
    return {**train, "test_batch": batch(b"testing batch 1 of 1"), "batches.meta": names}


class _Mark:
    """What makes Python's own reader run something."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {self.mark}",)


def hostile(rng: Rng, mark: Path) -> bytes:
    """Returns a pickle that runs a program, crashes an interpreter or takes its memory."""
    depth = int(pick(rng, [50, 2000, 200_000]))
    return pick(
        rng,
        [
            pickle.dumps({b"data": _Mark(mark), b"labels": [1]}, int(rng.integers(5))),
            b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR.",
            b"c__builtin__\neval\n(S'open(%r, \"w\")'\ntR." % str(mark),
            b"\x80\x02" + b"(" * depth + b"t" * depth + b".",
            b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".",
            b"\x80\x02K\x01" + b"\x85" * depth + b".",
            b"\x80\x02}r\xff\xff\xff\x7f.",
            b"\x80\x02B\xff\xff\xff\x7f.",
            b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
            b"\x80\x02cnumpy\nndarray\n)\x81.",
            b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R.",
            b"",
        ],
    )


class Pickles(Loader):
    """A batch's pickle. Other values in one that NumPy's own reader understands alike, cannot be known."""

    name = "CIFAR-10 pickles"

    def make(self, folder: Path) -> None:
        whole = batches()
        for protocol in range(5):
            batch = {**whole["test_batch"], b"data": np.arange(60, dtype=np.uint8).reshape(3, 20)}
            (folder / f"test_batch{protocol}").write_bytes(pickle.dumps(batch, protocol))
            (folder / f"meta{protocol}").write_bytes(pickle.dumps(whole["batches.meta"], protocol))

    def mutate(self, folder: Path, rng: Rng) -> str:
        self.path = pick(rng, sorted(folder.iterdir()))
        data = self.path.read_bytes()
        if rng.integers(8) == 0:
            self.path.write_bytes(hostile(rng, self.mark))
            return "hostile"
        self.path.write_bytes(mutated(data, rng))
        return f"{self.path.name}: bytes"

    def expect(self) -> Any:
        self.path = self.place / "test_batch2"
        return {p.name: load_batch(p.read_bytes(), p.name) for p in sorted(self.place.iterdir())}

    def read(self, folder: Path) -> Any:
        return load_batch(self.path.read_bytes(), self.path.name)

    def judge(self, value: Any, said: str, folder: Path) -> str:
        if same(value, self.expected[self.path.name]):
            return RIGHT
        other = trusted(self.path.read_bytes())
        return UNKNOWABLE if same(value, other) else WRONG


KNOWN = {("numpy", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


def trusted(blob: bytes) -> Any:
    """Returns what Python's and NumPy's own readers make of a pickle that ours has accepted."""

    def loaded(reader: Any) -> Any:
        def find_class(self: Any, module: str, name: str) -> Any:
            if (module.split(".")[0], name) in KNOWN:
                return reader.find_class(self, module, name)
            raise pickle.UnpicklingError(module)

        made = type("Reader", (reader,), {"find_class": find_class})
        return made(io.BytesIO(blob), encoding="bytes").load()

    try:
        try:
            batch = loaded(pickle.Unpickler)
        # The one in C takes memory for a number that is only named, and refuses frames that end late.
        except (MemoryError, pickle.UnpicklingError):
            batch = loaded(getattr(pickle, "_Unpickler"))  # noqa: B009
        return {k if isinstance(k, str) else str(k, "ascii"): v for k, v in batch.items()}
    except Exception as error:
        return f"it is refused: {error!r}"


class Tar(Loader):
    """cifar-10-python.tar.gz, repacked, so that its checksum is that of what it holds.

    What was changed before it was packed, and has the form of a batch, cannot be known.
    """

    name = "CIFAR-10 tar.gz"

    def make(self, folder: Path) -> None:
        self.batches = batches()
        self._pack(folder, {name: pickle.dumps(b, 2) for name, b in self.batches.items()})

    def _pack(self, folder: Path, blobs: dict[str, bytes]) -> None:
        with tarfile.open(folder / cifar10.FILE_NAME, "w:gz") as archive:
            for name, blob in blobs.items():
                info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                info.size = len(blob)
                archive.addfile(info, io.BytesIO(blob))

    def mutate(self, folder: Path, rng: Rng) -> str:
        path = folder / cifar10.FILE_NAME
        self.inside = True
        kind = int(rng.integers(6))
        if kind == 0:
            blobs = {name: pickle.dumps(b, 2) for name, b in self.batches.items()}
            name = pick(rng, sorted(blobs))
            match int(rng.integers(5)):
                case 0:
                    del blobs[name]
                case 1:
                    blobs[name] = blobs[pick(rng, sorted(blobs))]
                case 2:
                    blobs[name] = mutated(blobs[name], rng)
                case 3:
                    blobs[name] = hostile(rng, self.mark)
                case _:
                    blobs[pick(rng, ["data_batch_3", "data_batch_0", "x", "../x"])] = blobs[name]
            self._pack(folder, blobs)
            return f"members: {name}"
        if kind <= 2:
            data = gzip.decompress(path.read_bytes())
            path.write_bytes(gzip.compress(mutated(data, rng), 1))
            return "the tar"
        self.inside = False
        return damage(path, rng)

    def read(self, folder: Path) -> Any:
        path = folder / cifar10.FILE_NAME
        sha256 = (
            hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file() and not path.is_symlink()
            else "0" * 64
        )
        source = cifar10.cifar10(Storage(folder, folder), source_dir=path, sha256=sha256)
        contents = source.read()
        return {name: list(split) for name, split in contents.splits.items()}, contents.class_names

    def judge(self, value: Any, said: str, folder: Path) -> str:
        if same(value, self.expected):
            return RIGHT
        return UNKNOWABLE if self.inside and len(value[0]["train"]) == 2 * ROWS else WRONG


class Idx(Loader):
    """IDX files by gzip: what was changed before it was packed, and agrees with its header, cannot be known."""

    name = "IDX"

    def make(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        for name, shape in (("images", (5, 28, 28)), ("labels", (5,))):
            values = rng.integers(0, 10, shape, np.uint8).tobytes()
            head = b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
            (folder / f"{name}.gz").write_bytes(gzip.compress(head + values, mtime=0))

    def mutate(self, folder: Path, rng: Rng) -> str:
        path = folder / pick(rng, ["images.gz", "labels.gz"])
        self.inside = rng.integers(2) == 0
        if self.inside:
            data = mutated(gzip.decompress(path.read_bytes()), rng)
            path.write_bytes(gzip.compress(data, 1))
            return "before it was packed"
        return damage(path, rng)

    def read(self, folder: Path) -> Any:
        return {path.name: fashion_mnist.read_idx(path) for path in sorted(folder.iterdir())}

    def expect(self) -> Any:
        self.inside = False
        return self.read(self.place)

    def judge(self, value: Any, said: str, folder: Path) -> str:
        if same(value, self.expected):
            return RIGHT
        if not self.inside:
            return WRONG if len(value) == 2 else UNKNOWABLE
        for name, array in value.items():
            data = gzip.decompress((folder / name).read_bytes())
            if (
                data
                != b"\0\0\x08"
                + bytes([array.ndim])
                + struct.pack(f">{array.ndim}I", *array.shape)
                + array.tobytes()
            ):
                return WRONG
        return UNKNOWABLE


LOADERS = (Pickles, Tar, Idx)
