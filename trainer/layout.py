"""How a row is fed to the model: only what a scored token follows, trees depth first.

Shape suffixes: T tokens of a row, P of them that the model is fed, N scored tokens. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.types import TrainSequence

Index = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Laid:
    """A row, and where its tokens go."""

    row: TrainSequence
    scored_T: NDArray[np.bool_]
    order_P: Index
    """Index in the row of each token that is fed."""
    depth_P: Index
    """How many tokens lie before it in its own branch: its position."""
    ends_P: Index
    """One beyond the last fed token that follows it; they all lie between."""
    at_N: Index
    """Place among the fed tokens of the one whose logit scores it."""

    def __len__(self) -> int:
        return len(self.order_P)

    @property
    def plain(self) -> bool:
        """One chain: causal attention says it all."""
        return bool((self.ends_P == len(self.order_P)).all())


def lay(row: TrainSequence, scored_T: NDArray[np.bool_]) -> Laid:
    """The tokens that some scored one follows, each before those that follow it.

    A row's last token is not fed: nothing follows it. Branches that begin alike share their
    beginning: tokens that follow the same tokens are one.
    """
    targets_N = np.flatnonzero(scored_T)
    assert (row.parent_T[targets_N] >= 0).all(), "a trained token needs a token before it"
    if row.plain or not len(targets_N):
        count_P = np.arange(targets_N[-1] if len(targets_N) else 0)
        ends_P = np.full_like(count_P, len(count_P))
        return Laid(row, scored_T, count_P, count_P, ends_P, targets_N - 1)
    twin, follows = _twins(row)
    at_N = np.array(twin)[row.parent_T[targets_N]]
    sizes = _sizes(follows, at_N)
    # Depth first: each takes the first place that its parent has left, and as many as it needs.
    places, depths, free = (np.full(len(row) + 1, first).tolist() for first in (0, -1, 0))
    for t in np.flatnonzero(sizes).tolist():
        up = follows[t]
        places[t], depths[t], free[t] = free[up], depths[up] + 1, free[up] + 1
        free[up] += sizes[t]
    places_T, sizes_T = np.array(places[:-1]), np.array(sizes)
    fed_P = np.flatnonzero(sizes_T)
    order_P = fed_P[np.argsort(places_T[fed_P])]
    ends_P = places_T[order_P] + sizes_T[order_P]
    return Laid(row, scored_T, order_P, np.array(depths)[order_P], ends_P, places_T[at_N])


def _twins(row: TrainSequence) -> tuple[list[int], list[int]]:
    """Per token the first that equals it and all that it follows; and what that one follows.

    -1: nothing, at the root.
    """
    twin: list[int] = []
    follows: list[int] = []
    known: dict[tuple[int, int], int] = {}
    for t, (parent, id) in enumerate(zip(row.parent_T.tolist(), row.ids_T.tolist(), strict=True)):
        follows.append(twin[parent] if parent >= 0 else -1)
        twin.append(known.setdefault((follows[t], id), t))
    return twin, follows


def _sizes(follows: list[int], at_N: Index) -> list[int]:
    """How many tokens are fed of each token's subtree, itself included: 0 where it is not fed."""
    marks_T = np.zeros(len(follows) + 1, np.intp)  # the last is the root's
    marks_T[at_N] = 1
    sizes: list[int] = marks_T.tolist()
    for t in range(len(follows) - 1, -1, -1):
        if sizes[t]:
            sizes[follows[t]] = (sizes[follows[t]] or 1) + sizes[t]
    return sizes[:-1]
