"""Checkpoints survive kills, damage, full disks and other device counts, bit for bit."""

import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from slow import slow, slow_after
from tiny_run import finish_all

from diffusion_jax.checkpoints import integrity, store as store_module
from diffusion_jax.checkpoints.integrity import find_damage
from diffusion_jax.checkpoints.store import CheckpointStore
from diffusion_jax.errors import InputError, RunError

Open = Callable[..., CheckpointStore]


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Open]:
    stores = []

    def open_(**options: Any) -> CheckpointStore:
        stores.append(CheckpointStore(tmp_path / "checkpoints", **options))
        return stores[-1]

    yield open_
    for store in stores:
        store.close()


@pytest.fixture
def mesh() -> Mesh:
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def make_state(seed: int = 0) -> dict[str, Any]:
    """Parts with what train states are made of: nested dicts, tuples, empty nodes, a key."""
    bits = np.random.default_rng(seed).integers(0, 2**32, (16, 24), dtype=np.uint32)
    return {
        # All bit patterns, so also NaNs with a payload and subnormal numbers.
        "params": {"dense": {"kernel": jnp.asarray(bits.view(np.float32)), "bias": jnp.ones(24)}},
        "opt_state": (jnp.int32(seed), (), {"mu": jnp.full(8, 0.1, jnp.bfloat16)}, None),
        "key": {"key": jax.random.key(seed)},
    }


def template(state: Any, sharding: jax.sharding.Sharding | None = None) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), state
    )


