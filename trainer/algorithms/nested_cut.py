"""Nested-cut credit: GRPO, but thinking on after the answer is known earns nothing.

DECS (2509.25827) pays in full up to the chunk of a thought that first holds the right answer, and
less after it; a judge finds that chunk. Here nested cuts do: the boundary of a thought is its first
cut at which at least half of the known forced answers are right (a probe: a gold answer of at least
0.5). Where a rollout's GRPO advantage is positive, the thinking tokens after its boundary get
`share_after` of it. The end marker and the answer keep all of it: to stop is right wherever the
answer is known. Negative advantages, and thoughts without a boundary, are GRPO's.

Advantages come from the final answer alone, and forced answers are not trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from pydantic import Field

from samplers.facts import CUT_CREDIT, CUTS
from samplers.types import Group
from trainer.algorithms import _plain, grpo
from trainer.types import TrainSequence


class Config(grpo.Config):
    share_after: float = Field(0.0, ge=-1, le=1)
    """Share of a positive advantage that thinking after the boundary gets. 0: no credit; below 0 it
    is discouraged."""


def provides(config: Config) -> set[str]:
    return {CUT_CREDIT}


def requires(config: Config) -> dict[str, str]:
    why = "forced answers tell from where on a thought knew its answer"
    return {CUTS: why, **_plain.requires(config)}


def sequences(groups: Sequence[Group], config: Config) -> list[TrainSequence]:
    """GRPO's rows, with less credit between each right thought's boundary and its end."""
    of_key = {group.key: group for group in groups}
    out = []
    for row in grpo.sequences(groups, config):
        group = of_key[row.group]
        rollout = group.rollouts[row.rollout]
        start = len(rollout.prompt_ids_T)
        end = min(rollout.think_tokens, rollout.final.after)
        after = slice(start + boundary(group, row.rollout), start + end)
        advantages_T = row.advantages_T.copy()
        late_T = advantages_T[after]
        advantages_T[after] = np.where(late_T > 0, config.share_after * late_T, late_T)
        out.append(replace(row, advantages_T=advantages_T))
    return out


def boundary(group: Group, g: int) -> int:
    """Tokens of the thought of rollout g that its first right cut saw; all, if none was right."""
    rollout = group.rollouts[g]
    for cut, verdicts in zip(rollout.answers, group.verdicts[g], strict=True):
        known = [verdict.correct for verdict in verdicts if verdict.known]
        if known and np.mean(known) >= 0.5:
            return cut[0].after
    return len(rollout.thought)
