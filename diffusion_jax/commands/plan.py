"""`--mode=plan`: whether a training fits the devices and how fast it can be, from the compiler alone."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from diffusion_jax.experiment.planning import (
    assumed_images,
    memory_fields,
    planned_training,
    source_of_shape,
    with_changes,
)
from diffusion_jax.experiment.training import make_training_mesh
from diffusion_jax.lifecycle import stopping
from diffusion_jax.planning import fit, program
from diffusion_jax.planning.chips import Chip, chip_of
from diffusion_jax.planning.fit import Attempt
from diffusion_jax.planning.program import Compiled
from diffusion_jax.planning.roofline import Roofline, estimate, gflop_per_image, roofline
from diffusion_jax.planning.topology import topology_devices
from diffusion_jax.reporting import results
from diffusion_jax.writing.writable import check_writable


@dataclasses.dataclass(frozen=True)
class _Planned:
    """A training and the devices that it is planned for.

    Attributes:
      config: A valid config.
      mesh: The devices.
      topology: Name of the slice that they are of; None: they are here.
      memory: Bytes of one for a program; None: not known.
    """

    config: ConfigDict
    mesh: jax.sharding.Mesh
    topology: str | None
    memory: int | None

    @property
    def device_kind(self) -> str:
        return self.mesh.devices.flat[0].device_kind

    @property
    def chip(self) -> Chip | None:
        return chip_of(self.device_kind)


def plan(config: ConfigDict, workdir: Path, topology: str | None = None) -> int:
    """Compiles the config's train step for the devices and says what follows from it; returns the exit status.

    Prints a table and writes results/plan.json in the workdir. No data are read, nothing is trained. Where the
    training does not fit, `fit.candidates` are compiled one after the other until one does.

    Args:
      config: A valid config.
      workdir: Folder of the run.
      topology: Slice of TPUs to plan for; None: the devices that are here.

    Raises:
      InputError: An unknown topology, a config that these devices do not take, images of unknown shape, or workdir not
        writable.
    """
    devices = topology_devices(topology) if topology else jax.devices()
    check_writable(workdir)
    mesh = make_training_mesh(config, devices)
    planned = _Planned(config, mesh, topology, memory_of(devices[0], mesh.size))

    def compile_step(changes: fit.Changes) -> Compiled:
        return program.compile_step(*planned_training(with_changes(config, changes), devices))

    stopping.check()
    tried = [fit.attempt(compile_step, planned.memory)]
    first = jax.process_index() == 0
    if first:
        print(_heading(planned))
        print(_outcome(tried[0], planned.memory))
    if not tried[0].fits:
        candidates = fit.candidates(mesh.size, **memory_fields(config))
        for attempt in fit.search(compile_step, planned.memory, candidates):
            tried.append(attempt)
            if first:
                print(
                    f"{fit.flags(attempt.changes)}: {_outcome(attempt, planned.memory)}", flush=True
                )
    stopping.check()
    if first:
        for line in _verdict(planned, tried[-1]):
            print(line)
        print(results.add_result(workdir, "plan", _record(planned, tried)))
    return 0


def _heading(planned: _Planned) -> str:
    config, mesh = planned.config, planned.mesh
    where = f" ({planned.topology})" if planned.topology else ""
    shape, _ = assumed_images(config)
    return (
        f"{mesh.size} x {planned.device_kind}{where}, mesh data {mesh.shape['data']} x fsdp "
        f"{mesh.shape['fsdp']}; batch {config.train.batch_size} of {'x'.join(map(str, shape))} images "
        f"({source_of_shape(config)}), {config.model.dtype}"
    )


def _verdict(planned: _Planned, last: Attempt) -> list[str]:
    """Returns the table of the last attempt, and what made it fit."""
    lines = [] if last.step is None else [_table(last.step, planned.chip, planned.config)]
    if last.fits and last.changes:
        lines.append(f"it fits with {fit.flags(last.changes)}")
    elif not last.fits:
        lines.append(
            "no change that was tried makes it fit; more devices, or a smaller model or batch, may"
        )
    return lines


def _record(planned: _Planned, tried: list[Attempt]) -> dict[str, Any]:
    """Returns what results/plan.json holds."""
    config, last = planned.config, tried[-1]
    return {
        "topology": planned.topology,
        "device_kind": planned.device_kind,
        "devices": planned.mesh.size,
        "image_shape": assumed_images(config)[0],
        "image_shape_from": source_of_shape(config),
        "batch_size": config.train.batch_size,
        "dtype": config.model.dtype,
        "memory_limit": planned.memory,
        "fits": tried[0].fits,
        "flags": fit.flags(last.changes) if last.fits else None,
        "plans": [
            {
                "changes": attempt.changes,
                "fits": attempt.fits,
                "needed": attempt.needed,
                **(_figures(attempt.step, planned.chip, config) if attempt.step else {}),
            }
            for attempt in tried
        ],
    }


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


def _outcome(attempt: Attempt, memory: int | None) -> str:
    verdict = "fits" if attempt.fits else "does not fit"
    needed = "more" if attempt.needed is None else _size(attempt.needed)
    seconds = f", compiled in {attempt.step.seconds:.0f} s" if attempt.step else ""
    return f"{verdict}: {needed} of {'unknown' if memory is None else _size(memory)}{seconds}"


def _size(num_bytes: int) -> str:
    unit, name = (2**30, "GiB") if num_bytes >= 2**30 else (2**20, "MiB")
    return f"{num_bytes / unit:.2f} {name}"


def _memory(step: Compiled) -> dict[str, int]:
    state = {name: step.state[name] for name in ("parameters", "optimizer", "averages")}
    return {
        **state,
        "batch": step.batch,
        # On TPUs arrays are padded to tiles of 8 x 128.
        "padding": max(0, step.arguments - sum(step.state.values()) - step.batch),
        "activations": step.activations,
        "temporaries": step.temporaries,
        "code": step.code,
        "total": step.total,
    }


def _figures(step: Compiled, chip: Chip | None, config: ConfigDict) -> dict[str, Any]:
    least = roofline(step, chip, config.model.dtype) if chip else None
    return {
        "mesh": step.mesh,
        "memory": _memory(step),
        "flops": step.flops,
        "gflop_per_image": gflop_per_image(step, config.train.batch_size),
        "bytes_accessed": step.bytes_accessed,
        "cycles": step.cycles,
        "expected_seconds": chip and estimate(step, chip),
        "collectives": {kind: moved._asdict() for kind, moved in step.collectives.items()},
        "unknown_loops": step.unknown_loops,
        "compile_seconds": step.seconds,
        "bound": least and _bound(least, config.train.batch_size),
    }


def _bound(least: Roofline, batch_size: int) -> dict[str, Any]:
    return {
        **dataclasses.asdict(least),
        "step": least.step,
        "limited_by": least.limited_by,
        "images_per_second": batch_size / least.step,
    }


def _table(step: Compiled, chip: Chip | None, config: ConfigDict) -> str:
    rows = ["a device:"]
    rows += [f"  {name:12} {_size(size):>12}" for name, size in _memory(step).items()]
    rows.append("  (temporaries are activations and a copy of the parameters for gradients)")
    rows.append(f"{gflop_per_image(step, config.train.batch_size):.2f} GFLOP an image")
    for kind, moved in step.collectives.items():
        rows.append(f"{moved.operations} x {kind}: {_size(moved.result_bytes)} a step")
    if step.unknown_loops:
        rows.append(f"{step.unknown_loops} loops of unknown length are counted once")
    if chip is None:
        rows.append("peak figures of this device are not known, so no bound of its speed")
        return "\n".join(rows)
    least = roofline(step, chip, config.model.dtype)
    for name in ("compute", "memory", "interconnect"):
        rows.append(f"  {name:12} {1e3 * getattr(least, name):9.3f} ms")
    rows.append(
        f"at best {1e3 * least.step:.3f} ms a step, limited by {least.limited_by}: "
        f"{config.train.batch_size / least.step:.0f} images/s"
    )
    if seconds := estimate(step, chip):
        total = sum(step.cycles.values())
        most = ", ".join(f"{name} {n / total:.0%}" for name, n in list(step.cycles.items())[:4])
        rows.append(
            f"the compiler expects {1e3 * seconds:.3f} ms, one operation after the other ({most}) and "
            f"without what is sent: {config.train.batch_size / seconds:.0f} images/s"
        )
    return "\n".join(rows)
