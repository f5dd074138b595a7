"""Peak performance of chips, as published by their makers, and the known slices of TPUs.

Peaks are for dense matrix products in bfloat16, and in float32 as JAX multiplies it by default: on TPUs in one pass of
bfloat16, on NVIDIA's GPUs in TF32. `interconnect` is the bandwidth of all links of one chip in one direction.
"""

from __future__ import annotations

import dataclasses

TERA, GIGA, GIB = 1e12, 1e9, 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak performance of one JAX device.

    Attributes:
      name: Common name.
      flops: FLOP/s by dtype of the computation.
      memory: Memory in bytes; on GPUs the allocator has less (`memory_stats`).
      bandwidth: Memory bandwidth in bytes/s.
      interconnect: Bytes/s sent to its neighbors.
      clock: Clock of a TPU's core in cycles/s; None: unknown.
    """

    name: str
    flops: dict[str, float]
    memory: float
    bandwidth: float
    interconnect: float
    clock: float | None = None


def _tpu(
    name: str, peak: float, memory: float, bandwidth: float, gigabits: float, units: int | None
) -> Chip:
    flops = {"bfloat16": peak * TERA, "float32": peak * TERA}
    # Each of a matrix unit's 128 x 128 cells does one multiply-add per cycle.
    clock = peak * TERA / (2 * 128**2 * units) if units else None
    return Chip(name, flops, memory * GIB, bandwidth * GIGA, gigabits * GIGA / 8, clock)


def _gpu(
    name: str, peaks: tuple[float, float], memory: float, bandwidth: float, link: float
) -> Chip:
    flops = {"bfloat16": peaks[0] * TERA, "float32": peaks[1] * TERA}
    return Chip(name, flops, memory * GIGA, bandwidth * GIGA, link * GIGA)


# Inter-chip interconnect in Gbit/s, of all links of a chip in one direction; then 128 x 128 matrix units per chip.
_V4 = _tpu("TPU v4", 275.0, 32.0, 1200.0, 2400.0, 8)  # cloud.google.com/tpu/docs/v4
_V5E = _tpu("TPU v5e", 197.0, 16.0, 819.0, 1600.0, 4)  # cloud.google.com/tpu/docs/v5e
_V5P = _tpu("TPU v5p", 459.0, 95.0, 2765.0, 4800.0, 8)  # cloud.google.com/tpu/docs/v5p
_V6E = _tpu("TPU v6e", 918.0, 32.0, 1640.0, 3584.0, None)  # cloud.google.com/tpu/docs/v6e
# NVLink in GB/s in one direction: half of the bidirectional figure of the data sheets.
# "NVIDIA H100 Tensor Core GPU" data sheet, SXM5, without sparsity.
_H100 = _gpu("H100 SXM", (989.4, 494.7), 80.0, 3350.0, 450.0)
# "NVIDIA H200 Tensor Core GPU" data sheet, SXM, without sparsity.
_H200 = _gpu("H200 SXM", (989.4, 494.7), 141.0, 4800.0, 450.0)
# "NVIDIA A100 Tensor Core GPU" data sheet, SXM4, without sparsity.
_A100_40 = _gpu("A100 40GB SXM", (312.0, 156.0), 40.0, 1555.0, 300.0)
_A100_80 = _gpu("A100 80GB SXM", (312.0, 156.0), 80.0, 2039.0, 300.0)

# Chips by JAX's `device_kind`. Variants with other clocks or links, such as those for PCIe, are not included.
CHIPS = {
    "TPU v4": _V4,
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA H200": _H200,
    "NVIDIA A100-SXM4-40GB": _A100_40,
    "NVIDIA A100-SXM4-80GB": _A100_80,
}

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
# Slices that Google Cloud rents, by generation. The compiler takes other shapes too, such as v4:4x4x12.
TOPOLOGIES = {"v4": _CUBES, "v5e": _FLAT, "v5p": _CUBES, "v6e": _FLAT}


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip of a device kind; None if it is unknown, as for CPUs."""
    return CHIPS.get(device_kind)
