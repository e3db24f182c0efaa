"""TrainSequence and MicroBatch: what the learner eats.

Shape suffixes: T tokens of a row, B rows of a micro-batch, N scored (trained) tokens of a
micro-batch, flat over its rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TrainSequence:
    """One row. `parent_T[t]` is the index of the token before t in its own branch.

    -1 for the first token and t-1 everywhere in a plain row. Position, attention (ancestors) and
    the logit that a token is scored with (its parent's) all follow from it; a tree row of nested
    budgets needs nothing else.
    """

    ids_T: Ints
    parent_T: Ints
    mask_T: NDArray[np.bool_]
    """True where the token is trained on: sampled, never forced, never prompt."""
    advantages_T: Floats
    behaviour_T: Floats
    """The engine's logprob of each sampled token; NaN elsewhere (prompt, forced, supervised)."""
    versions_T: Ints
    """Weight version that sampled the token; -1 elsewhere."""
    prompt: int
    group: int
    rollout: int
    """Index in its group. Rows of one rollout are one in every denominator; -1: nobody's."""
    old_T: Floats | None = None
    """The learner's logprobs before the batch's first update, where a component needs them."""
    ref_T: Floats | None = None
    """The reference policy's logprobs, where a component needs them."""

    def __len__(self) -> int:
        return len(self.ids_T)

    @property
    def plain(self) -> bool:
        """No branches: every token follows the one before it."""
        return bool(np.array_equal(self.parent_T, np.arange(len(self.ids_T), dtype=np.int32) - 1))


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass: rows padded on the right, and the flat list of tokens to score.

    A row holds only tokens that a scored one follows, and those that follow the same tokens once.

    Everything the loss reads is flat over the N scored tokens, so it knows nothing of padding,
    packing or trees. `weights_N` are already normalised over the whole optimiser step: the
    learner only sums.
    """

    ids_BT: Ints
    positions_BT: Ints
    lengths_B: Ints
    ends_BT: Ints | None
    """Only where a row has branches: one beyond the last token that follows this one. Rows lie
    depth first, so token t may look at u where u <= t < ends[u]."""
    index_N: Ints
    """Flat position (row * T + its parent's) whose logit scores the token."""
    targets_N: Ints
    row_N: Ints
    weights_N: Floats
    advantages_N: Floats
    behaviour_N: Floats
    """NaN where the token has none (supervised rows)."""
    old_N: Floats | None
    ref_N: Floats | None
    prompts_B: Ints
    """Dataset index of each row's prompt: names the culprits of a non-finite loss."""
    rows_B: Ints
    """Index of each row in the list of sequences it was packed from; -1 for filler rows."""


@dataclass(frozen=True, slots=True)
class Batch:
    """`updates[u][rank]` is the list of micro-batches of optimiser step u on that rank.

    Every rank has the same number of micro-batches (filled with zero-weight ones, or ZeRO-3
    deadlocks). Denominators were taken over the whole update, all ranks together.
    """

    updates: tuple[tuple[tuple[MicroBatch, ...], ...], ...]
    rows: int
    tokens: int
    """Real tokens, padding not counted."""

    def share(self, rank: int) -> list[tuple[MicroBatch, ...]]:
        """What `rank` computes: its micro-batches, update by update."""
        return [update[rank] for update in self.updates]
