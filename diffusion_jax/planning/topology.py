"""Abstract devices of TPU slices, for which the TPU compiler works on any machine."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import jax

from diffusion_jax.errors import InputError
from diffusion_jax.planning.slices import slice_name, unknown

# Otherwise libtpu asks the cloud which TPU it runs on, and allows one process at a time, as a real TPU does. The type
# does not matter: the devices that are compiled for have the type of their topology.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def topology_devices(name: str) -> list[Any]:
    """Returns the devices of a slice, one per chip. JAX runs on the CPU from then on.

    Args:
      name: Any name that `slice_name` takes, such as "v5e:4x4" or "v5litepod-16".

    Raises:
      InputError: The TPU compiler is not installed, or does not know the slice.
    """
    by_shape = slice_name(name)
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("--topology needs the TPU's compiler, libtpu: pip install -e '.[tpu]'")
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # libtpu aborts the process for flags of other backends. Its own are in LIBTPU_INIT_ARGS.
    os.environ.pop("XLA_FLAGS", None)
    jax.config.update("jax_platforms", "cpu")  # This machine may have a TPU of another kind.
    from jax.experimental import topologies

    # On v4, as on real machines, JAX treats both cores of a chip as one device.
    options = {"chip_config_name": "megacore"} if by_shape.startswith("v4:") else {}
    try:
        topology = topologies.get_topology_desc(by_shape, platform="tpu", **options)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise unknown(name) from error
    return list(topology.devices)
