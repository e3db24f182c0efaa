"""A placement drawn: a row for each node, a column for each GPU and one for the CPUs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from launch.hardware import ranges
from launch.placement import Placement
from trainer.faults import NAMES, Role

WIDE = 100
LETTERS: dict[Role, str] = {"learner": "L", "rollout": "E", "grader": "R"}
NAMED = 2
"""Processes of a role that a cell names; of more it says how many."""
ROWS = 4
"""Rows alike, one after the other, that are drawn; of more the first and the last."""


def table(placement: Placement) -> Iterator[str]:
    """Lines of at most 100 characters, unless a node has a great many processes on its CPUs."""
    nodes, most = placement.cluster.nodes, max(placement.cluster.gpus)
    names = [f"node {i}" + (f" {node.kind}" if node.kind else "") for i, node in enumerate(nodes)]
    cells = _cells(placement)
    heads = [*(f"GPU {gpu}" for gpu in range(most)), "CPU"]
    rows = [("", heads), *_folded(names, cells)]
    left = 4 + max(map(len, names))
    each = 2 + max((len(text) for row in [heads, *cells] for text in row[:most]), default=0)
    room = max(1, (WIDE - left - max(len(row[-1]) for row in cells)) // each)
    room = math.ceil(most / math.ceil(most / room)) if most else 1  # blocks are equally wide
    for start in range(0, most or 1, room):
        end = start + room if start + room < most else most + 1
        for name, row in rows:
            line = "".join(f"{text:<{each}}" for text in row[start:end])
            yield f"  {name:<{left - 2}}{line}".rstrip()


def legend(placement: Placement) -> str:
    """What the letters stand for."""
    words = [f"{LETTERS[role]} {NAMES[role]}" for role, some in placement.seats.items() if some]
    if any(len(seat.gpus) > 1 for seat in placement.seats["rollout"]):
        words.append("E0.1 GPU 1 of engine 0")
    if any("-" in row[:-1] for row in _cells(placement)):
        words.append("- free")
    return ", ".join(words)


def _cells(placement: Placement) -> list[list[str]]:
    """Of each node: its GPUs ('' beyond what it has), and what runs on its CPUs."""
    nodes = placement.cluster.nodes
    on_gpus: list[list[dict[Role, list[str]]]] = [[{} for _ in range(n.gpus)] for n in nodes]
    on_cpus: list[dict[Role, list[int]]] = [{} for _ in nodes]
    for role, seats in placement.seats.items():
        for index, seat in enumerate(seats):
            for part, gpu in enumerate(seat.gpus):
                name = f"{LETTERS[role]}{index}" + (f".{part}" if len(seat.gpus) > 1 else "")
                on_gpus[seat.node][gpu].setdefault(role, []).append(name)
            if not seat.gpus:
                on_cpus[seat.node].setdefault(role, []).append(index)
    most = max(placement.cluster.gpus)
    out = []
    for number, (gpus, cpus) in enumerate(zip(on_gpus, on_cpus, strict=True)):
        words = ["driver"] * (number == 0)
        words += [f"{LETTERS[role]}{ranges(some)}".replace(" ", "") for role, some in cpus.items()]
        row = ["+".join(_few(role, some) for role, some in cell.items()) or "-" for cell in gpus]
        out.append(row + [""] * (most - len(gpus)) + [" ".join(words)])
    return out


def _few(role: Role, names: Sequence[str]) -> str:
    return "+".join(names) if len(names) <= NAMED else f"{len(names)}{LETTERS[role]}"


def _folded(names: Sequence[str], rows: Sequence[list[str]]) -> Iterator[tuple[str, list[str]]]:
    """Long runs of rows that differ in numbers only are cut."""
    shapes = [
        [re.sub(r"\d+", "0", text) for text in (re.sub(r"node \d+", "", name), *row)]
        for name, row in zip(names, rows, strict=True)
    ]
    start = 0
    while start < len(rows):
        end = start + 1
        while end < len(rows) and shapes[end] == shapes[start]:
            end += 1
        if end - start > ROWS:
            yield names[start], rows[start]
            yield f"... {end - start - 2} more", []
            yield names[end - 1], rows[end - 1]
        else:
            yield from zip(names[start:end], rows[start:end], strict=True)
        start = end
