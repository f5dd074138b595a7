"""What `--mode=plan` prints and writes: the verdict, the figures of a device, and what the training takes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from ml_collections import ConfigDict

from diffusion_jax.experiment.planning import assumed_images, source_of_shape
from diffusion_jax.planning import fit
from diffusion_jax.planning.chips import Chip
from diffusion_jax.planning.costs import Cost, cost
from diffusion_jax.planning.fit import Attempt
from diffusion_jax.planning.program import Compiled
from diffusion_jax.planning.roofline import (
    Roofline,
    estimate,
    gflop_per_image,
    kernel_seconds,
    roofline,
)


@dataclasses.dataclass(frozen=True)
class Planned:
    """A training and the devices that it is planned for.

    Attributes:
      config: A valid config.
      mesh: The devices that compute.
      topology: Name of the slice that they are of; None: they are here.
      device_kind: JAX's name of their kind.
      chip: Their published figures; None: not known.
      memory: Bytes of one for a program; None: not known.
      num_chips: How many are paid for: all of a slice.
      chip_hour: Price of an hour of one; None: not known.
    """

    config: ConfigDict
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
    topology: str | None
    device_kind: str
    chip: Chip | None
    memory: int | None
    num_chips: int
    chip_hour: float | None


def heading(planned: Planned) -> str:
    config, mesh = planned.config, planned.mesh
    where = f" ({planned.topology})" if planned.topology else ""
    shape, _ = assumed_images(config)
    return (
        f"{mesh.size} x {planned.device_kind}{where}, mesh data {mesh.shape['data']} x fsdp "
        f"{mesh.shape['fsdp']}; batch {config.train.batch_size} of {'x'.join(map(str, shape))} images "
        f"({source_of_shape(config)}), {config.model.dtype}"
    )


def verdict(planned: Planned, last: Attempt) -> list[str]:
    """Returns the table of the last attempt, and what made it fit."""
    lines = [] if last.step is None else [_table(last.step, planned)]
    if last.fits is None:
        changed = f" with {fit.flags(last.changes)}" if last.changes else ""
        lines.append(
            f"whether it fits{changed} is not known: a GPU's compiler alone knows the activations; plan it there"
        )
    elif last.fits and last.changes:
        lines.append(f"it fits with {fit.flags(last.changes)}")
    elif last.fits is False:
        lines.append(
            "no change that was tried makes it fit; more devices, or a smaller model or batch, may"
        )
    return lines


def record(planned: Planned, tried: list[Attempt]) -> dict[str, Any]:
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
                **(_figures(attempt.step, planned) if attempt.step else {}),
            }
            for attempt in tried
        ],
    }


def outcome(attempt: Attempt, memory: int | None) -> str:
    """Returns the verdict on an attempt in one line."""
    verdict = {True: "fits", False: "does not fit", None: "may fit"}[attempt.fits]
    needed = "more" if attempt.needed is None else _size(attempt.needed)
    seconds = ""
    if step := attempt.step:
        done = "without activations, lowered" if step.lowered else "compiled"
        seconds = f", {done} in {step.seconds:.0f} s"
    return f"{verdict}: {needed} of {'unknown' if memory is None else _size(memory)}{seconds}"


def _size(num_bytes: int) -> str:
    unit, name = (2**30, "GiB") if num_bytes >= 2**30 else (2**20, "MiB")
    return f"{num_bytes / unit:.2f} {name}"


def _memory(step: Compiled) -> dict[str, int]:
    state = {name: step.state[name] for name in ("parameters", "optimizer", "averages")}
    if step.lowered:
        return {**state, "batch": step.batch, "total": step.total}
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


def _figures(step: Compiled, planned: Planned) -> dict[str, Any]:
    chip, config = planned.chip, planned.config
    least = roofline(step, chip, config.model.dtype) if chip else None
    return {
        "mesh": step.mesh,
        "num_parameters": step.num_parameters,
        "memory": _memory(step),
        "flops": step.flops,
        "gflop_per_image": gflop_per_image(step, config.train.batch_size),
        "bytes_accessed": step.bytes_accessed,
        "cycles": step.cycles,
        "kernels": step.kernels._asdict(),
        "expected_seconds": chip and estimate(step, chip),
        "collectives": {kind: moved._asdict() for kind, moved in step.collectives.items()},
        "unknown_loops": step.unknown_loops,
        "compile_seconds": None if step.lowered else step.seconds,
        "bound": least and _bound(least, config.train.batch_size),
        "cost": {source: taken._asdict() for source, taken in _costs(step, planned).items()},
    }


def _costs(step: Compiled, planned: Planned) -> dict[str, Cost]:
    """Returns what all steps take by each estimate that there is: the bound's, and the compiler's."""
    config, chip = planned.config, planned.chip
    if chip is None:
        return {}
    seconds = {"at_best": roofline(step, chip, config.model.dtype).step}
    if expected := estimate(step, chip):
        seconds["expected"] = expected
    return {
        source: cost(one, config.train.num_steps, planned.num_chips, planned.chip_hour)
        for source, one in seconds.items()
    }


_SOURCES = {"at_best": "at best", "expected": "as the compiler expects"}


def _cost_line(source: str, taken: Cost) -> str:
    price = "" if taken.price is None else f", for {taken.price:,.2f}"
    return (
        f"  {_SOURCES[source]}: {taken.hours:,.2f} hours, {taken.chip_hours:,.2f} chip-hours{price}"
    )


def _bound(least: Roofline, batch_size: int) -> dict[str, Any]:
    return {
        **dataclasses.asdict(least),
        "step": least.step,
        "limited_by": least.limited_by,
        "images_per_second": batch_size / least.step,
    }


def _table(step: Compiled, planned: Planned) -> str:
    rows = [f"{step.num_parameters:,} parameters; a device:"]
    rows += [f"  {name:12} {_size(size):>12}" for name, size in _memory(step).items()]
    if step.lowered:
        rows.append(
            "  (a roofline alone: no activations, and of the memory's traffic the state, read and written once)"
        )
    else:
        rows.append("  (temporaries are activations and a copy of the parameters for gradients)")
    rows += _work(step, planned.config)
    if planned.chip is None:
        rows.append("peak figures of this device are not known, so no bound of its speed")
        return "\n".join(rows)
    rows += _speed(step, planned.chip, planned.config)
    rows.append(f"{planned.config.train.num_steps:,} steps:")
    rows += [_cost_line(source, taken) for source, taken in _costs(step, planned).items()]
    return "\n".join(rows)


def _work(step: Compiled, config: ConfigDict) -> list[str]:
    rows = [f"{gflop_per_image(step, config.train.batch_size):.2f} GFLOP an image"]
    for kind, moved in step.collectives.items():
        rows.append(f"{moved.operations} x {kind}: {_size(moved.result_bytes)} a step")
    if step.unknown_loops:
        rows.append(f"{step.unknown_loops} loops of unknown length are counted once")
    return rows


def _speed(step: Compiled, chip: Chip, config: ConfigDict) -> list[str]:
    rows = []
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
        if step.kernels.counted:
            rows.append(
                f"  of it {1e3 * kernel_seconds(step, chip):.3f} ms are {step.kernels.counted} kernels at the peak of "
                "matrix products"
            )
        if step.kernels.uncounted:
            rows.append(f"  without {step.kernels.uncounted} custom calls, whose work is not known")
    return rows
