"""What a command needs around it: a folder to write to and to own, and programs that were compiled before."""

import tempfile
from pathlib import Path

import jax

from diffusion_jax import data, ownership
from diffusion_jax.errors import InputError
from diffusion_jax.parallel.distributed import first_decides


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


def keep_compiled_programs(cache_dir: str | None) -> None:
    """Turns on JAX's persistent compilation cache: a second start compiles next to nothing."""
    if jax.config.values.get("jax_compilation_cache_dir"):
        return  # The user has chosen one.
    root = Path(cache_dir).expanduser() if cache_dir else data.default_cache_dir()
    jax.config.update("jax_compilation_cache_dir", str(root.absolute() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
