"""What stops a run: figures that say that going on would be wrong or in vain."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.config import Stage


def engine_gap_bound(stage: Stage) -> float:
    """Bound on mean |learner - engine| logprob (rule 7 of the design)."""
    if stage.guard.engine_gap is not None:
        return stage.guard.engine_gap
    return 1e-4 if stage.model.dtype == "float32" else 1e-2


def check(stage: Stage, first: bool, metrics: Mapping[str, float]) -> None:
    """Raise where the step just taken shows that the run cannot mean what it says.

    Raises:
        ValueError: nearly every rollout hits the cap in the first step: nothing can be learned.
        RuntimeError: engine and learner disagree about the same tokens under the same weights.
    """
    truncated = metrics.get("truncated", 0.0)
    if first and truncated > stage.guard.truncated:
        raise ValueError(
            f"rollout.max_tokens={stage.rollout.max_tokens}: {truncated:.0%} of the first step's "
            f"rollouts hit the cap (allowed: guard.truncated={stage.guard.truncated:.0%}), so "
            "almost none can be right; raise rollout.max_tokens or begin from a terser model"
        )
    gap, bound = metrics.get("engine_gap", 0.0), engine_gap_bound(stage)
    # of a batch's first update, so before any weight has moved (trainer/tally.py); of a probe
    # where the weights that sampled were older (trainer/staleness.py)
    if not gap <= bound:  # NaN is no agreement either
        raise RuntimeError(
            f"engine gap: mean |learner - engine| logprob is {gap:.2e}, above {bound:.0e} "
            "(guard.engine_gap). The engine does not compute what the learner computes: check "
            "dtype, attention and the model class before training on wrong ratios"
        )
