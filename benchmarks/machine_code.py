"""The number of instructions per element of a kernel, read from its machine code, and a prediction of its speed.

The instructions of the main loop are counted. It is an innermost loop whose body moves tensors in pieces of 16 bytes.
If its body branches, the longest way that calls no subroutine is counted: both sides of a condition are tried, but rare
cases that compilers move into subroutines (divisions by subnormal numbers) are not. If threads of a warp take different
sides, both run; this is not counted. In a kernel without a loop, the way from its start to its end is counted.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple


class Card(NamedTuple):
    """The rates of a GPU: the clock in 1/s, and the bytes per second that a copy reads and writes."""

    clock: float
    copy: float


CARDS = {"h100": Card(1.75e9, 3.0e12), "h200": Card(1.85e9, 4.3e12)}
MULTIPROCESSORS = 132
LANES = 128
SPECIAL_LANES = 16
ISSUED = 0.85  # the highest fraction of cycles in which lanes are issued instructions


def predicted(card: Card, instructions: float, special: float, bytes_: float) -> float:
    """The predicted fraction of a copy's speed that a kernel reaches. Instructions, special ones and bytes are per
    element.

    Moving bytes and issuing instructions overlap, but not completely: the combined time is the fourth root of the sum
    of their fourth powers."""
    cycles = max(instructions / LANES, special / SPECIAL_LANES) / ISSUED
    issue, move = cycles / (MULTIPROCESSORS * card.clock), bytes_ / card.copy
    return (1 + (issue / move) ** 4) ** -0.25


class Way(NamedTuple):
    """The counts on a way through code: moves of 16 bytes, instructions, and those of the special-function unit."""

    loads: int = 0
    stores: int = 0
    instructions: int = 0
    special: int = 0

    def plus(self, other: "Way") -> "Way":
        return Way(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def moves(self) -> int:
        return self.loads + self.stores


NOTHING = Way()


@dataclass
class Block:
    """Instructions without a branch between them. `calls`: the block ends with a call. `table`: it ends with a branch
    by a table."""

    way: Way = NOTHING
    calls: bool = False
    table: bool = False
    next: list[str] = field(default_factory=list)


Code = dict[str, Block]  # by label; the first block is the start of the kernel


def main_loops(code: Code) -> list[Way]:
    """The longest way through each main loop; if there is none, the longest way through the kernel."""
    loops = list(_loops(code))
    inner = [(head, body) for head, body in loops if not any(other < body for _, other in loops)]
    ways = [way for head, body in inner if (way := _longest(code, head, body)) and way.moves]
    if ways or any(block.way.moves for _, body in loops for block in (code[label] for label in body)):
        return ways
    return [way for way in [_longest(code, next(iter(code)), frozenset(code))] if way]


def _loops(code: Code) -> Iterator[tuple[str, frozenset[str]]]:
    """The head and the blocks of each natural loop."""
    dominators = _dominators(code)
    before: dict[str, list[str]] = {label: [] for label in code}
    for label in dominators:
        for following in code[label].next:
            before[following].append(label)
    bodies: dict[str, set[str]] = {}
    for label, above in dominators.items():
        for head in set(code[label].next) & above:
            body, ahead = bodies.setdefault(head, {head}), [label]
            while ahead:
                if (block := ahead.pop()) not in body:
                    body.add(block)
                    ahead += before[block]
    yield from ((head, frozenset(body)) for head, body in bodies.items())


def _dominators(code: Code) -> dict[str, set[str]]:
    """For each reachable block, the blocks that every way to it passes, including itself."""
    start = next(iter(code))
    order, ahead = {start: None}, [start]
    while ahead:
        for label in code[ahead.pop()].next:
            if label not in order:
                order[label] = None
                ahead.append(label)
    before = {label: [other for other in order if label in code[other].next] for label in order}
    found = {label: set(order) for label in order} | {start: {start}}
    changed = True
    while changed:
        changed = False
        for label in order:
            if label != start:
                above = set.intersection(*(found[other] for other in before[label])) | {label}
                changed |= above != found[label]
                found[label] = above
    return found


def _longest(code: Code, head: str, body: frozenset[str]) -> Way | None:
    """The longest way from the head back to it, or to the end of the code. None if every way has a call or a loop."""

    @cache
    def longest(label: str) -> Way | None:
        block = code[label]
        if block.calls:
            return None
        ends = [NOTHING] if head in block.next or not block.next else []
        following = [way for other in block.next if other in body and other != head if (way := longest(other))]
        return max((block.way.plus(way) for way in ends + following), key=lambda w: (w.moves, w[2]), default=None)

    try:
        return longest(head)
    except RecursionError:  # a loop
        return None


class Instruction(NamedTuple):
    way: Way
    target: str = ""  # the target of a branch
    goes_on: bool = True  # true if the next instruction may follow
    calls: bool = False
    table: bool = False  # a branch to one of several targets, which are not named


def read_nvidia(text: str) -> Code:
    """Read the output of `cuobjdump -sass` for one kernel."""
    lines = re.findall(r"^\s+/\*([0-9a-f]+)\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);", text, re.MULTILINE)
    return _blocks([(f"{int(at, 16):#x}", _nvidia(*fields)) for at, *fields in lines])


def _nvidia(condition: str, opcode: str, operands: str) -> Instruction:
    name, whole = opcode.partition(".")[0], ".128" in opcode
    way = Way(int(whole and name == "LDG"), int(whole and name == "STG"), 1, int(name in ("MUFU", "F2I", "I2F")))
    if name == "NOP":  # it may be the target of a branch
        return Instruction(NOTHING)
    if name == "BRA":
        conditional = bool(condition or "," in operands)
        return Instruction(way, re.search(r"0x[0-9a-f]+", operands)[0], goes_on=conditional)
    goes_on = bool(condition) or name not in ("EXIT", "RET", "BRX")
    return Instruction(way, goes_on=goes_on, calls=name == "CALL" and not condition, table=name == "BRX")


def read_amd(text: str) -> Code:
    """Read the assembly of one kernel."""
    lines = re.findall(r"^(?:(\.L\w+):|[ \t]+((?:v|s|ds|global|buffer|flat)_\w+)[ \t]*(.*))", text, re.MULTILINE)
    marked, places, labels = [], {}, []
    for label, opcode, operands in lines:
        labels += [label] if label else []
        if opcode and opcode != "s_nop":
            marked.append((f"{len(marked)}", _amd(opcode, operands)))
            places |= dict.fromkeys(labels, marked[-1][0])
            labels = []
    return _blocks([(mark, i._replace(target=places[i.target]) if i.target else i) for mark, i in marked])


def _amd(opcode: str, operands: str) -> Instruction:
    whole = "dwordx4" in opcode
    special = re.match(r"v_(exp|log|rcp|rsq|sqrt|sin|cos)_", opcode)
    way = Way(int(whole and "_load_" in opcode), int(whole and "_store_" in opcode), 1, int(bool(special)))
    if opcode.startswith(("s_cbranch", "s_branch")):
        return Instruction(way, operands.split()[0], goes_on=opcode != "s_branch")
    return Instruction(way, goes_on=opcode != "s_endpgm", calls=opcode == "s_swappc_b64")


def _blocks(marked: list[tuple[str, Instruction]]) -> Code:
    """The blocks of labelled instructions. A block begins at a branch's target, and after a branch or a call.

    A block that no other branch leads to is a target of the branch by a table before it.
    """
    targets = {instruction.target for _, instruction in marked}
    code: Code = {}
    block, goes_on, begins = Block(), False, True
    for i, (mark, instruction) in enumerate(marked):
        if begins or mark in targets:
            label = mark or f"behind {i}"
            block.next += [label] if goes_on else []
            block = code[label] = Block()
        block.way = block.way.plus(instruction.way)
        block.calls = instruction.calls
        block.next += [instruction.target] if instruction.target else []
        block.table = instruction.table
        goes_on = instruction.goes_on
        begins = bool(instruction.target) or instruction.calls or not goes_on
    known = {label for block in code.values() for label in block.next}
    table = None
    for label, block in code.items():
        if table and label not in known:
            table.next.append(label)
        table = block if block.table else table
    return code
