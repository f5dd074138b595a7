"""Wheel and sdist hold all that the package needs, and the installed command runs the demo from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from diffusion_jax import recipes

ROOT = Path(__file__).parents[1]


def build(kind: str, source: Path, target: Path) -> Path:
    """Builds `kind`, "sdist" or "wheel", of a folder, as pip does, with the setuptools that is installed."""
    program = f"import sys; from setuptools import build_meta as b; b.build_{kind}(sys.argv[1])"
    target.mkdir()
    command = [sys.executable, "-c", program, str(target)]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (file,) = target.iterdir()
    return file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel made of the sdist, so that this has all that a wheel takes."""
    folder = tmp_path_factory.mktemp("build")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            copy = folder / "checkout" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((ROOT / name).read_bytes())
    sdist = build("sdist", folder / "checkout", folder / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    return build("wheel", source, folder / "wheel")


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package_the_configs_and_the_license(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    files = subprocess.run(
        ["git", "ls-files", "diffusion_jax"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    configs = {f"diffusion_jax/configs/{name}.py" for name in recipes.names()}
    assert {*files, *configs} <= held
    assert any(name.endswith("/licenses/LICENSE") for name in held)
    kinds = {Path(name).suffix for name in files} | {Path(name).name for name in files}
    assert {"py.typed", ".pyi", ".html"} <= kinds
    top = {name.partition("/")[0].partition("-")[0] for name in held}
    assert top == {"diffusion_jax"}


@pytest.mark.slow
def test_the_installed_command_trains_the_demo_by_name_from_an_empty_folder(
    wheel: Path, tmp_path: Path
) -> None:
    site, here = tmp_path / "site", tmp_path / "here"
    here.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, f"--target={site}", str(wheel)], check=True)
    environ = os.environ | {
        "PYTHONPATH": str(site),
        "DIFFUSION_JAX_CACHE": str(tmp_path / "cache"),
        "JAX_PLATFORMS": "cpu",
    }
    fields = ["num_steps=2", "batch_size=8", "sample_images=2"]
    shortened = [f"--config.train.{field}" for field in fields]
    few = ["--config.process.num_timesteps=4", "--config.model.channels=32"]
    command = [str(site / "bin" / "diffusion-jax"), "--config=digits", *shortened, *few]
    result = subprocess.run(command, cwd=here, env=environ, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (here / "runs" / "digits" / "results" / "train.json").exists()
    command = [sys.executable, "-c", "import diffusion_jax; print(diffusion_jax.__file__)"]
    found = subprocess.run(command, cwd=here, env=environ, capture_output=True, text=True)
    assert found.stdout.startswith(str(site)), "the checkout was run, not the wheel"
