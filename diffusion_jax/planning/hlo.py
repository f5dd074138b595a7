"""Parser of optimized HLO text: computations, their instructions, and execution counts.

XLA's own cost analysis counts the body of a loop once. Here a computation's count is that of its caller, times the
trip count of a loop if the compiler knows it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from typing import NamedTuple

_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = ")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_ON_CHIP = re.compile(
    r"S\([1-9]"
)  # Memory space of a layout: 0 is the device's memory, on TPUs 1 the vector unit's.
_REFERENCE = re.compile(r"%([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_KERNEL_FLOPS = re.compile(r'"cost_estimate":\{"flops":"(\d+)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
# Custom calls of XLA's TPU backend that name memory or assert something, and do nothing.
_DO_NOTHING = ("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast")


class Instruction(NamedTuple):
    """One line of HLO, parsed.

    Attributes:
      name: Its name, without %.
      shape: Its result, such as "f32[8,3]{1,0}" or a tuple in parentheses.
      opcode: Its operation, such as "all-reduce".
      operands: The text in its parentheses.
      attributes: The text after them.
    """

    name: str
    shape: str
    opcode: str
    operands: str
    attributes: str


@dataclasses.dataclass(frozen=True)
class Module:
    """A program.

    Attributes:
      computations: Instructions by name of the computation.
      entry: Name of the entry computation.
      num_devices: Partitions times replicas.
    """

    computations: dict[str, list[Instruction]]
    entry: str
    num_devices: int


class Repeats(NamedTuple):
    """Execution counts of computations.

    Attributes:
      times: Executions of each computation in one run of the entry, by name.
      unknown: Number of loops with an unknown trip count; they count as one.
    """

    times: Counter[str]
    unknown: int


def parse(text: str) -> Module:
    """Parses HLO text, as from `compiled.as_text()`."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and (start := _INSTRUCTION.match(line)):
            current.append(_instruction(start[1], line[start.end() :]))
    head = text[: text.find("\n")]
    counts = [re.search(rf"{name}=(\d+)", head) for name in ("num_partitions", "replica_count")]
    return Module(computations, entry, math.prod(int(found[1]) for found in counts if found))


def _instruction(name: str, rest: str) -> Instruction:
    end = _closing(rest) if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, inner = rest.partition("(")
    end = _closing("(" + inner) - 1
    return Instruction(name, shape, opcode, inner[: end - 1], inner[end:])


def _closing(text: str) -> int:
    """Returns the index after the parenthesis that closes the first one."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place + 1
    return len(text)


def arrays(shape: str, *, in_memory: bool = False) -> list[tuple[str, tuple[int, ...]]]:
    """Returns (type, sizes) of each array in a shape or tuple; `in_memory` excludes those that stay on the chip."""
    return [
        (kind, tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size))
        for kind, sizes, layout in _ARRAY.findall(shape)
        if not (in_memory and _ON_CHIP.search(layout))
    ]


def num_bytes(shape: str, *, in_memory: bool = False) -> int:
    """Returns the bytes of all arrays in a shape or tuple, without padding; `in_memory` is as in `arrays`."""
    found = arrays(shape, in_memory=in_memory)
    return sum(math.ceil(math.prod(sizes) * _bits(kind) / 8) for kind, sizes in found)


def _bits(kind: str) -> int:
    if kind == "pred":
        return 8
    width = re.match(r"[a-z]+(\d+)", kind)  # f32, bf16, f8e4m3fn; a token has no width.
    return int(width[1]) if width else 0


def repeats(module: Module, *, loops_once: bool = False) -> Repeats:
    """Counts the executions of each computation.

    Args:
      module: A program.
      loops_once: Count a loop's body once, as XLA does, however often it runs.
    """
    times: Counter[str] = Counter()
    unknown = 0

    def visit(name: str, count: int) -> None:
        nonlocal unknown
        times[name] += count
        for instruction in module.computations[name]:
            trips = _trips(module, instruction) if instruction.opcode == "while" else 1
            unknown += trips is None
            for called in _called(module, instruction):
                visit(called, count if loops_once else count * (trips or 1))

    visit(module.entry, 1)
    return Repeats(times, unknown)


def _called(module: Module, instruction: Instruction) -> list[str]:
    """Returns the computations that an instruction calls."""
    attributes = re.sub(r"control-predecessors=\{.*?\}", "", instruction.attributes)
    return [name for name in _REFERENCE.findall(attributes) if name in module.computations]


class Factors(NamedTuple):
    """Factors that correct XLA's counts for loops.

    Attributes:
      flops: Factor for operations; 1 without loops.
      bytes: Factor for bytes accessed; XLA also counts those that never leave the chip.
      unknown: Number of loops with an unknown trip count; they count as one.
    """

    flops: float
    bytes: float
    unknown: int


def factors(module: Module) -> Factors:
    """Returns the factors for XLA's counts, from the products and the operands of each computation."""
    times, unknown = repeats(module)
    once = repeats(
        module, loops_once=True
    ).times  # More than 1 where a program that is not compiled yet has calls.
    inside = _fused(module)
    products, moved = [0, 0], [0, 0]
    for name, instructions in module.computations.items():
        if not times[name]:
            continue
        shapes = {instruction.name: instruction.shape for instruction in instructions}
        count = sum(_products(instruction, shapes) for instruction in instructions)
        products[0] += times[name] * count
        products[1] += once[name] * count
        if name not in inside:
            for instruction in instructions:
                moved[0] += times[name] * _moved(instruction, shapes, in_memory=True)
                moved[1] += once[name] * _moved(instruction, shapes, in_memory=False)
    of_bytes = moved[0] / moved[1] if moved[1] else 1.0
    return Factors(products[0] / products[1] if products[1] else of_bytes, of_bytes, unknown)


