"""How old the tokens of a batch are, and whether engine and learner still agree.

An age is counted in weight versions: those of the learners when a token is trained, less those of
the engine when it was sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import fields, replace
from typing import Any

import numpy as np

from samplers import seam
from samplers.types import Ids
from trainer import compatibility
from trainer.types import Floats, TrainSequence

PROBED = 4
"""Rows that a probe scores."""


def check(rows: Sequence[TrainSequence], version: int, bound: int) -> dict[str, float]:
    """Age of the trained tokens, for the learners' weight `version`: mean and largest.

    Raises:
        RuntimeError: a token is older than `bound`, or of no version at all.
    """
    ages = [version - row.versions_T[row.mask_T] for row in rows]
    for row, age in zip(rows, ages, strict=True):
        if len(age) and not 0 <= age.min() <= age.max() <= bound:
            raise RuntimeError(
                f"group {row.group}, rollout {row.rollout}: tokens of weight versions "
                f"{version - age.max()} to {version - age.min()} came to a step of version "
                f"{version}; max_staleness={bound} promises that none is older"
            )
    every = np.concatenate(ages) if ages else np.zeros(0)
    if not len(every):
        return {}
    return {"staleness/mean": float(every.mean()), "staleness/max": float(every.max())}


def chunk(stage: Any) -> int | None:
    """Tokens by which an unfinished rollout grows in a step, the field `chunk` of the stage's
    budget policy; None: rollouts are made whole."""
    _, config = seam.resolve("samplers.budgets", stage.budget_spec)
    size: int | None = getattr(config, "chunk", None)
    return size


def rounds(stage: Any) -> int:
    """Versions that pass while the longest rollout is made in chunks; 0 without chunks."""
    size = chunk(stage)
    return math.ceil(stage.rollout.max_tokens / size) if size else 0


def depth(stage: Any) -> int:
    """Steps that engines sample ahead: what chunked rollouts, and groups that wait in the
    allocator, leave of max_staleness. 0: by turns.

    Raises:
        ValueError: max_staleness is too small for them.
    """
    most, chunks, waits = stage.max_staleness, rounds(stage), compatibility.waits(stage)
    needed = chunks + waits
    if most < needed and chunks:
        cap, size = stage.rollout.max_tokens, chunk(stage)
        room = most - waits
        larger = f", or budget.chunk={math.ceil(cap / room)} or more" if room > 0 else ""
        kept = f" and its group may wait for {waits} more" if waits else ""
        raise ValueError(
            f"max_staleness={most}: a rollout of up to rollout.max_tokens={cap} tokens in chunks "
            f"of {size} goes on over {chunks} steps{kept}; set max_staleness={needed} (beyond "
            f"that engines sample ahead){larger}"
        )
    if most < needed:
        name, _ = seam.split(stage.allocation)
        _, config = seam.resolve("samplers.allocation", stage.allocation)
        other = (
            ", or allocation.surplus=train (or drop, as verl does)"
            if hasattr(config, "surplus")
            else ""
        )
        raise ValueError(
            f"max_staleness={most}: allocation={name} keeps complete groups for the next step, "
            f"when their tokens are {waits} version older; set max_staleness={needed} (beyond "
            f"that engines sample ahead){other}"
        )
    left: int = most - needed
    return left


def probe(rows: Sequence[TrainSequence]) -> list[TrainSequence]:
    """A few rows of all lengths, for both sides to score; of a tree its last branch."""
    trained = sorted((row for row in rows if row.mask_T.any()), key=len)
    chosen = np.linspace(0, len(trained) - 1, min(PROBED, len(trained))).round()
    branches = [_branch(trained[int(i)]) for i in chosen]
    return [row for row in branches if row.mask_T.any()]


def probed(
    rows: Sequence[TrainSequence],
    ours: Callable[[Sequence[TrainSequence], str], Sequence[Floats]],
    theirs: Callable[[Sequence[Ids]], Sequence[Floats]],
    beside: bool,
) -> dict[str, float]:
    """`gap` over a few rows, scored by learner and engine, at once if `beside`; {} for no rows."""
    chosen = probe(rows)
    if not chosen:
        return {}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(theirs, [row.ids_T for row in chosen])
        if not beside:
            wait([asked])
        return gap(chosen, ours(chosen, "policy"), asked.result())


def _branch(row: TrainSequence) -> TrainSequence:
    """What the row's last token follows, and itself, as a plain row."""
    path, at = [], len(row) - 1
    while at >= 0:
        path.append(at)
        at = int(row.parent_T[at])
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    own: dict[str, Any] = {
        name: value[path[::-1]] for name, value in values.items() if isinstance(value, np.ndarray)
    }
    own["parent_T"] = np.arange(len(path), dtype=np.int32) - 1
    return replace(row, **own)


def gap(
    rows: Sequence[TrainSequence], ours: Sequence[Floats], theirs: Sequence[Floats]
) -> dict[str, float]:
    """`engine_gap`: mean |learner - engine| logprob over the trained tokens of `rows`.

    NaN where either side gave NaN for one of them: that is no agreement.

    Args:
        ours: [T] per row.
        theirs: [T - 1] per row: of every token but the first.
    """
    each = zip(rows, ours, theirs, strict=True)
    gaps = np.concatenate([np.abs(a_T[1:] - b_T)[row.mask_T[1:]] for row, a_T, b_T in each])
    return {"engine_gap": float(gaps.mean()), "engine_gap_max": float(gaps.max())}


def corrected(stage: Any) -> Any:
    """Settings of a stage with the importance correction that stale tokens need.

    Token level, truncated at the loss's own cap (2), unless the recipe chose one.

    Raises:
        ValueError: the recipe turned the correction off.
    """
    from trainer.losses import LossConfig

    if not isinstance(stage, Mapping) or stage.get("kind") == "sft":
        return stage
    loss = stage.get("loss", {})
    try:
        steps = float(stage.get("max_staleness", 0))  # 1.0 and '1' are 1 to pydantic as well
    except (TypeError, ValueError):
        return stage
    if steps < 1:
        return stage
    if isinstance(loss, LossConfig):
        loss = loss.model_dump(exclude_unset=True)
    if not isinstance(loss, Mapping):
        return stage
    if loss.get("importance", "token") == "none":
        raise ValueError(
            f"loss.importance=none with max_staleness={steps:g}: tokens of older weights need a "
            "correction; leave it out (then it is token, truncated at loss.importance_cap), or "
            "set max_staleness=0"
        )
    return {**stage, "loss": {"importance": "token", **loss}}
