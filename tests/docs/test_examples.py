"""The examples in docstrings are what Python answers."""

from __future__ import annotations

import doctest
import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion_jax as dj

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "docs"))
import site_pages  # noqa: E402

KNOWN = {"dj": dj, "jax": jax, "jnp": jnp, "np": np}  # What examples need not import.
# Of the names at the top of the package, those that nobody makes, and one that needs a trained run.
WITHOUT = {"InputError", "RunError", "load_run"}


def examples() -> Iterator[doctest.DocTest]:
    """Yields the examples of each public name that has some."""
    finder = doctest.DocTestFinder(recurse=False)
    for namespace in site_pages.NAMESPACES[1:]:
        module = import_module(site_pages.module_name(namespace))
        for name in site_pages.public_names(namespace):
            value = getattr(module, name)
            if inspect.isroutine(value) or inspect.isclass(value):
                yield from (
                    test for test in finder.find(value, name, module, KNOWN) if test.examples
                )


class Checker(doctest.OutputChecker):
    """Takes an answer whose numbers have other last digits, as another device or version rounds them."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        number = r"\d+\.\d*(?:e[+-]?\d+)?"
        texts = [re.sub(number, "#", re.sub(r"\s", "", text)) for text in (want, got)]
        numbers = [np.array(re.findall(number, text), float) for text in (want, got)]
        return texts[0] == texts[1] and np.allclose(*numbers, rtol=1e-3)


def test_every_example_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_JAX_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    runner = doctest.DocTestRunner(Checker(), verbose=False)
    for test in examples():
        runner.run(test, out=said.append)
    assert not said, "".join(said)


def test_no_example_is_left_out_and_the_most_common_names_have_one() -> None:
    sources = (path.read_text() for path in (ROOT / "diffusion_jax").rglob("*.py"))
    found = [test.name for test in examples()]
    assert len(found) == len(set(found)) == sum(text.count("    Example:\n") for text in sources)
    assert {*site_pages.public_names("diffusion_jax")} - WITHOUT <= {*found}