def raw(tree: Any) -> list[bytes]:
    """Every leaf's bytes, so that equality is of bits and NaN equals NaN."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    data = [jax.random.key_data(x) if is_key(x) else x for x in jax.tree.leaves(tree)]
    return [np.asarray(x).tobytes() for x in data]


def saved(store: CheckpointStore, *steps: int) -> None:
    for step in steps:
        store.save(step, make_state(step), {"position": step})
    store.wait()


# Written by Orbax when it commits a step, after the manifest; nothing of ours reads them.
ORBAX_OWN = {"_CHECKPOINT_METADATA", "commit_success.txt"}


def files_of(step: Any) -> list[Path]:
    """The files of a step that are of use, so that damage to them matters."""
    own = {Path(step) / name for name in ORBAX_OWN}
    return sorted(p for p in Path(step).rglob("*") if p.is_file() and p not in own)


def flip_bit(path: Any, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_what_is_restored_is_bit_for_bit_what_was_saved(open_store: Open) -> None:
    saved(open_store(), 3, 7)
    restored = open_store().restore(template(make_state()))
    assert restored is not None and (restored.step, restored.meta) == (7, {"position": 7})
    expected = make_state(7)
    assert jax.tree.structure(restored.parts) == jax.tree.structure(expected)
    assert raw(restored.parts) == raw(expected)
    older = open_store().restore(template(make_state()), step=3)
    assert older is not None and raw(older.parts) == raw(make_state(3))
    assert open_store().meta() == {"position": 7} and open_store().meta(3) == {"position": 3}


def test_an_empty_directory_has_no_checkpoint_and_reading_makes_nothing(open_store: Open) -> None:
    store = open_store()
    assert store.restore(template(make_state())) is None
    assert store.meta() is None and store.steps() == []
    assert not store.directory.exists()


@pytest.mark.parametrize("num_devices", [1, 8])
def test_a_donating_step_right_after_save_does_not_change_what_is_saved(
    open_store: Open, mesh: Mesh, num_devices: int
) -> None:
    if num_devices == 8:
        sharding = NamedSharding(mesh, PartitionSpec())
    else:
        sharding = SingleDeviceSharding(jax.devices()[0])
    # Large enough for the write to be still under way when the donated buffers are overwritten.
    state = {
        k: jax.device_put(jnp.full((1 << 20,), float(i)), sharding) for i, k in enumerate("abcd")
    }
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    jax.block_until_ready(step(jax.tree.map(jnp.copy, state)))
    store = open_store()
    expected = [np.full(1 << 20, float(i), np.float32).tobytes() for i in range(4)]
    wanted = template(state)
    store.save(1, state, {})
    for _ in range(3):
        state = step(state)
    jax.block_until_ready(state)
    restored = store.restore(wanted)
    assert restored is not None and raw(restored.parts) == expected
    # And what is restored may be donated in turn.
    after = step(restored.parts)
    assert all(
        (np.asarray(s.data) == -1).all() for x in after.values() for s in x.addressable_shards
    )


@pytest.mark.parametrize("saved_as", ["sharded", "replicated", "single"])
def test_restores_on_another_number_of_devices(open_store: Open, mesh: Mesh, saved_as: str) -> None:
    shardings = {
        "sharded": NamedSharding(mesh, PartitionSpec("data")),
        "replicated": NamedSharding(mesh, PartitionSpec()),
        "single": SingleDeviceSharding(jax.devices()[0]),
    }
    state = {"x": jnp.arange(64.0).reshape(16, 4), "n": jnp.int32(5)}
    state = {"x": jax.device_put(state["x"], shardings[saved_as]), "n": state["n"]}
    store = open_store()
    store.save(0, state, {})
    for sharding in shardings.values():
        wanted = {"x": template(state["x"], sharding), "n": template(state["n"])}
        restored = store.restore(wanted)
        assert restored is not None and restored.parts["x"].sharding == sharding
        assert raw(restored.parts) == raw(state)
        doubled = jax.jit(lambda x: 2 * x, donate_argnums=0)(restored.parts["x"])
        np.testing.assert_array_equal(doubled, 2 * np.arange(64.0).reshape(16, 4))


def test_keeps_the_newest_and_every_mth(open_store: Open) -> None:
    store = open_store(keep_last=2, keep_every=4)
    saved(store, *range(1, 8))
    assert store.steps() == [4, 6, 7]
    assert sorted(p.name for p in store.directory.iterdir()) == ["4", "6", "7"]


def test_saving_a_step_again_leaves_it_as_it_is(open_store: Open) -> None:
    store = open_store(keep_last=1)
    saved(store, 1)
    store.save(1, make_state(2), {"position": 2})
    assert store.meta() == {"position": 1} and store.steps() == [1]


@pytest.mark.parametrize("per_file", [1, slow(4)])
def test_a_flipped_bit_in_any_file_is_found_and_the_older_checkpoint_used(
    per_file: int, open_store: Open, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store()
    saved(store, 1, 2)
    names = [p.relative_to(store.directory / "2") for p in files_of(store.directory / "2")]
    assert {"manifest.json", "meta.json", "params/_METADATA"} <= {p.as_posix() for p in names}
    rng = np.random.default_rng(0)
    cases = [(name, at) for name in names for at in (*rng.random(2), 0.0, 1.0)[:per_file]]
    for number, (name, at) in enumerate(cases, start=1):
        path = store.directory / "2" / name
        flip_bit(path, int(at * (8 * len(path.read_bytes()) - 1)))
        caplog.clear()
        restored = store.restore(template(make_state()))
        assert restored is not None and restored.step == 1, name
        assert raw(restored.parts) == raw(make_state(1))
        assert f"{store.directory}/2 is damaged" in caplog.text
        aside = store.directory / "damaged" / f"2-{number}"
        assert str(aside) in caplog.text and len(files_of(aside)) == len(names)
        if number < len(cases):
            shutil.copytree(aside, store.directory / "2")
            flip_bit(path, int(at * (8 * len(path.read_bytes()) - 1)))
    assert store.steps() == [1]


def test_every_bit_of_manifest_and_meta_counts(open_store: Open) -> None:
    store = open_store()
    saved(store, 1)
    for name, only in (("manifest.json", None), ("meta.json", ["meta.json"])):
        path = store.directory / "1" / name
        # Odd, so that each of a byte's bits has its turn: digits, names, quotes and white space.
        for bit in range(0, 8 * len(path.read_bytes()), 61):
            flip_bit(path, bit)
            assert find_damage(store.directory / "1", only) is not None, (name, bit)
            flip_bit(path, bit)
    assert find_damage(store.directory / "1") is None


@pytest.mark.parametrize("harm", slow_after(1, ["truncate", "append", "remove"]))
def test_a_truncated_longer_or_missing_file_is_found(
    open_store: Open, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store()
    saved(store, 1, 2)
    for path in files_of(store.directory / "2"):
        content = path.read_bytes()
        if harm == "remove":
            path.unlink()
        else:
            path.write_bytes(content[:-1] if harm == "truncate" else content + b"\0")
        caplog.clear()
        restored = store.restore(template(make_state()))
        assert restored is not None and restored.step == 1
        assert path.name in caplog.text
        newest = max(Path(store.directory / "damaged").iterdir(), key=lambda p: int(p.name[2:]))
        shutil.move(newest, store.directory / "2")
        path.write_bytes(content)


def test_if_no_checkpoint_is_sound_it_refuses_now_and_at_the_next_start(open_store: Open) -> None:
    store = open_store()
    saved(store, 1, 2)
    for step in (1, 2):
        flip_bit(store.directory / str(step) / "params" / "manifest.ocdbt", 100)
    for _ in range(2):
        with pytest.raises(RunError, match="every checkpoint in .* is damaged"):
            open_store().restore(template(make_state()))
        with pytest.raises(RunError, match="every checkpoint in .* is damaged"):
            open_store().meta()
    assert len(list((store.directory / "damaged").iterdir())) == 2


def test_asking_for_one_step_gives_that_step_or_an_error(open_store: Open) -> None:
    store = open_store()
    saved(store, 1, 2, 3)
    with pytest.raises(InputError, match="no checkpoint 9 in .*; available: 1, 2, 3"):
        store.restore(template(make_state()), step=9)
    flip_bit(store.directory / "2" / "meta.json", 3)
    with pytest.raises(RunError, match="checkpoint .*2 is damaged"):
        store.restore(template(make_state()), step=2)
    assert store.steps() == [1, 3]


def test_a_template_that_does_not_fit_is_refused_by_name(open_store: Open) -> None:
    store = open_store()
    saved(store, 1)
    wanted = template(make_state())
    wanted["params"]["dense"]["bias"] = jax.ShapeDtypeStruct((25,), jnp.float32)
    wanted["extra"] = jax.ShapeDtypeStruct((), jnp.int32)
    wanted["opt_state"] = wanted["opt_state"][:1]
    with pytest.raises(InputError) as error:
        store.restore(wanted)
    for part in (
        "params/dense/bias is float32[24] there and float32[25] here",
        "extra is absent there and int32[] here",
        "opt_state/2/mu is bfloat16[8] there and absent here",
    ):
        assert part in str(error.value)
    assert store.steps() == [1]


def test_a_part_is_restored_alone_and_the_others_need_not_be_sound_or_there(
    open_store: Open,
) -> None:
    store = open_store()
    saved(store, 1, 2)
    wanted = {"params": template(make_state())["params"]}
    flip_bit(store.directory / "2" / "opt_state" / "manifest.ocdbt", 99)
    shutil.rmtree(store.directory / "2" / "key")
    restored = store.restore(wanted)
    assert restored is not None and restored.step == 2 and restored.meta == {"position": 2}
    assert raw(restored.parts) == raw(make_state(2)["params"])
    # Damage to the part itself counts as ever, and so does any damage where all parts are wanted.
    flip_bit(store.directory / "2" / "params" / "manifest.ocdbt", 99)
    restored = store.restore(wanted)
    assert restored is not None and restored.step == 1
    flip_bit(store.directory / "1" / "opt_state" / "manifest.ocdbt", 99)
    with pytest.raises(RunError, match="is damaged"):
        store.restore(template(make_state()))


def test_a_part_costs_the_reading_of_its_own_files_only(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted where Python reads (the checksums); what Orbax reads lies in the part's own folder."""
    store = open_store()
    large = {"params": jnp.zeros(1000), "opt_state": jnp.zeros(100_000)}
    store.save(1, large, {})
    store.wait()
    read: list[int] = []
    digest = integrity.hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        read.append(os.fstat(file.fileno()).st_size)
        return digest(file, name)

    monkeypatch.setattr(integrity.hashlib, "file_digest", counted)
    shutil.rmtree(store.directory / "1" / "opt_state")
    restored = store.restore({"params": template(large["params"])})
    assert restored is not None and 4000 < sum(read) < 40_000


