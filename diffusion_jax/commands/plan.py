"""`--mode=plan`: whether a training fits the devices and how fast it can be, without running it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from diffusion_jax.commands.plan_report import Planned, heading, outcome, record, verdict
from diffusion_jax.experiment.planning import (
    memory_fields,
    planned_training,
    training_elsewhere,
    with_changes,
)
from diffusion_jax.experiment.training import make_training_mesh
from diffusion_jax.lifecycle import stopping
from diffusion_jax.planning import fit, lowered, program
from diffusion_jax.planning.chips import chip_of
from diffusion_jax.planning.costs import parse_price
from diffusion_jax.planning.program import Compiled
from diffusion_jax.planning.slices import Gpus, gpus_of
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
      topology: Slice of TPUs, or GPUs, to plan for; None: the devices that are here.
      price: Price of a chip-hour, as a flag gives it; None: not known.

    Raises:
      InputError: A price that is none, an unknown topology, a config that these devices do not take, images of unknown
        shape, or workdir not writable.
    """
    chip_hour = None if price is None else parse_price(price)
    check_writable(workdir)
    gpus = gpus_of(topology) if topology else None
    planned, compile_step = (
        _on_gpus(config, topology, gpus, chip_hour)
        if gpus
        else _on_devices(config, topology, chip_hour)
    )
    stopping.check()
    tried = [fit.attempt(compile_step, planned.memory)]
    first = jax.process_index() == 0
    if first:
        print(heading(planned))
        print(outcome(tried[0], planned.memory))
    if tried[0].fits is False:
        for attempt in fit.search(compile_step, planned.memory, _candidates(planned, bool(gpus))):
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


CompileStep = Callable[[fit.Changes], Compiled]


def _on_devices(
    config: ConfigDict, topology: str | None, chip_hour: float | None
) -> tuple[Planned, CompileStep]:
    """Returns what is planned for devices that are here, or of a slice that there is a compiler for."""
    devices = topology_devices(topology) if topology else jax.devices()
    mesh = make_training_mesh(config, devices)
    kind, memory = devices[0].device_kind, memory_of(devices[0], mesh.size)
    num_chips = len(devices) if topology else mesh.size

    def compile_step(changes: fit.Changes) -> Compiled:
        return program.compile_step(*planned_training(with_changes(config, changes), devices))

    planned = Planned(config, mesh, topology, kind, chip_of(kind), memory, num_chips, chip_hour)
    return planned, compile_step


def _on_gpus(
    config: ConfigDict, topology: str | None, gpus: Gpus, chip_hour: float | None
) -> tuple[Planned, CompileStep]:
    """Returns what is planned for GPUs that are not here, by the step as lowered alone."""
    jax.config.update("jax_platforms", "cpu")  # This machine may have GPUs of another kind.
    kind, chip = gpus.device_kind, gpus.chip
    _, _, mesh = training_elsewhere(config, gpus.number)

    def lower_step(changes: fit.Changes) -> Compiled:
        return lowered.lower_step(*training_elsewhere(with_changes(config, changes), gpus.number))

    memory = int(chip.memory)
    return Planned(config, mesh, topology, kind, chip, memory, gpus.number, chip_hour), lower_step


def _candidates(planned: Planned, state_alone: bool) -> list[fit.Changes]:
    """Returns changes that may make it fit; of those, where only the state's size is known, the ones that divide it."""
    found = fit.candidates(planned.mesh.size, **memory_fields(planned.config))
    return [one for one in found if not state_alone or one.keys() <= {"mesh.fsdp", "mesh.data"}]


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
