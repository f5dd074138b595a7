"""Pictures of some thirty formats: as data, as edit.images, as masks; and the index of a folder of them."""

import functools
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffusion_jax.commands import edit_inputs
from diffusion_jax.data import headers, image_file, picture
from diffusion_jax.data.sources.base import Storage
from diffusion_jax.data.sources.image_folder import image_folder
from fuzzing.loader import NOTICED, RIGHT, UNKNOWABLE, WRONG, Loader, same, stand_in
from fuzzing.mutations import Rng, damage, misplace, mutated, pick

SIZE = 16
MODES = ("RGB", "L", "P", "1", "RGBA", "LA", "I;16", "F", "I", "CMYK")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
BOMB = 4096


@functools.cache
def sound_pictures() -> dict[tuple[str, str], bytes]:
    """Returns a file of each of Pillow's formats and modes that it can write."""
    rng = np.random.default_rng(1)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    image = small.resize((48, 40), Image.Resampling.BICUBIC)
    Image.init()
    made = {}
    for kind in sorted(Image.SAVE):
        for mode in MODES:
            buffer = io.BytesIO()
            try:
                image.convert(mode).save(buffer, kind)
            except Exception:  # No such file: of this mode or without a library.
                continue
            made[kind, mode] = buffer.getvalue()
    made["PNG", "bomb"] = _bomb()
    made["EPS", "by hand"] = EPS
    made["EPS", "DOS"] = b"\xc5\xd0\xd3\xc6" + struct.pack("<7I", 32, len(EPS), 0, 0, 0, 0, 0) + EPS
    made["SVG", ""] = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    return made


