"""Lines about compilations that take long."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.commands import compiling
from diffusion_jax.commands.compiling import Announcer
from diffusion_jax.parallel import distributed, sharding
from diffusion_jax.parallel.map_batches import map_batches


@pytest.fixture
def told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one announcer of this process, whichever test was first to need it, tells at once."""
    monkeypatch.setattr(compiling, "AFTER", 0.0)
    compiling.announce_long_compilations()


def long_program(x: jax.Array, base: float) -> jax.Array:
    for i in range(300):  # Each a different operation, so that XLA is busy for a while.
        x = jnp.sin(x * base + i) @ x
    return x


@pytest.mark.usefixtures("told_at_once")
@pytest.mark.parametrize("devices", [1, 2])
def test_a_compilation_is_told_once_by_the_name_of_what_is_compiled(
    devices: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw(x: jax.Array) -> tuple[jax.Array]:
        return (long_program(x, time.time()),)  # No earlier test has left it in the cache.

    mesh = sharding.make_mesh(devices, 1, devices=jax.devices()[:devices])
    map_batches(draw, mesh, 2)((), (np.ones((2, 3, 3), np.float32),))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "the sampler" in line]
    assert line.startswith("compiling the sampler, which takes a while")


def test_the_cache_is_named_only_for_a_program_that_is_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "AFTER", 0.1)
    announcer, cache = Announcer(), jax.config.values["jax_compilation_cache_dir"]
    for kept in (True, False):
        announcer.begin(compiling._COMPILATION, 0.0, fun_name="jit(train_step)")
        if kept:
            announcer.note(compiling._KEPT)
        time.sleep(0.5)
        announcer.end(compiling._COMPILATION, 0.2)
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"{second}; it is kept for the next start in {cache}"
    assert second == "compiling the train step, which takes a while"


def test_nothing_is_said_of_a_short_compilation_nor_by_another_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    announcer = Announcer()
    for after, first in ((0.1, True), (0.0, False)):
        monkeypatch.setattr(compiling, "AFTER", after)
        monkeypatch.setattr(distributed, "is_another_than_first", lambda first=first: not first)
        announcer.begin(compiling._COMPILATION, 0.0, fun_name="jit(train_step)")
        if first:
            announcer.end(compiling._COMPILATION, 0.0)
        time.sleep(0.3)
    assert capsys.readouterr().err == ""
