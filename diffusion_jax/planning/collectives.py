"""Traffic of a compiled program between devices: number and bytes of its collective operations."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from diffusion_jax.planning.hlo import Instruction, Module, arrays, num_bytes, repeats

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# On TPUs a collective may be split over several fusions, each of which names all of it.
_CHAIN = re.compile(r"channel_id=\d+(?=.*chain_id=)")


class Traffic(NamedTuple):
    """All collectives of one kind in one run of the program on one device.

    Attributes:
      operations: Number of executed operations, including repetitions in loops.
      result_bytes: Bytes of their results.
      sent_bytes: Bytes that a device sends with ring algorithms over n devices: 2 (n - 1) / n of the result for an
        all-reduce, (n - 1) / n for an all-gather or all-to-all, n - 1 times its part for a reduce-scatter.
    """

    operations: int
    result_bytes: int
    sent_bytes: float


def traffic(module: Module) -> dict[str, Traffic]:
    """Returns the traffic by kind; groups of one device send nothing and are left out.

    Args:
      module: A compiled program.
    """
    times = repeats(module).times
    found: dict[str, Traffic] = {}
    chains: set[str] = set()
    for name, instructions in module.computations.items():
        for instruction in instructions if times[name] else ():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:  # A "-done" only waits: not counted.
                continue
            size = _group_size(instruction, module.num_devices)
            chain = _CHAIN.search(instruction.attributes)
            if size == 1 or (chain and chain[0] in chains):
                continue
            if chain:
                chains.add(chain[0])
            result = _result_bytes(instruction)
            before = found.get(kind, Traffic(0, 0, 0.0))
            found[kind] = Traffic(
                before.operations + times[name],
                before.result_bytes + times[name] * result,
                before.sent_bytes + times[name] * result * _ring(kind, size),
            )
    return found


def _ring(kind: str, size: int) -> float:
    share = (size - 1) / size
    return {
        "all-reduce": 2 * share,
        "all-gather": share,
        "reduce-scatter": size - 1.0,
        "all-to-all": share,
        "collective-permute": 1.0,
    }[kind]


def _result_bytes(instruction: Instruction) -> int:
    """Returns the bytes of the result; the tuple of a "-start" holds operands, results and possibly counters."""
    if instruction.opcode not in ("all-gather-start", "collective-permute-start"):
        return num_bytes(instruction.shape)
    parts = [array for array in arrays(instruction.shape) if array[1] or array[0] != "u32"]
    results = parts[len(parts) // 2 :]
    return sum(num_bytes(f"{kind}[{','.join(map(str, sizes))}]") for kind, sizes in results)


def _group_size(instruction: Instruction, num_devices: int) -> int:
    """Returns the number of devices in a group; 1: nothing is sent."""
    attributes = instruction.attributes
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", attributes):
        ends = re.findall(r"\{(\d+),(\d+)", pairs[1] + "}")
        return 2 if any(source != target for source, target in ends) else 1
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(iota[1])
    if axes := re.search(r"replica_groups=mesh\[(.*?)\].*?\{('.*?)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes[2])  # A partial axis states its size.
        return math.prod(int(size or sizes[name]) for name, size in parts)
    if groups := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(groups[1].split(","))
    return num_devices  # Without groups, all devices take part.
