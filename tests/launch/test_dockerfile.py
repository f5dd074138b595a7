"""The image for GKE: what it copies and installs is there."""

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINES = [
    line.split(maxsplit=1)
    for line in (ROOT / "Dockerfile").read_text().splitlines()
    if line and not line.startswith("#")
]


def test_it_copies_what_is_there_and_installs_extras_that_exist():
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    extras = set(setup["options.extras_require"])
    copied = [name for word, rest in LINES if word == "COPY" for name in rest.split()[:-1]]
    assert {"setup.py", "setup.cfg", "diffusion_jax", "configs"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    (install,) = [rest for word, rest in LINES if word == "RUN"]
    chosen, *others = re.findall(r"[\w${}]+", install.partition("[")[2])
    (argument,) = [rest for word, rest in LINES if word == "ARG"]
    name, _, default = argument.partition("=")
    assert chosen == "${" + name + "}" and {default, *others} <= extras
    documented = re.findall(rf"{name}=(\w+)", (ROOT / "docs" / "scaling.md").read_text())
    assert set(documented) <= extras and {"tpu", "cuda"} <= set(documented)


def test_it_starts_the_command_with_a_python_that_the_package_takes():
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    assert ["ENTRYPOINT", '["diffusion-jax"]'] in LINES
    assert "diffusion-jax = " in setup["options.entry_points"]["console_scripts"]
    (image,) = [rest for word, rest in LINES if word == "FROM"]
    assert (
        f"Python :: {image.removeprefix('python:').removesuffix('-slim')}\n"
        in setup["metadata"]["classifiers"]
    )
