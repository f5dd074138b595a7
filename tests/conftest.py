"""Test set-up: eight simulated CPU devices, no silent rank promotion, a compilation cache."""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jaxtyping
import numpy as np
import pytest
from slow import slow

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Tiny programs cost far more to optimize than to run.
jax.config.update("jax_disable_most_optimizations", True)
# So do XLA's newer emitters of fused operations, to compile: half the suite's time. Other versions of XLA may not
# have the flag, and one that is not known ends the process. Commands that tests start inherit it.
if jax.__version_info__[:2] == (0, 10):
    flags = (os.environ.get("XLA_FLAGS"), "--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(flag for flag in flags if flag)

# Tracing makes many objects, of which JAX keeps most: to look through them each time takes modules that trace much
# (test_wiring, test_step) a tenth more time.
gc.set_threshold(200_000, 20, 100)


def pytest_configure(config: pytest.Config) -> None:
    """Keeps compiled programs between runs, so that a second run of the suite is fast."""
    folder = os.environ.get("DIFFUSION_JAX_TEST_CACHE") or str(config.cache.mkdir("jax"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(params=[slow("eager"), "jit"])
def compiled(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Either the identity or jax.jit: a test that uses it runs eagerly and compiled."""
    # chex.variants does this for methods of absl's TestCase alone, where pytest neither parametrizes nor hands
    # in fixtures.
    return jax.jit if request.param == "jit" else lambda function: function


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without checks of annotations, which the users of the package do not have either: for wrong arguments."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, as in a notebook; tests that run in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
