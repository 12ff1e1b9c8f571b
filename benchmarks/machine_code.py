"""How many instructions a kernel takes per element, read from its machine code, and what that lets one expect of a GPU.

Counted is the main loop: a loop around no other, whose body moves tensors in pieces of 16 bytes. Where its body branches,
the count is that of the longest way that calls no subroutine: both sides of a condition are tried, rare cases that
compilers move into subroutines (divisions by subnormal numbers) are left out. If threads of a warp disagree, both sides
run; that is not counted. Without a loop, the way through the whole kernel is counted.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

# A thread's move of this many bytes is one of a tensor.
WHOLE = 16


class Card(NamedTuple):
    """Rates of a GPU: clock in 1/s, a copy's bytes per second, read and written."""

    clock: float
    copy: float


CARDS = {"h100": Card(1.75e9, 3.0e12), "h200": Card(1.85e9, 4.3e12)}
MULTIPROCESSORS = 132
LANES = 128
SPECIAL_LANES = 16
ISSUED = 0.85  # of the lanes' cycles, at best


def predicted(card: Card, instructions: float, special: float, bytes_: float) -> float:
    """The fraction of a copy's speed that a kernel reaches, a prediction: all three per element.

    Moving bytes and issuing instructions overlap, but not wholly: taken together as the mean of their fourth powers."""
    cycles = max(instructions / LANES, special / SPECIAL_LANES) / ISSUED
    issue, move = cycles / (MULTIPROCESSORS * card.clock), bytes_ / card.copy
    return (1 + (issue / move) ** 4) ** -0.25


class Way(NamedTuple):
    """What lies on a way through code: moves of 16 bytes, instructions, those of them for the special-function unit."""

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
    """Instructions without a branch between them. `calls`: its end calls a subroutine; `table`: it branches by a table."""

    way: Way = NOTHING
    calls: bool = False
    table: bool = False
    next: list[str] = field(default_factory=list)


Code = dict[str, Block]  # by label, the first is where the kernel begins


def main_loops(code: Code) -> list[Way]:
    """The longest way through each main loop; through the whole kernel if it has none."""
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
    """For each block that can be reached, those that every way to it passes, itself among them."""
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
    """From the head back to it, or to the end of the code; None if every way calls a subroutine or meets a loop."""

    @cache
    def rest(label: str) -> Way | None:
        block = code[label]
        if block.calls:
            return None
        ends = [NOTHING] if head in block.next or not block.next else []
        following = [way for other in block.next if other in body and other != head if (way := rest(other))]
        return max((block.way.plus(way) for way in ends + following), key=lambda w: (w.moves, w[2]), default=None)

    try:
        return rest(head)
    except RecursionError:  # a loop
        return None


class Instruction(NamedTuple):
    way: Way
    target: str = ""  # of a branch
    goes_on: bool = True  # to the next instruction, or may
    calls: bool = False
    table: bool = False  # a branch to one of several places, which are not told


def read_nvidia(text: str) -> Code:
    """From what `cuobjdump -sass` prints of one kernel."""
    lines = re.findall(r"^\s+/\*([0-9a-f]+)\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);", text, re.MULTILINE)
    return _blocks([(f"{int(at, 16):#x}", _nvidia(*rest)) for at, *rest in lines])


def _nvidia(condition: str, opcode: str, operands: str) -> Instruction:
    name, whole = opcode.partition(".")[0], ".128" in opcode
    way = Way(int(whole and name == "LDG"), int(whole and name == "STG"), 1, int(name in ("MUFU", "F2I", "I2F")))
    if name == "NOP":  # a branch may lead to it
        return Instruction(NOTHING)
    if name == "BRA":
        conditional = bool(condition or "," in operands)
        return Instruction(way, re.search(r"0x[0-9a-f]+", operands)[0], goes_on=conditional)
    goes_on = bool(condition) or name not in ("EXIT", "RET", "BRX")
    return Instruction(way, goes_on=goes_on, calls=name == "CALL" and not condition, table=name == "BRX")


def read_amd(text: str) -> Code:
    """From the assembly of one kernel."""
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
    """Of instructions with their labels. A block begins at a branch's target and behind a branch or a call. Where nothing
    else leads to, the branch by a table before it does."""
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