def test_a_leaf_without_a_sharding_goes_to_the_first_device(open_store: Open) -> None:
    store = open_store()
    saved(store, 1)
    bare = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), make_state())
    restored = store.restore(bare)
    assert restored is not None and raw(restored.parts) == raw(make_state(1))


@pytest.mark.parametrize("options", [{"keep_last": 0}, {"keep_every": 0}])
def test_keeping_nothing_is_refused(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="must be at least 1, got 0"):
        CheckpointStore(tmp_path, **options)


def write_as_before(folder: Path, state: Any, meta: Any) -> None:
    """A checkpoint as it was before Orbax's manager wrote them: parts, JSON and manifest, and nothing else."""
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, use_zarr3=True)
    for name, tree in state.items():
        handler.save(epath.Path(folder) / name, args=ocp.args.PyTreeSave(tree))
        handler.finalize(epath.Path(folder) / name)
    leaves = {
        name: {
            jax.tree_util.keystr(path, simple=True, separator="/"): (
                f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
            )
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for name, tree in state.items()
    }
    (folder / "meta.json").write_text(json.dumps({"step": 1, "meta": meta, "leaves": leaves}))
    files = {
        path.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
        }
        for path in folder.rglob("*")
        if path.is_file()
    }
    manifest = json.dumps({"files": files}, indent=1, sort_keys=True) + "\n"
    (folder / "manifest.json").write_text(manifest)


