"""The start of the command, as `diffusion-jax` and as `python -m diffusion_jax.main`: what comes before its imports."""

from __future__ import annotations

from diffusion_jax.commands import huge_pages, signals


def begin() -> None:
    """Handles signals from now on, after one more start with huge pages where these help.

    It comes before the imports of the command, so that they are done once, and signals meanwhile count.
    """
    signals.block()
    huge_pages.start_again_with_huge_pages()
    signals.install()


def main() -> int:
    """Runs `diffusion-jax`, the installed command, and returns its exit status."""
    begin()
    from diffusion_jax.main import main

    return main()
