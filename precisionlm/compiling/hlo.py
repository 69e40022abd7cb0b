"""Optimized HLO text as data: computations, instructions, and how often each of them runs."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

_BITS = {"pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4}
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
    r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)


@dataclass(frozen=True)
class Array:
    """One array of a value. space: the device's memory it lies in; 0 is the main memory (HBM)."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> float:
        bits = _BITS.get(self.dtype) or int((re.findall(r"^(?:bf|f|s|u|c)(\d+)", self.dtype) or ["0"])[0])
        return math.prod(self.dims) * bits / 8


@dataclass(frozen=True)
class Instruction:
    """`name = arrays opcode(operands), attributes`. operands: names; of parameters and constants, the text."""

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    def called(self) -> list[str]:
        """Names of the computations it calls."""
        found = []
        for one, several in _CALLED.findall(self.attributes):
            found += [one] if one else [name.strip().lstrip("%") for name in several.split(",")]
        return found


Computation = dict[str, Instruction]


@dataclass
class Module:
    """A parsed program: computations by name, and the one that runs."""

    entry: str
    computations: dict[str, Computation] = field(default_factory=dict)

    @cached_property
    def executions(self) -> dict[str, int]:
        """How often each computation runs in one call of the program; loop bodies as often as the loop turns."""
        callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for name, body in self.computations.items():
            for instruction in body.values():
                times = self.trip_count(instruction) if instruction.opcode == "while" else 1
                for callee in instruction.called():
                    callers[callee].append((name, times))
        known = {self.entry: 1}

        def count(name: str) -> int:
            if name not in known:
                known[name] = sum(count(caller) * times for caller, times in callers[name])
            return known[name]

        return {name: count(name) for name in self.computations}

    def trip_count(self, loop: Instruction) -> int:
        """Iterations of a while loop: what the compiler noted, else from the constant that its condition compares a
        counter with, and what its body adds to the counter."""
        if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
            return int(noted[1])
        condition, body = (
            self.computations[found[1]] if (found := re.search(rf"{part}=%?([\w.\-]+)", loop.attributes)) else {}
            for part in ("condition", "body")
        )
        limits = [limit for i in condition.values() if (limit := _number(i)) is not None]
        counter = next((at[1] for i in condition.values() if (at := _element(i)) and i.arrays[0].dims == ()), None)
        return -(-max(limits, default=1) // _step(body, counter))

    def instructions(self) -> Iterator[tuple[str, Instruction]]:
        """(computation, instruction) of everything that runs."""
        for name, body in self.computations.items():
            if self.executions[name]:
                for instruction in body.values():
                    yield name, instruction


def _number(i: Instruction) -> int | None:
    """The value of an integer constant."""
    return int(i.operands[0]) if i.opcode == "constant" and i.arrays[0].dtype in ("s32", "u32") else None


def _element(i: Instruction) -> re.Match[str] | None:
    """Which element of a tuple an instruction takes."""
    return re.search(r"index=(\d+)", i.attributes) if i.opcode == "get-tuple-element" else None


def _step(body: Computation, counter: str | None) -> int:
    """What a loop's body adds to its counter, the element of that number of what it carries; 1 where none is shown."""
    root = next(reversed(body.values()), None)
    if root is None or root.opcode != "tuple" or counter is None:
        return 1
    following = body[root.operands[int(counter)]]
    added = [_number(body[operand]) for operand in following.operands if operand in body]
    return next((n for n in added if n), 1) if following.opcode == "add" else 1


def parse(text: str) -> Module:
    """The module of an optimized HLO text. Raises ValueError where it has no entry computation."""
    module, body = Module(""), None
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            body = module.computations.setdefault(header[2], {})
            if header[1]:
                module.entry = header[2]
        elif body is not None and (start := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)):
            body[start[1]] = _instruction(start[1], line[start.end() :])
    if not module.entry:
        raise ValueError("the HLO text has no ENTRY computation")
    return module


def _instruction(name: str, rest: str) -> Instruction:
    end = _balanced(rest) if rest.startswith("(") else rest.index(" ")
    opcode, _, after = rest[end:].lstrip().partition("(")
    close = _balanced("(" + after) - 1
    inside = after[: close - 1]
    operands = re.findall(r"%([\w.\-]+)", inside) or ([inside] if inside else [])
    arrays = tuple(_array(match) for match in _SHAPE.finditer(rest[:end]))
    return Instruction(name, arrays, opcode, tuple(operands), after[close:])


def _balanced(text: str) -> int:
    """Length of the parenthesis that text begins with."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return position + 1
    raise ValueError("unbalanced parenthesis in HLO text")


def _array(match: re.Match[str]) -> Array:
    space = re.search(r"S\((\d+)\)", match[3] or "")
    dims = tuple(int(d) for d in match[2].split(",") if d)
    return Array(match[1], dims, int(space[1]) if space else 0)


def group_size(attributes: str, devices: int) -> int:
    """Devices of a collective's group, from any of HLO's three notations; all of them where none is given."""
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        split = {axis: int(size) for axis, size in re.findall(r"'([^']+)':\(\d+\)(\d+)", named[2])}
        return math.prod(split.get(axis, sizes[axis]) for axis in re.findall(r"'([^']+)'", named[2]))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(iota[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(listed[1].split(","))
    return devices