def _bomb() -> bytes:
    """Returns a PNG of a few kB that stands for 16 million pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    rows = zlib.compress(bytes((BOMB + 1) * BOMB), 9)
    size = struct.pack(">IIBBBBB", BOMB, BOMB, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size)
    return start + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


class Pictures(Loader):
    """`image_file.decode`, as data and edit.images are read.

    JPEG, WebP, TIFF, BMP and GIF have no checksum of their pixels: other ones cannot be known. Those of a PNG can.
    """

    name = "pictures"
    refusals = (picture.Unreadable, OSError)

    def make(self, folder: Path) -> None:
        self.pictures = sound_pictures()
        self.kinds = sorted({kind for kind, _ in self.pictures})
        self.taken = {
            key: value for key in self.pictures if (value := self._sound(folder, key)) is not None
        }
        self.key = "PNG", "RGB"
        (folder / "photo.png").write_bytes(self.pictures[self.key])

    def _sound(self, folder: Path, key: tuple[str, str]) -> np.ndarray | None:
        path = folder / "photo.png"
        path.write_bytes(self.pictures[key])
        try:
            return self.read(folder)
        except picture.Unreadable:
            return None

    def mutate(self, folder: Path, rng: Rng) -> str:
        kind = pick(rng, ("PNG", "PNG", *self.kinds))
        self.key = pick(rng, [key for key in self.pictures if key[0] == kind])
        path = folder / "photo.png"
        path.write_bytes(self.pictures[self.key])
        if rng.integers(8) == 0:
            return f"{self.key} left alone"
        return f"{self.key}: {damage(path, rng)}"

    def read(self, folder: Path) -> np.ndarray:
        with stand_in(folder.parent / "bin", self.mark):
            return image_file.decode(folder / "photo.png", SIZE, "RGB")

    def judge(self, value: np.ndarray, said: str, folder: Path) -> str:
        if value.shape != (SIZE, SIZE, 3) or value.dtype != np.uint8:
            return WRONG
        if self.key in self.taken and same(value, self.taken[self.key]):
            return RIGHT
        # What is opened must be of a format that is named.
        with Image.open(folder / "photo.png", formats=picture.FORMATS) as image:
            return WRONG if image.format == "PNG" else UNKNOWABLE


class EditImages(Pictures):
    """`edit.images` as paths and folders; see `Pictures`."""

    name = "edit.images"

    def read(self, folder: Path) -> np.ndarray:
        with stand_in(folder.parent / "bin", self.mark):
            (path,) = edit_inputs._files([str(folder)])
            return edit_inputs._read(path, (SIZE, SIZE, 3))

    def _sound(self, folder: Path, key: tuple[str, str]) -> np.ndarray | None:
        try:
            return super()._sound(folder, key)
        except edit_inputs.InputError:
            return None

    refusals = (edit_inputs.InputError,)


class Masks(Loader):
    """`edit.mask`, in PNG, so all damage can be known."""

    name = "masks"

    def make(self, folder: Path) -> None:
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[4:9, 3:12] = 255
        Image.fromarray(mask).save(folder / "mask.png")

    def read(self, folder: Path) -> np.ndarray:
        with stand_in(folder.parent / "bin", self.mark):
            return edit_inputs.load_mask(str(folder / "mask.png"), (SIZE, SIZE, 3))

    def mutate(self, folder: Path, rng: Rng) -> str:
        if rng.integers(4):
            return damage(folder / "mask.png", rng)
        # Those that hold what no mask does.
        pixels = rng.integers(
            0, int(pick(rng, [1, 2, 100, 256])), (SIZE, SIZE, int(rng.integers(1, 5)))
        ).astype(np.uint8)
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        image.save(folder / "mask.png", pick(rng, ["PNG", "TIFF", "WEBP"]))
        self.other = pixels
        return f"another mask of {pixels.shape[-1]} bands up to {pixels.max()}"

    def judge(self, value: np.ndarray, said: str, folder: Path) -> str:
        if same(value, self.expected):
            return RIGHT
        with Image.open(folder / "mask.png") as image:
            pixels = np.asarray(image.convert("L"))
        drawn = pixels > 0 if pixels.max() == 1 else pixels >= 128
        is_word = "0 and 1" in said or "black" in said
        if not same(value, ~drawn) or (pixels.max() <= 1 and not is_word):
            return WRONG
        return NOTICED if is_word else RIGHT


class Folders(Loader):
    """A folder of pictures with classes, one of which is damaged, gone, a pipe, or in another place.

    None vanishes without a word. JPEG and BMP: see `Pictures`.
    """

    name = "image folders"

    def make(self, folder: Path) -> None:
        pictures = {key: data for key, data in sound_pictures().items() if key[1] == "RGB"}
        suffixes = {"PNG": "png", "JPEG": "jpg", "BMP": "bmp", "WEBP": "webp"}
        for i in range(8):
            kind = list(suffixes)[i % len(suffixes)]
            path = folder / "data" / f"class{i % 3}" / f"{i}.{suffixes[kind]}"
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(pictures[kind, "RGB"])
        (folder / "index").mkdir()

    def mutate(self, folder: Path, rng: Rng) -> str:
        path = pick(rng, sorted(p for p in (folder / "data").rglob("*") if p.is_file()))
        self.path = str(path.relative_to(folder / "data"))
        if rng.integers(3):
            return f"{self.path}: {damage(path, rng)}"
        what = pick(rng, ["eps", "hidden", "bytes", "long", "beside", "loop", "twice", "words"])
        match what:
            case "eps":
                path.write_bytes(EPS)
            case "hidden":
                path.rename(path.with_name(f"._{path.name}"))
            case "bytes":
                os.rename(path, os.fsencode(path.parent) + b"/\xe9\xff.png")
            case "long":
                path.rename(path.with_name("é" * 125 + path.suffix))
            case "beside":
                path.rename(folder / "data" / path.name)
            case "loop":
                (path.parent / "again").symlink_to("..")
            case "twice":
                (folder / "data" / "class7").symlink_to("class1")
            case _:
                path.rename(path.with_suffix(pick(rng, [".txt", "", ".PNG", ".avif"])))
        return f"{self.path}: {what}"

    def read(self, folder: Path) -> Any:
        data = folder / "data"
        storage = Storage(folder / "downloads", folder / "index")
        with stand_in(folder.parent / "bin", self.mark):
            source = image_folder(storage, source_dir=data, image_size=SIZE, test_fraction=0.25)
            assert source.in_place is not None
            source.in_place()
            opened = source.in_place()  # From the index.
            contents = source.read()
            rows = {
                name: [
                    (image, contents.class_names[label] if contents.class_names else "")
                    for image, label in split
                ]
                for name, split in contents.splits.items()
            }
        read = sorted((image.tobytes(), label) for split in rows.values() for image, label in split)
        said = f"{source.note} {source.no_classes} {contents.left_out} {opened.left_out}"
        return read, contents.class_names, said

    def expect(self) -> Any:
        self.path = ""
        return self.read(self.place)

    def judge(self, value: Any, said: str, folder: Path) -> str:
        read, classes, words = value
        before, names, _ = self.expected
        if read == before and classes == names:
            return RIGHT
        if len(read) < len(before):  # At least one is passed over: with a word?
            gone = not os.path.lexists(folder / "data" / self.path)
            return NOTICED if words != "None None {} {}" or gone else WRONG
        if not classes:
            return NOTICED if "no classes" in words else WRONG
        if len(read) > len(before):
            return NOTICED if "class7" in classes or "again" in words else WRONG
        return WRONG if self.path.endswith(".png") else UNKNOWABLE


class Index(Loader):
    """The index of a folder of pictures, which has a checksum."""

    name = "index of folders"
    names = ("a.png", "b.png", "c.jpg")

    def make(self, folder: Path) -> None:
        pictures = sound_pictures()
        for name, key in zip(
            self.names, (("PNG", "L"), ("EPS", "by hand"), ("JPEG", "RGB")), strict=True
        ):
            (folder / name).write_bytes(pictures[key])
        headers.headers(folder, list(self.names), folder / "index")

    def mutate(self, folder: Path, rng: Rng) -> str:
        path = folder / "index"
        if rng.integers(4) == 0:
            path.write_bytes(mutated(mutated(path.read_bytes(), rng), rng))
            return "bytes twice"
        return damage(path, rng) if rng.integers(4) else misplace(path, rng)

    def read(self, folder: Path) -> Any:
        return headers.headers(folder, list(self.names), folder / "index")

    refusals = (*Loader.refusals, OSError)


LOADERS = (Pictures, EditImages, Masks, Folders, Index)
