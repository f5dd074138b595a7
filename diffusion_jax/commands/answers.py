"""Messages of commands on standard error, one line per warning or error, and exit statuses."""

from __future__ import annotations

import os
import sys
import traceback

from diffusion_jax.commands.signals import EXIT_STOPPED
from diffusion_jax.errors import DISK_FULL, InputError, RunError, reason
from diffusion_jax.lifecycle import stopping


def show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Prints a warning in one line; of several processes, the first one does."""
    if "jax" in sys.modules:
        from diffusion_jax.parallel import distributed

        if distributed.is_another_than_first():
            return
    print(f"warning: {message}", file=sys.stderr)


def tell(error: BaseException) -> int:
    """Prints one line, or the traceback of an error that nobody foresaw; returns the exit status."""
    if isinstance(error, stopping.Stopped):
        print(f"{error}: stopped; run the same command to go on", file=sys.stderr)
        return EXIT_STOPPED
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        where = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror}{where}; checkpoints are intact", file=sys.stderr)
    elif isinstance(error, (InputError, RunError)):
        print(f"error: {error}", file=sys.stderr)
    elif isinstance(error, BrokenPipeError) and error.filename is None:
        _hush()
    elif isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{reason(error)}", file=sys.stderr)
    else:
        if (
            "jax" in sys.modules
        ):  # A collective operation fails like this where another process is gone.
            from diffusion_jax.parallel import peers

            peers.name_the_missing()
        traceback.print_exception(error)
    return 2 if isinstance(error, InputError) else 1


def _hush() -> None:
    """Prints nothing more to a pipe that nobody reads: `| head` has seen enough."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())
