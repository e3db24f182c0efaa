"""Which elements of a flattened parameter lie where: the arithmetic behind saved learner states.

A parameter is cut into spans differently by every number of ranks and ZeRO stage. Whoever reads
asks `sources` which of the saved spans hold what it wants; nothing is ever put together whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """Elements start <= i < stop of a flattened parameter."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def within(self, other: Span) -> slice:
        """Where these elements lie in a tensor that holds `other`'s."""
        assert other.start <= self.start <= self.stop <= other.stop, (self, other)
        return slice(self.start - other.start, self.stop - other.start)


def overlap(one: Span, other: Span) -> Span:
    """What both hold; empty where nothing is."""
    start = max(one.start, other.start)
    return Span(start, max(start, min(one.stop, other.stop)))


def sources(wanted: Span, saved: Sequence[Span]) -> list[tuple[int, Span]]:
    """(index into `saved`, what to take from there), which together are `wanted`, in its order.

    Saved spans may lie in any order and hold elements twice; each wanted one is taken once.

    Raises:
        ValueError: no span holds some of the wanted elements.
    """
    found: list[tuple[int, Span]] = []
    at = wanted.start
    for index in sorted(range(len(saved)), key=lambda i: saved[i]):
        here = overlap(saved[index], Span(at, wanted.stop))
        if here.start > at and here.size:
            break
        if here.size:
            found.append((index, here))
            at = here.stop
    if at < wanted.stop:
        raise ValueError(f"element {at} of {wanted.start}..{wanted.stop} is nowhere")
    return found


def shares(sizes: Mapping[str, int], ranks: int) -> list[dict[str, Span]]:
    """For each rank an equal part of all parameters laid end to end, by parameter.

    For states of which every rank has a copy: together the parts are everything, once.
    """
    total = sum(sizes.values())
    parts: list[dict[str, Span]] = []
    for rank in range(ranks):
        mine = Span(total * rank // ranks, total * (rank + 1) // ranks)
        parts.append({})
        begin = 0
        for name, size in sizes.items():
            here = overlap(Span(begin, begin + size), mine)
            if here.size:
                parts[-1][name] = Span(here.start - begin, here.stop - begin)
            begin += size
    return parts