def test_checkpoints_of_the_time_before_are_read_kept_and_deleted_like_others(
    open_store: Open,
) -> None:
    store = open_store(keep_last=2)
    folder = Path(store.directory / "1")
    folder.mkdir(parents=True)
    write_as_before(folder, make_state(1), {"position": 1})
    Path(store.directory / ".tmp-0-9").mkdir()  # What a kill left at that time.
    restored = store.restore(template(make_state()))
    assert restored is not None and (restored.step, restored.meta) == (1, {"position": 1})
    assert raw(restored.parts) == raw(make_state(1))
    saved(store, 2)
    assert sorted(os.listdir(store.directory)) == ["1", "2"]
    flip_bit(folder / "params" / "manifest.ocdbt", 99)
    saved(store, 3)
    assert sorted(os.listdir(store.directory)) == ["2", "3"]


def test_other_names_in_the_directory_are_not_checkpoints(open_store: Open) -> None:
    store = open_store()
    saved(store, 10)
    for name in ("007", "5.orbax-checkpoint-tmp", ".tmp-0-11", "٣"):
        (store.directory / name).mkdir()
    (store.directory / "12").write_text("a file")
    assert store.steps() == [10]


@pytest.mark.parametrize("how", ["swapped", "copied", "linked"])
def test_a_checkpoint_under_another_steps_name_is_not_used(
    open_store: Open, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    store = open_store()
    saved(store, 10, 40, 60)
    folder = Path(store.directory)
    if how == "swapped":
        (folder / "40").rename(folder / "x")
        (folder / "60").rename(folder / "40")
        (folder / "x").rename(folder / "60")
        wrong, expected = {"60": 40, "40": 60}, 10
    elif how == "copied":
        shutil.copytree(folder / "40", folder / "80")
        wrong, expected = {"80": 40}, 60
    else:
        (folder / "80").symlink_to("40")
        wrong, expected = {"80": 40}, 60
    with pytest.raises(RunError, match="is damaged"):
        open_store().meta(int(next(iter(wrong))))
    restored = open_store().restore(template(make_state()))
    assert restored is not None and (restored.step, restored.meta) == (
        expected,
        {"position": expected},
    )
    for name, step in wrong.items():
        assert f"{folder / name} is damaged (meta.json: it is the checkpoint of step {step})" in (
            caplog.text
        )
    assert sorted(os.listdir(folder / "damaged")) == sorted(f"{name}-1" for name in wrong)


def test_a_folder_of_something_else_is_left_alone_whatever_its_name(
    open_store: Open, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(keep_last=1)
    photos = [Path(store.directory) / name for name in ("0", "2023", "damaged", ".tmp-photos")]
    for folder in photos:
        folder.mkdir(parents=True)
        (folder / "a.png").write_text("a photo")
        (folder / "rome").mkdir()
        (folder / "rome" / "b.png").write_text("another")
    assert store.steps() == [] and store.meta() is None
    saved(store, 1, 2)
    assert open_store().meta() == {"position": 2} and open_store().steps() == [2]
    saved(open_store(keep_last=1), 3000)
    for folder in photos:
        assert (folder / "a.png").exists() and (folder / "rome" / "b.png").exists(), folder
    assert f"{photos[1]} is not a checkpoint, and is left alone" in caplog.text
    with pytest.raises(
        RunError, match="2023: the existing folder is not a checkpoint; move it away"
    ):
        saved(open_store(), 2023)


@pytest.mark.parametrize("change", [{"leaves": "x"}, {"leaves": {"params": 1}}, {"meta": None}])
def test_sealed_json_of_another_form_is_damage(open_store: Open, change: dict[str, Any]) -> None:
    store = open_store()
    saved(store, 1, 2)
    path = Path(store.directory) / "2"
    content = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**content, **change}))
    (path / "manifest.json").unlink()
    integrity.write_manifest(epath.Path(path))
    restored = open_store().restore(template(make_state()))
    assert restored is not None and restored.step == 1


