"""What decides JAX's results is the same whatever the environment says of it."""

import os
import subprocess
import sys
import warnings

import jax
import pytest
from slow import slow

from diffusion_jax.commands.jax_settings import PINNED, pin_settings

OTHERWISE = {
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 5,
    "jax_enable_x64": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_disable_jit": True,
    "jax_no_execution": True,
    "jax_legacy_prng_key": "error",
    "jax_transfer_guard": "disallow",
    "jax_transfer_guard_host_to_device": "disallow",
    "jax_transfer_guard_device_to_device": "log",
    "jax_transfer_guard_device_to_host": "log",
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


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "XLA_FLAGS",
            "--xla_nothing=1",
            "XLA_FLAGS is '--xla_nothing=1': Unknown flag in XLA_FLAGS: --xla_nothing=1",
        ),
        ("JAX_NUM_CPU_DEVICES", "x", 'Invalid value "x" for JAX flag jax_num_cpu_devices'),
        slow("JAX_NUM_CPU_DEVICES", "0", "JAX_NUM_CPU_DEVICES is 0; it must be at least 1"),
        ("JAX_ENABLE_X64", "maybe", "invalid truth value 'maybe' for environment 'JAX_ENABLE_X64'"),
    ],
)
def test_what_jax_does_not_take_in_the_environment_is_refused_in_one_line(
    name: str, value: str, said: str
) -> None:
    command = [
        sys.executable,
        "-m",
        "diffusion_jax.main",
        "--config=configs/digits.py",
        "--mode=plan",
    ]
    command.append("--config.data.name=tfds:nothing_of_that_name")
    ended = subprocess.run(
        command, env={**os.environ, name: value}, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ") and ended.stderr.endswith(f"{said}\n")
    assert len(ended.stderr.splitlines()) == 1
