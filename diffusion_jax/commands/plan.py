"""`--mode=plan`: whether a training fits the devices and how fast it can be, from the compiler alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from diffusion_jax.commands.plan_report import Planned, heading, outcome, record, verdict
from diffusion_jax.experiment.planning import memory_fields, planned_training, with_changes
from diffusion_jax.experiment.training import make_training_mesh
from diffusion_jax.lifecycle import stopping
from diffusion_jax.planning import fit, program
from diffusion_jax.planning.chips import chip_of
from diffusion_jax.planning.costs import parse_price
from diffusion_jax.planning.program import Compiled
from diffusion_jax.planning.topology import topology_devices
from diffusion_jax.reporting import results
from diffusion_jax.writing.writable import check_writable


def plan(
    config: ConfigDict, workdir: Path, topology: str | None = None, price: str | None = None
) -> int:
    """Compiles the config's train step for the devices and says what follows from it; returns the exit status.

    Prints a table and writes results/plan.json in the workdir. No data are read, nothing is trained. Where the
    training does not fit, `fit.candidates` are compiled one after the other until one does.

    Args:
      config: A valid config.
      workdir: Folder of the run.
      topology: Slice of TPUs to plan for; None: the devices that are here.
      price: Price of a chip-hour, as a flag gives it; None: not known.

    Raises:
      InputError: A price that is none, an unknown topology, a config that these devices do not take, images of unknown
        shape, or workdir not writable.
    """
    chip_hour = None if price is None else parse_price(price)
    devices = topology_devices(topology) if topology else jax.devices()
    check_writable(workdir)
    mesh = make_training_mesh(config, devices)
    kind, memory = devices[0].device_kind, memory_of(devices[0], mesh.size)
    num_chips = len(devices) if topology else mesh.size
    planned = Planned(config, mesh, topology, kind, chip_of(kind), memory, num_chips, chip_hour)

    def compile_step(changes: fit.Changes) -> Compiled:
        return program.compile_step(*planned_training(with_changes(config, changes), devices))

    stopping.check()
    tried = [fit.attempt(compile_step, planned.memory)]
    first = jax.process_index() == 0
    if first:
        print(heading(planned))
        print(outcome(tried[0], planned.memory))
    if not tried[0].fits:
        candidates = fit.candidates(mesh.size, **memory_fields(config))
        for attempt in fit.search(compile_step, planned.memory, candidates):
            tried.append(attempt)
            if first:
                print(
                    f"{fit.flags(attempt.changes)}: {outcome(attempt, planned.memory)}", flush=True
                )
    stopping.check()
    if first:
        for line in verdict(planned, tried[-1]):
            print(line)
        print(results.add_result(workdir, "plan", record(planned, tried)))
    return 0


def memory_of(device: Any, num_devices: int) -> int | None:
    """Returns the bytes that a device has for a program; None if that is not known.

    Of a GPU that is here, what JAX's allocator may take; a CPU's devices share the machine's memory.
    """
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // num_devices
    try:
        limit = (device.memory_stats() or {}).get("bytes_limit")
    except jax.errors.JaxRuntimeError:  # A device of a topology.
        limit = None
    chip = chip_of(device.device_kind)
    return limit or (chip and int(chip.memory))
