"""What a command needs around it: a folder to write to and to own, and programs that were compiled before."""

import enum
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
from jax._src import xla_bridge
from jax._src.lib import xla_client  # pyright: ignore[reportPrivateImportUsage]

from diffusion_jax import data
from diffusion_jax.addresses import expand
from diffusion_jax.errors import InputError, shortened
from diffusion_jax.lifecycle import ownership
from diffusion_jax.parallel.distributed import first_decides

# What a run has in its workdir.
_FOLDERS = ("checkpoints", "samples", "edits", "results", "tensorboard")
_FILES = ("config.json", "metrics.jsonl", "metrics.damaged.jsonl", "loss.png")


def check_layout(workdir: Path) -> None:
    """Looks whether something else lies where a run has a folder or a file, before there is work that would be lost.

    Raises:
      InputError: It does.
    """
    for names, is_right, what in (
        (_FOLDERS, os.path.isdir, "folder"),
        (_FILES, os.path.isfile, "file"),
    ):
        for path in (workdir / name for name in names):
            if os.path.lexists(path) and not is_right(path):
                raise InputError(f"{path} is not a {what}; move it away")


# Settings of JAX by environment that decide results, types, or whether a program runs at all.
PINNED = {
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_disable_jit": False,
    "jax_no_execution": False,
    "jax_legacy_prng_key": "allow",
}


def check_writable(workdir: Path) -> None:
    """Makes the workdir.

    Raises:
      InputError: It cannot be made or written to.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise InputError(f"--workdir: cannot write to {workdir}: {error.strerror}") from error


def own(folder: Path, mode: str) -> None:
    """Makes the folder and this command its owner until it ends; process 0 does it for all.

    Raises:
      InputError: It cannot be made or written to, or another command owns it.
    """

    def take() -> None:
        check_writable(folder)
        ownership.own(folder, f"--mode={mode}")

    first_decides("own a folder", take)


def pin_settings() -> None:
    """Sets what decides JAX's results and types to what the commands are written for; warns of what was set otherwise.

    So a run does not depend on the environment: it resumes, and draws the same images, on another machine.
    """
    set_otherwise = []
    for name, value in PINNED.items():
        if name in jax.config.values and _plain(jax.config.values[name]) != value:
            set_otherwise.append(f"{name.upper()}={_plain(jax.config.values[name])}")
            jax.config.update(name, value)
    if set_otherwise:
        warnings.warn(
            f"of the environment, {', '.join(set_otherwise)} is not used, since results would depend on it",
            stacklevel=2,
        )


def check_xla_flags() -> None:
    """Has a child read XLA_FLAGS first: XLA ends the process that reads a flag which it does not know.

    Raises:
      InputError: There is such a flag.
    """
    # In a program that has used JAX, they were read.
    if not os.environ.get("XLA_FLAGS") or xla_bridge.backends_are_initialized():
        return
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of forks; this child does nothing else.
        child = os.fork()
    if child == 0:
        try:
            os.dup2(writing, 2)
            xla_client.CompileOptions()
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as said:
        text = said.read().decode(errors="replace")
    if os.waitpid(child, 0)[1] != 0:
        what = text.partition("\n")[0].rpartition("] ")[2]
        raise InputError(f"XLA_FLAGS is {shortened(os.environ['XLA_FLAGS'])}: {what}")


def _plain(value: Any) -> Any:
    """Returns a setting as it is written: some are members of an enumeration."""
    return value.value if isinstance(value, enum.Enum) else value


def keep_compiled_programs(cache_dir: str | None) -> None:
    """Turns on JAX's persistent compilation cache: a second start compiles next to nothing."""
    if jax.config.values.get("jax_compilation_cache_dir"):
        return  # The user has chosen one.
    root = Path(expand(cache_dir)) if cache_dir else data.default_cache_dir()
    jax.config.update("jax_compilation_cache_dir", str(root.absolute() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
