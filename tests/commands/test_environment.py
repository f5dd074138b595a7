"""What decides JAX's results is the same whatever the environment says of it."""

import warnings

import jax
import pytest

from diffusion_jax.commands.environment import PINNED, pin_settings

OTHERWISE = {
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 5,
    "jax_enable_x64": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_disable_jit": True,
    "jax_no_execution": True,
    "jax_legacy_prng_key": "error",
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_setting_that_decides_results_is_set_back_with_one_warning(name: str) -> None:
    jax.config.update(name, OTHERWISE[name])
    try:
        with pytest.warns(UserWarning, match=f"of the environment, {name.upper()}=.* is not used"):
            pin_settings()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pin_settings()  # It is as it should be.
    finally:
        jax.config.update(name, PINNED[name])


def test_all_settings_are_tried() -> None:
    assert OTHERWISE.keys() == PINNED.keys()
