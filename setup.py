"""Puts the configs of the checkout into the package; all else that a build needs to know is in setup.cfg."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies configs/ to diffusion_jax/configs, where `diffusion_jax.recipes` looks first.

    A second folder in `package_dir` would do so too, but an editable install would then be found after a folder
    of the package's name in the current one.
    """

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            package = Path(self.build_lib, "diffusion_jax")
            for path in sorted(
                [*Path("configs").glob("*.py"), *Path("configs/curves").glob("*.json")]
            ):
                target = package / path
                self.mkpath(str(target.parent))
                self.copy_file(str(path), str(target))


setup(cmdclass={"build_py": BuildWithConfigs})