def test_a_file_with_a_steps_name_is_named(
    open_store: Open, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store()
    saved(store, 1, 2)
    path = Path(store.directory) / "2"
    shutil.rmtree(path)
    path.touch()
    assert open_store().meta() == {"position": 1}
    assert f"{path} is not a checkpoint, and is left alone" in caplog.text


@pytest.mark.parametrize("name", ["manifest.json", "meta.json", "params/manifest.ocdbt"])
@pytest.mark.parametrize("instead", ["pipe", "folder"])
def test_a_pipe_or_a_folder_in_place_of_a_file_is_damage(
    open_store: Open, name: str, instead: str
) -> None:
    store = open_store()
    saved(store, 1, 2)
    path = Path(store.directory) / "2" / name
    path.unlink()
    os.mkfifo(path) if instead == "pipe" else path.mkdir()
    restored = store.restore(template(make_state()))
    assert restored is not None and restored.step == 1
    assert os.listdir(Path(store.directory) / "damaged") == ["2-1"]


def fail_with_full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("then", ["wait", "save"])
def test_a_full_disk_in_the_background_is_one_clear_line_and_harms_nothing(
    open_store: Open, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    store = open_store(keep_last=1)
    saved(store, 1)
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_manifest", fail_with_full_disk)
        store.save(2, make_state(2), {})
        with pytest.raises(RunError) as error:
            store.wait() if then == "wait" else store.save(3, make_state(3), {})
    assert str(error.value) == (
        f"cannot save checkpoint {store.directory}/2: no space left on device; "
        "earlier checkpoints are intact"
    )
    assert os.listdir(store.directory) == ["1"]
    restored = store.restore(template(make_state()))
    assert restored is not None and raw(restored.parts) == raw(make_state(1))
    saved(store, 4)
    assert store.steps() == [4]


def test_too_little_free_space_is_found_before_anything_is_written(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    saved(store, 1)
    usage = shutil.disk_usage(store.directory)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(RunError, match="no space left on device"):
        store.save(2, make_state(2), {})
    assert os.listdir(store.directory) == ["1"]


COMMON = """
import os, resource, shutil, signal, sys
import jax
import jax.numpy as jnp
from diffusion_jax.checkpoints import arrays, store as store_module
from diffusion_jax.checkpoints.store import CheckpointStore
from diffusion_jax.errors import RunError

def state(value):
    return {"a": jnp.full((300_000,), value), "b": jnp.full((7,), value)}

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMON + textwrap.dedent(script), *map(str, arguments)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
def test_a_kill_at_any_stage_leaves_whole_checkpoints_only(tmp_path: Path) -> None:
    stages = {
        "before the arrays are joined": "type(arrays.handler()).finalize = die",
        "between data and manifest": "store_module.write_manifest = die",
        "between manifest and rename": "os.rename = die",
        "after the rename": "store_module.sync = die",
    }
    processes = [
        start(
            f"""
            store = CheckpointStore(sys.argv[1])
            store.save(1, state(1.0), {{}})
            store.wait()
            {kill}
            store.save(2, state(2.0), {{}})
            store.wait()
            """,
            tmp_path / str(number),
        )
        for number, kill in enumerate(stages.values())
    ]
    value = jnp.zeros((300_000,))
    for number, (stage, process) in enumerate(zip(stages, processes, strict=True)):
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, stderr
        store = CheckpointStore(tmp_path / str(number))
        expected = 2 if stage == "after the rename" else 1
        assert store.steps() == list(range(1, expected + 1)), stage
        restored = store.restore({"a": template(value), "b": template(value[:7])})
        assert restored is not None and restored.step == expected
        assert (np.asarray(restored.parts["a"]) == expected).all()
        store.save(3, restored.parts, {})
        store.close()
        assert all(p.name.isdecimal() for p in store.directory.iterdir()), "leftovers go"
        assert not (store.directory / "damaged").exists()


def test_a_write_that_the_operating_system_refuses_is_reported(tmp_path: Path) -> None:
    process = start(
        """
        store = CheckpointStore(sys.argv[1])
        store.save(1, state(1.0), {})
        store.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        store.save(2, state(2.0), {})
        try:
            store.wait()
        except RunError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        print(store.restore(state(0.0)).step)
        store.save(3, state(3.0), {})
        store.close()
        print(sorted(os.listdir(sys.argv[1])))
        """,
        tmp_path,
    )
    stdout, stderr = process.communicate(timeout=300)
    message, step, files = stdout.splitlines()
    assert message.startswith(f"cannot save checkpoint {tmp_path}/2: "), stderr
    assert "file too large" in message and message.endswith("; earlier checkpoints are intact")
    assert (step, files) == ("1", "['1', '3']")


@pytest.mark.slow
def test_two_processes_save_and_restore_together(tmp_path: Path) -> None:
    script = """
        import numpy as np
        from diffusion_jax.parallel.distributed import exchange
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.config.update("jax_num_cpu_devices", 2)
        jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", 2, int(sys.argv[3]))
        mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        spec = lambda *names: jax.NamedSharding(mesh, jax.P(*names))
        host = np.arange(32.0, dtype=np.float32).reshape(8, 4)
        state = {
            k: jax.make_array_from_callback(host.shape, s, lambda i: host[i])
            for k, s in {"sharded": spec("data"), "replicated": spec()}.items()
        }
        store = CheckpointStore(sys.argv[1], keep_last=2)
        for step in (1, 2, 3):
            store.save(step, state, {"step": step})
        store.save(3, state, {"step": 33})
        store.wait()
        if jax.process_index() == 0:
            with open(f"{sys.argv[1]}/3/meta.json", "ab") as file:
                file.write(b" ")
        restored = store.restore(state)
        for name, array in restored.parts.items():
            for shard in array.addressable_shards:
                np.testing.assert_array_equal(shard.data, host[shard.index])
        print(restored.step, store.meta(), store.steps())
        # A process that cannot write its part: all are told, none commits.
        def fail(*_, **__):
            raise OSError(28, "No space left on device")
        import orbax.checkpoint as ocp
        write = ocp.PyTreeCheckpointHandler.async_save
        async def late(*args, **options):
            import concurrent.futures
            failed = concurrent.futures.Future()
            failed.set_exception(OSError(28, "No space left on device"))
            return [*await write(*args, **options), failed]
        if jax.process_index() == 1:
            ocp.PyTreeCheckpointHandler.async_save = late
        store.save(4, state, {})
        try:
            store.wait()
        except RunError as error:
            print(error)
        print(store.steps(), flush=True)
        # A process that cannot even begin to write: likewise.
        if jax.process_index() == 1:
            ocp.PyTreeCheckpointHandler.async_save = fail
        store.save(5, state, {})
        try:
            store.wait()
        except RunError as error:
            print(error)
        # Process 0 cannot complete what both have written.
        ocp.PyTreeCheckpointHandler.async_save = write
        whole, store_module.write_manifest = store_module.write_manifest, fail
        store.save(7, state, {})
        try:
            store.wait()
        except RunError as error:
            print(error)
        store_module.write_manifest = whole
        # No space: process 0 finds it, and the other must not begin alone.
        usage = shutil.disk_usage
        if jax.process_index() == 0:
            shutil.disk_usage = fail
        try:
            store.save(6, state, {})
        except RunError as error:
            print(error)
        print(store.steps(), flush=True)
        # Process 0 cannot delete what is old; the next save is one of both all the same.
        if jax.process_index() == 0:
            shutil.disk_usage = usage
        store.save(8, state, {})
        store.wait()
        if jax.process_index() == 0:
            store._manager._checkpoint_deleter.delete_steps = fail
        store.save(9, state, {})
        store.wait()
        store.save(10, state, {})
        store.wait()
        print(store.steps(), flush=True)
        # A process that fails alone does not wait for the others, which do not know of it.
        store.save(11, state, {})
        if jax.process_index() == 0:
            store.close()
        exchange("closed", "")
        print(store.steps(), flush=True)
        store.close()
        jax.distributed.shutdown()
        """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(script, tmp_path, port, rank) for rank in range(2)]
    finished = finish_all(processes)
    assert [outcome.status for outcome in finished] == [0, 0], finished
    outputs = [
        [line for line in outcome.out.splitlines() if "Gloo" not in line] for outcome in finished
    ]
    for rank, (*lines, undeleted, alone) in enumerate(outputs):
        restored, error, steps, not_begun, unsealed, no_space, still = lines
        assert (undeleted, alone) == ("[9, 10]", "[10, 11]")
        assert restored == "2 {'step': 2} [2]"
        why = ("process 1: no space left on device", "no space left on device")[rank]
        assert error.startswith(f"cannot save checkpoint {tmp_path}/4: {why};")
        assert steps == still == "[2]"
        assert not_begun.startswith(f"cannot save checkpoint {tmp_path}/5: {why};")
        why = ("no space left on device", "process 0: no space left on device")[rank]
        assert unsealed.startswith(f"cannot save checkpoint {tmp_path}/7: {why};")
        assert no_space.startswith(f"cannot save checkpoint {tmp_path}/6: {why};")


def test_the_manifest_lists_every_file_with_its_checksum(open_store: Open) -> None:
    store = open_store()
    saved(store, 1)
    directory = store.directory / "1"
    listed = json.loads((directory / "manifest.json").read_bytes())["files"]
    names = {p.relative_to(directory).as_posix() for p in files_of(directory)}
    assert set(listed) == names - {"manifest.json"}
    sums = subprocess.run(
        ["sha256sum", *sorted(listed)], cwd=directory, capture_output=True, text=True, check=True
    )
    for line in sums.stdout.splitlines():
        checksum, name = line.split(maxsplit=1)
        assert listed[name]["sha256"] == checksum


def test_a_damaged_one_that_cannot_be_moved_is_skipped_but_not_taken_for_a_new_one(
    open_store: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store()
    saved(store, 1, 2)
    flip_bit(store.directory / "2" / "meta.json", 9)

    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(type(store.directory), "rename", refuse)
    with caplog.at_level(logging.WARNING):
        assert store.meta() == {"position": 1}
    assert "cannot be moved aside: permission denied" in caplog.text
    restored = store.restore(template(make_state()))
    assert restored is not None and restored.step == 1
    with pytest.raises(RunError, match="checkpoint .*/2: a damaged one exists that cannot be"):
        store.save(2, make_state(2), {})
    assert store.steps() == [1, 2]
