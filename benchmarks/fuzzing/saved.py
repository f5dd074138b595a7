"""Checkpoints: files damaged, steps renamed, copied and linked, JSON sealed again after a change."""

import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from diffusion_jax.checkpoints.integrity import write_manifest
from diffusion_jax.checkpoints.store import CheckpointStore
from fuzzing.loader import NOTICED, RIGHT, UNKNOWABLE, WRONG, Loader, same
from fuzzing.mutations import Rng, damage, mutated_json, pick


class Checkpoints(Loader):
    """Two checkpoints of a run. Other JSON in one whose manifest was written anew, cannot be known."""

    name = "checkpoints"
    steps = (20, 40)

    def make(self, folder: Path) -> None:
        store, params = CheckpointStore(folder / "run"), {}
        for step in self.steps:
            params = {
                "dense": {"kernel": step + jnp.arange(12.0).reshape(3, 4), "bias": jnp.ones(4)}
            }
            store.save(
                step,
                {"params": params, "rest": {"count": jnp.int32(step)}},
                {"config": {"step": step}},
            )
        store.close()
        self.template = {
            "params": jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        }

    def mutate(self, folder: Path, rng: Rng) -> str:
        run = folder / "run"
        step = str(pick(rng, self.steps))
        self.resealed = False
        files = sorted(path for path in run.rglob("*") if path.is_file())
        match int(rng.integers(12)):
            case 0:
                other = pick(rng, ["60", "040", "x", "-1", str(10**30), "damaged", "٣"])
                (run / step).rename(run / other)
                return f"{step} moved to {other}"
            case 1:
                shutil.copytree(run / step, run / "60")
                return f"{step} copied to 60"
            case 2:
                (run / "60").symlink_to(pick(rng, [step, "60", "nowhere", "..", "/"]))
                return "60 a link"
            case 3:
                (run / "20").rename(run / "x")
                (run / "40").rename(run / "20")
                (run / "x").rename(run / "40")
                return "20 and 40 exchanged"
            case 4:
                path = run / step / pick(rng, ["meta.json", "manifest.json"])
                path.write_bytes(mutated_json(path.read_bytes(), rng))
                self.resealed = path.name == "meta.json"
                if self.resealed:
                    (run / step / "manifest.json").unlink()
                    write_manifest(epath.Path(run / step))
                return f"{step}/{path.name} written anew"
            case 5:
                folders = sorted(path for path in run.rglob("*") if path.is_dir())
                path = pick(rng, folders)
                shutil.rmtree(path)
                if rng.integers(2):
                    path.touch()
                return f"{path.relative_to(run)} gone"
            case 6:
                one = pick(rng, files)
                other = pick(rng, files)
                data = one.read_bytes()
                one.write_bytes(other.read_bytes())
                other.write_bytes(data)
                return f"{one.relative_to(run)} exchanged with {other.relative_to(run)}"
            case 7:
                photos = run / pick(rng, ["2023", "0", "60"])
                photos.mkdir()
                (photos / pick(rng, ["a.jpg", "manifest.json", "meta.json"])).write_bytes(
                    rng.bytes(9)
                )
                return f"{photos.name} of something else"
        path = pick(rng, files)
        return f"{path.relative_to(run)}: {damage(path, rng)}"

    def read(self, folder: Path) -> Any:
        store = CheckpointStore(folder / "run")
        try:
            meta = store.meta()
            found = store.restore(self.template)
        finally:
            store.close()
        if found is None or meta is None:
            return None
        dense = found.parts["params"]["dense"]
        return found.step, np.asarray(dense["kernel"]), np.asarray(dense["bias"]), found.meta

    def judge(self, value: Any, said: str, folder: Path) -> str:
        if value is None:
            return WRONG
        step, kernel, bias, meta = value
        right = np.float32(step) + np.arange(12, dtype=np.float32).reshape(3, 4)
        if (
            step not in self.steps
            or not same(kernel, right)
            or not same(bias, np.ones(4, np.float32))
        ):
            return WRONG
        if meta != {"config": {"step": step}}:
            return UNKNOWABLE if self.resealed else WRONG
        if step == self.steps[-1]:
            return RIGHT
        # The newest is not there, as is said; or was taken away.
        left = os.path.lexists(folder / "run" / "40")
        return NOTICED if "40" in said or not left else WRONG


LOADERS = (Checkpoints,)
