"""Huge pages for XLA's buffers on the CPU: the command starts itself once more with a setting of glibc.

XLA takes the memory of a step's temporary arrays anew in each step, and glibc returns it to the system
afterwards. So the system maps and clears the same hundreds of MiB again and again, 4 KiB a page fault. With
glibc.malloc.hugetlb=1 glibc asks for pages of 2 MiB. It reads that setting only when a process starts.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Mapping
from pathlib import Path

OPT_OUT = "DIFFUSION_JAX_NO_REEXEC"  # Set to anything: the command stays as it was started.
TUNABLE = "glibc.malloc.hugetlb"
COMMAND = "diffusion_jax.main"
INSTALLED = "diffusion-jax"
POLICY = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def start_again_with_huge_pages() -> None:
    """Replaces this process by the same command with huge pages, once, or returns if they are not to be had.

    Process id, arguments, interpreter flags, folder, open files and so the exit status stay. It returns at once
    in a notebook, a test or a script, which did not start as the command. Call it before
    anything is imported that takes long.
    """
    environ = with_huge_pages(os.environ)
    if environ and is_the_command() and system_has_them() and runs_on_cpu(os.environ):
        # Where it fails, say for a limit on the environment's size, the command runs without.
        with contextlib.suppress(OSError):
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)


def with_huge_pages(environ: Mapping[str, str]) -> dict[str, str] | None:
    """Returns the environment with the setting; None if it is there, was ruled out, or would not be read."""
    tunables = environ.get("GLIBC_TUNABLES", "")
    if OPT_OUT in environ or TUNABLE in tunables or "malloc" in environ.get("LD_PRELOAD", ""):
        return None
    setting = ":".join(filter(None, (tunables, f"{TUNABLE}=1")))
    # The second start leaves it at that, even if a wrapper of the interpreter resets GLIBC_TUNABLES.
    return {**environ, "GLIBC_TUNABLES": setting, OPT_OUT: "1"}


def is_the_command() -> bool:
    """Whether this process is `python -m diffusion_jax.main` or `diffusion-jax`, and nothing around it."""
    installed = os.path.basename(sys.argv[0]) == INSTALLED
    end = [*(sys.argv[:1] if installed else ("-m", COMMAND)), *sys.argv[1:]]
    return bool(sys.executable) and sys.orig_argv[-len(end) :] == end


def system_has_them() -> bool:
    """Whether this is Linux, with a glibc that knows the setting (2.35), and gives huge pages to those who ask.

    Where it gives them to all, or to none, the setting changes nothing.
    """
    if sys.platform != "linux":
        return False
    try:
        library, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        known = library == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)
        return known and "[madvise]" in POLICY.read_text()
    except (ValueError, OSError):  # Another C library; a kernel without huge pages.
        return False


def runs_on_cpu(environ: Mapping[str, str]) -> bool:
    """Whether JAX will compute on the CPU: it is told to, or no plugin for another device is installed."""
    if platforms := environ.get("JAX_PLATFORMS"):
        return platforms.split(",")[0] == "cpu"
    plugins = importlib.util.find_spec("jax_plugins")
    folders = (plugins and plugins.submodule_search_locations) or ()
    return not any(pkgutil.iter_modules(folders)) and importlib.util.find_spec("libtpu") is None
