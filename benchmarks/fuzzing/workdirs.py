"""What a run leaves in its workdir besides arrays: config, metrics, results, locks."""

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from diffusion_jax import config as config_lib
from diffusion_jax.commands import run_config
from diffusion_jax.commands.environment import check_layout
from diffusion_jax.commands.modes import MODES
from diffusion_jax.config import default_config
from diffusion_jax.experiment import build
from diffusion_jax.lifecycle import ownership
from diffusion_jax.lifecycle.owner import claim_of
from diffusion_jax.reading import metrics_rows
from diffusion_jax.reporting import results
from diffusion_jax.training import run_log
from fuzzing.loader import NOTICED, RIGHT, UNKNOWABLE, WRONG, Loader, same
from fuzzing.mutations import Rng, damage, misplace, mutated, mutated_json, pick


def strictly(text: bytes) -> Any:
    """Returns what JSON says by Python's own reader; None where that is not JSON or names a key twice."""

    def no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=no_twice)
    except (ValueError, RecursionError):
        return None


class ConfigJson(Loader):
    """config.json, as every mode but train reads it. It has no checksum: what it says instead, cannot be known."""

    name = "config.json"

    def make(self, folder: Path) -> None:
        (folder / "config.json").write_text(config_lib.to_json(default_config()))

    def read(self, folder: Path) -> dict[str, Any]:
        config = run_config.load_config(folder, (), MODES["sample"])
        build.validate(config)
        check_layout(folder)
        return dict(config_lib.fields(config))

    def judge(self, value: dict[str, Any], said: str, folder: Path) -> str:
        if same(value, self.expected):
            return RIGHT
        saved = strictly((folder / "config.json").read_bytes())
        for name, default in self.expected.items():
            group, _, leaf = name.rpartition(".")
            of_group = saved.get(group, {}) if group else saved
            # A field that it lacks is of an older version's file, and has its default.
            found = of_group.get(leaf, default)
            found = tuple(found) if isinstance(found, list) else found
            if value[name] != found and name not in ("mesh.data", "mesh.fsdp"):
                return WRONG
        return UNKNOWABLE


