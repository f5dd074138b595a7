"""What a command needs around it: a folder to write to, and programs that were compiled before."""

import tempfile
from pathlib import Path

import jax

from diffusion_jax import data
from diffusion_jax.errors import InputError


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


def keep_compiled_programs(cache_dir: str | None) -> None:
    """Turns on JAX's persistent compilation cache: a second start compiles next to nothing."""
    if jax.config.values.get("jax_compilation_cache_dir"):
        return  # The user has chosen one.
    root = Path(cache_dir).expanduser() if cache_dir else data.default_cache_dir()
    jax.config.update("jax_compilation_cache_dir", str(root.absolute() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
