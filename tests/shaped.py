"""Groups with given lengths and verdicts, and their rewards: what tests of length rewards share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rewards.apply import Shaping
from rewards.verdict import Verdict
from samplers.types import Answer, Finish, Group, Plan, Prompt, Rollout
from tests.made import run

UNKNOWN = None
PROMPT = Prompt(0, "p", (), "?", "7", "exact")


def verdict(correct: bool | None) -> Verdict:
    if correct is None:
        return Verdict(False, 0.0, "timeout")
    return Verdict(correct, float(correct), "ok" if correct else "wrong")


def rollout(
    think: int,
    answer: int,
    forced: int = 0,
    closed: bool = True,
    cap: int = 64,
    text: str | None = "7",
    finish: Finish = "stop",
    **plan: Any,
) -> Rollout:
    """`think` thinking tokens (and an end marker, if closed); `forced` + `answer` answer tokens."""
    thought = run(range(think + closed))
    final = Answer(len(thought), run(range(forced + answer), forced, finish), text)
    ids = np.array([1], np.int32)
    return Rollout(0, 0, 0, 0, Plan(cap, **plan), ids, thought, closed, ((final,),))


def group(
    n_tokens: Sequence[int],
    correct: Sequence[bool | None],
    cap: int = 64,
    targets: Sequence[int | None] | int | None = None,
    modes: Sequence[str] | str = "",
    **fields: Any,
) -> Group:
    """Rollouts whose responses have that many sampled tokens and that verdict."""
    n = len(n_tokens)
    wanted = [targets] * n if targets is None or isinstance(targets, int) else targets
    keys = [modes] * n if isinstance(modes, str) else modes
    rollouts = tuple(
        rollout(max(k - 1, 0), min(k, 1), closed=False, cap=cap, target=t, subgroup=m, **fields)
        for k, t, m in zip(n_tokens, wanted, keys, strict=True)
    )
    return Group(PROMPT, 0, rollouts, tuple(((verdict(c),),) for c in correct))


def total(groups: Sequence[Group], *specs: Any) -> list[np.ndarray]:
    """[G] per group: the sum of all components at the only answer."""
    return [g.total_GCA[:, 0, 0] for g in Shaping(specs).apply(groups)]
