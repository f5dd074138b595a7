"""JAX as the commands are written for it, whatever the environment says, and its cache of compiled programs."""

from __future__ import annotations

import enum
import os
import warnings
from pathlib import Path
from typing import Any

import jax

from diffusion_jax import data
from diffusion_jax.addresses import expand
from diffusion_jax.errors import InputError, shortened

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
    "jax_transfer_guard": None,
    "jax_transfer_guard_host_to_device": None,
    "jax_transfer_guard_device_to_device": None,
    "jax_transfer_guard_device_to_host": None,
}


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
    if not os.environ.get("XLA_FLAGS"):
        return
    try:
        from jax._src import xla_bridge
        from jax._src.lib import xla_client  # pyright: ignore[reportPrivateImportUsage]
    except ImportError:
        # Another version of JAX has them elsewhere; there XLA says itself what it does not know, by an abort.
        return
    if xla_bridge.backends_are_initialized():  # They were read.
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


def keep_compiled_programs(cache_dir: str | None, bucket: str | None = None) -> None:
    """Turns on JAX's persistent compilation cache: a second start compiles next to nothing.

    Args:
      cache_dir: Folder of prepared data and compiled programs; None: the default one.
      bucket: Address in its place, where the machine's disk may be lost with the machine; None: there is none.
    """
    if jax.config.values.get("jax_compilation_cache_dir"):
        return  # The user has chosen one.
    root = Path(expand(cache_dir)) if cache_dir else data.default_cache_dir()
    folder = bucket or str(root.absolute() / "compiled")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
