"""Ways to damage a file: its bytes, its JSON, its place in the folder."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

Rng = np.random.Generator

# What may stand in the place of a value of JSON.
WILD: list[Any] = [
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**63, -(2**64), 10**400, 0.5, -0.0, 1e308, 5e-324),
    *(float("nan"), float("inf"), -float("inf"), "", "x", "a\nb", "\0", "é", "\ud800", "../../x"),
    *("none", "1e400", "~", "A" * 5000, [], [0], [[]], [1, "x", None], {}, {"__class__": 1}),
    *({"__init__": {}}, {"": 0}, [[[[[1]]]]], list(range(300))),
]
SIGNATURES = (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"\x93NUMPY", b"ustar", b"\x1f\x8b")


def pick(rng: Rng, items: Any) -> Any:
    """Returns one of a sequence; NumPy's own `choice` would make an array of them."""
    return items[int(rng.integers(len(items)))]


def mutated(data: bytes, rng: Rng) -> bytes:
    """Returns other bytes: flips, cuts, splices, insertions, zeros, half of them where a header is."""
    if not data:
        return rng.bytes(8)
    out = bytearray(data)
    at = _place(data, rng)
    length = int(min(len(data) - at, 2 ** rng.integers(0, 8)))
    match int(rng.integers(10)):
        case 0 | 1 | 2:
            out[at] ^= 1 << int(rng.integers(8))
        case 3:
            for place in rng.integers(len(data), size=int(rng.integers(2, 9))):
                out[place] ^= 1 << int(rng.integers(8))
        case 4:
            del out[at:]
        case 5:
            out[at:at] = rng.bytes(int(rng.integers(1, 17)))
        case 6:
            out[at : at + length] = bytes(length)
        case 7:
            del out[at : at + length]
        case 8:
            start = int(rng.integers(len(data)))
            out[at : at + length] = data[start : start + length]
        case _:
            out[at : at + 4] = pick(
                rng, [b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\1"]
            )
    return bytes(out)


def _place(data: bytes, rng: Rng) -> int:
    """Returns where to damage: anywhere, in the first bytes, or after a signature."""
    found = [data.find(signature, int(rng.integers(len(data)))) for signature in SIGNATURES]
    found = [place for place in found if place >= 0]
    kind = rng.integers(4)
    if kind == 0 and found:
        return min(len(data) - 1, pick(rng, found) + int(rng.integers(60)))
    if kind == 1:
        return int(rng.integers(min(64, len(data))))
    return int(rng.integers(len(data)))


def mutated_json(text: bytes, rng: Rng) -> bytes:
    """Returns JSON with another value, name or nesting somewhere."""
    value = json.loads(text)
    spots = list(_spots(value))
    if not spots:
        return json.dumps(pick(rng, WILD)).encode()
    parent, name = pick(rng, spots)
    match int(rng.integers(8)):
        case 0 | 1 | 2:
            parent[name] = pick(rng, WILD)
        case 3:
            del parent[name]
        case 4:
            other, place = pick(rng, spots)
            parent[name], other[place] = other[place], parent[name]
        case 5:
            if isinstance(parent, dict):
                parent[
                    pick(
                        rng, ["__class__", "__dict__", "lock", "", "a.b", name + "s", name.upper()]
                    )
                ] = parent.pop(name)
        case 6:  # The same name twice.
            key, twice = json.dumps(str(name)), json.dumps(pick(rng, WILD[:12]))
            return _text(value).replace(key.encode(), f"{key}: {twice}, {key}".encode(), 1)
        case _:
            parent[name] = "PLACE"
            depth = int(pick(rng, [3, 900, 5000, 100_000]))
            deep = pick(rng, [b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth])
            return _text(value).replace(b'"PLACE"', deep)
    if rng.integers(20) == 0:
        value = pick(rng, WILD)
    return _text(value)


def _text(value: Any) -> bytes:
    try:
        return (json.dumps(value, indent=2) + "\n").encode()
    except ValueError:  # An object that was put into itself, or an integer of too many digits.
        return b"[" + b"9" * 5000 + b"]"


def _spots(value: Any) -> Any:
    """Yields (object or list, name or index) of all values in one."""
    if isinstance(value, (dict, list)):
        for name in value if isinstance(value, dict) else range(len(value)):
            yield value, name
            yield from _spots(value[name])


def misplace(path: Path, rng: Rng) -> str:
    """Puts something else in the place of a file; returns what."""
    path.unlink()
    what = pick(
        rng, ["nothing", "empty", "folder", "pipe", "loop", "dangling link", "link to a device"]
    )
    match what:
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
            (path / "inside").touch()
        case "pipe":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path.name)
        case "dangling link":
            path.symlink_to("nowhere")
        case "link to a device":
            path.symlink_to("/dev/zero")
    return what


def damage(path: Path, rng: Rng) -> str:
    """Damages a file in one of the ways above; returns how, in a word."""
    if rng.integers(12) == 0:
        return misplace(path, rng)
    data = path.read_bytes()
    if path.suffix == ".json" and rng.integers(3) > 0:
        try:
            path.write_bytes(mutated_json(data, rng))
            return "JSON"
        except ValueError:
            pass
    path.write_bytes(mutated(data, rng))
    return "bytes"


def fresh(sound: Path, place: Path) -> Path:
    """Makes a folder a copy of a sound one."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    elif os.path.lexists(place):
        place.unlink()
    shutil.copytree(sound, place, symlinks=True)
    return place