class Metrics(Loader):
    """metrics.jsonl, as a resume reads it: no line is lost, and damaged ones are named.

    A row without its checksum is an older version's: another number in it cannot be known.
    """

    name = "metrics.jsonl"
    rows = 40

    def make(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        rows = [
            {"step": 10 * i, "loss": float(rng.random()), "grad_norm": None, "images_per_sec": 99.5}
            for i in range(1, self.rows + 1)
        ]
        (folder / "metrics.jsonl").write_text("".join(map(metrics_rows.line_of, rows)))

    def mutate(self, folder: Path, rng: Rng) -> str:
        path = folder / "metrics.jsonl"
        if rng.integers(3) or rng.integers(8) == 0:
            return damage(path, rng)
        lines = path.read_bytes().splitlines(keepends=True)
        number = int(rng.integers(len(lines)))
        match int(rng.integers(5)):
            case 0:
                lines[number] = mutated_json(lines[number], rng).replace(b"\n", b"") + b"\n"
            case 1:
                lines[number] = mutated(lines[number], rng)
            case 2:
                lines.insert(number, pick(rng, lines))
            case 3:
                lines[number] = b""
            case _:
                other = int(rng.integers(len(lines)))
                lines[number], lines[other] = lines[other], lines[number]
        path.write_bytes(b"".join(lines))
        return f"line {number}"

    def read(self, folder: Path) -> tuple[bytes, bytes, list[dict[str, Any]]]:
        path = folder / "metrics.jsonl"
        before = path.read_bytes() if path.is_file() else b""
        check_layout(folder)
        log = run_log.RunLog(folder, start=10**9, num_steps=10**9, loggers=())
        log.close()
        aside = folder / metrics_rows.DAMAGED
        return before, aside.read_bytes() if aside.exists() else b"", log.rows

    def judge(self, value: tuple[bytes, bytes, list[Any]], said: str, folder: Path) -> str:
        before, aside, rows = value
        after = (folder / "metrics.jsonl").read_bytes()
        *whole, cut_short = before.split(b"\n")
        kept = after.split(b"\n")[:-1]
        everything = sorted(kept + aside.split(b"\n")[:-1])
        if everything not in (sorted(whole), sorted([*whole, cut_short])):
            return WRONG  # A line is lost.
        if rows != metrics_rows.read_rows(folder / "metrics.jsonl") or len(rows) != len(kept):
            return WRONG
        if aside and metrics_rows.DAMAGED not in said:
            return WRONG
        if any(rows[i]["step"] > rows[i + 1]["step"] for i in range(len(rows) - 1)):
            return WRONG
        sound = {json.dumps(row) for row in self.expected[2]}
        if {json.dumps(row) for row in rows} - sound:
            return UNKNOWABLE
        return (
            RIGHT
            if len(rows) == len(self.expected[2])
            else NOTICED
            if aside or cut_short
            else UNKNOWABLE
        )


class Results(Loader):
    """results/sample.json, to which a command adds. It has no checksum: other figures in it cannot be known."""

    name = "results/*.json"

    def make(self, folder: Path) -> None:
        for seed in range(3):
            results.add_result(
                folder, "sample", {"job": f"step8-{seed}", "nfe": 10, "seconds": 1.5}
            )

    def mutate(self, folder: Path, rng: Rng) -> str:
        if rng.integers(30) == 0:
            os.rename(folder / "results/sample.json", folder / "aside")
            os.rmdir(folder / "results")
            os.rename(folder / "aside", folder / "results")
            return misplace(folder / "results", rng)
        return damage(folder / "results/sample.json", rng)

    def read(self, folder: Path) -> Any:
        path = folder / "results/sample.json"
        self.before = path.read_bytes() if path.is_file() else b'{"earlier": []}'
        check_layout(folder)
        results.check(folder, "sample")
        results.add_result(folder, "sample", {"job": "new"})
        made = json.loads(path.read_bytes())
        made.pop("provenance")
        return made

    def judge(self, value: Any, said: str, folder: Path) -> str:
        if same(value, self.expected):
            return RIGHT
        before = strictly(self.before)
        if before is None:
            return WRONG
        earlier = before.pop("earlier")
        right = {"job": "new", "earlier": [before, *earlier] if before else earlier}
        return UNKNOWABLE if json.dumps(value) == json.dumps(right) else WRONG


class Locks(Loader):
    """lock.json of a workdir whose owner lives, or of one that is gone.

    It is refused, or taken over with a word: never without. Another pid in it cannot be known.
    """

    name = "lock.json"

    def make(self, folder: Path) -> None:
        (folder / "lock.json").write_text(claim_of("--mode=train", folder))

    def expect(self) -> None:
        """It is refused."""

    def mutate(self, folder: Path, rng: Rng) -> str:
        path = folder / "lock.json"
        self.lives = bool(rng.integers(2))
        if not self.lives:
            path.write_text(path.read_text().replace(f'"pid": {os.getpid()}', '"pid": 4194303'))
        return f"{'living' if self.lives else 'gone'} owner, {damage(path, rng)}"

    def read(self, folder: Path) -> bool:
        self.before = (
            (folder / "lock.json").read_bytes() if (folder / "lock.json").is_file() else None
        )
        with mock.patch.multiple(ownership, STALE_AFTER_SECONDS=0.02, HEARTBEAT_SECONDS=0.01):
            lock = ownership.Lock(folder / "lock.json", "a test")
            with mock.patch.object(ownership, "_held", []):
                try:
                    lock.acquire()
                    lock.check()
                finally:
                    lock.release()
        return True

    def judge(self, value: bool, said: str, folder: Path) -> str:
        left = [path.name for path in folder.iterdir() if path.name != "lock.json"]
        if left or os.path.lexists(folder / "lock.json"):
            return WRONG
        if self.before is None:
            return RIGHT if "note" in said or self.before is None else WRONG
        return NOTICED if "taken over" in said else WRONG


LOADERS = (ConfigJson, Metrics, Results, Locks)