def cycles(module: Module) -> dict[str, int]:
    """Returns the cycles by opcode that the TPU compiler expects, largest first; empty if it reports none.

    It reports none for collectives.
    """
    times, _ = repeats(module)
    inside = _fused(module)
    expected: Counter[str] = Counter()
    for name, instructions in module.computations.items():
        for instruction in instructions if name not in inside else ():
            if found := _CYCLES.search(instruction.attributes):
                expected[instruction.opcode] += times[name] * int(found[1])
    return dict(expected.most_common())


def product_flops(module: Module) -> int:
    """Returns the operations of all matrix products and convolutions, two a multiplication, loops repeated.

    Args:
      module: A program, compiled or not.
    """
    times, total = repeats(module).times, 0
    for name, instructions in module.computations.items():
        shapes = {instruction.name: instruction.shape for instruction in instructions}
        count = sum(_products(instruction, shapes) for instruction in instructions)
        total += 2 * times[name] * count
    return total


class Kernels(NamedTuple):
    """Custom calls, of which the TPU compiler expects no cycles; those in loops as often as they run.

    Attributes:
      flops: Operations of those whose kernel states them.
      counted: Number of these.
      uncounted: Number of those that state nothing.
    """

    flops: int
    counted: int
    uncounted: int


def kernels(module: Module) -> Kernels:
    """Returns what a program's custom calls say of themselves.

    Args:
      module: A program.
    """
    times, _ = repeats(module)
    found = Counter[str]()
    for name, instructions in module.computations.items():
        for instruction in instructions:
            target = _TARGET.search(instruction.attributes)
            if instruction.opcode != "custom-call" or (target and target[1] in _DO_NOTHING):
                continue
            stated = _KERNEL_FLOPS.search(instruction.attributes)
            found["counted" if stated else "uncounted"] += times[name]
            found["flops"] += times[name] * int(stated[1]) if stated else 0
    return Kernels(found["flops"], found["counted"], found["uncounted"])


def _fused(module: Module) -> set[str]:
    """Returns the computations called by fusions and reductions, whose values need no memory."""
    inside: set[str] = set()

    def add(name: str) -> None:
        if name not in inside:
            inside.add(name)
            for instruction in module.computations[name]:
                for called in _called(module, instruction):
                    add(called)

    for instructions in module.computations.values():
        for instruction in instructions:
            if instruction.opcode not in ("while", "call", "conditional", "async-start"):
                for called in _called(module, instruction):
                    add(called)
    return inside


_MOVE_NOTHING = ("while", "call", "conditional", "tuple", "get-tuple-element", "parameter")


def _moved(instruction: Instruction, shapes: dict[str, str], in_memory: bool) -> int:
    if instruction.opcode in (*_MOVE_NOTHING, "bitcast", "constant"):
        return 0
    operands = [shapes.get(name, "") for name in _REFERENCE.findall(instruction.operands)]
    return sum(num_bytes(shape, in_memory=in_memory) for shape in (instruction.shape, *operands))


def _products(instruction: Instruction, shapes: dict[str, str]) -> int:
    """Returns the multiplications of a matrix product or convolution, without those by zeros that it puts in."""
    if instruction.opcode not in ("dot", "convolution"):
        return 0
    left, right = (
        arrays(shapes.get(name, ""))[0][1] for name in _REFERENCE.findall(instruction.operands)[:2]
    )
    output, attributes = arrays(instruction.shape)[0][1], instruction.attributes
    if instruction.opcode == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]+)\}", attributes)
        summed = [left[int(axis)] for axis in axes[1].split(",")] if axes else [0]
        return math.prod(output) * math.prod(summed)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    if labels is None:
        return 0
    window = re.search(r"window=\{(.*?)\}", attributes)
    fields = [part.partition("=")[::2] for part in window[1].split()] if window else []
    products = right[labels[2].index("i")]
    for size, label in zip(output, labels[3], strict=True):
        if label.isdigit():
            along = {name: values.split("x")[int(label)] for name, values in fields}
            products *= _taps(left[labels[1].index(label)], size, along)
        else:
            products *= size
    return products


def _taps(inputs: int, outputs: int, window: dict[str, str]) -> int:
    """Returns how many pairs of an output and a tap of the window meet an input, along one axis."""
    size, stride = int(window.get("size", 1)), int(window.get("stride", 1))
    spread, gap = int(window.get("lhs_dilate", 1)), int(window.get("rhs_dilate", 1))
    low = int(window.get("pad", "0_0").rpartition("_")[0])
    places = (output * stride + tap * gap - low for output in range(outputs) for tap in range(size))
    return sum(place % spread == 0 and 0 <= place // spread < inputs for place in places)


def _trips(module: Module, loop: Instruction) -> int | None:
    """Returns the trip count of a loop from the compiler, or from the one constant in its condition i < n."""
    if said := _TRIPS.search(loop.attributes):
        return int(said[1])
    condition = re.search(r"condition=%?([\w.-]+)", loop.attributes)
    lines = module.computations.get(condition[1], []) if condition else []
    limits = [
        int(line.operands)
        for line in lines
        if line.opcode == "constant" and line.operands.isdigit()
    ]
    return limits[0] if len(limits) == 1 else None
