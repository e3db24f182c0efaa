"""The golds of a dataset, checked before anything is spent on them.

A gold must accept itself and reject its neighbours: of one that does not, every rollout would be
taught the wrong thing, or nothing. What a right and a wrong answer look like, a verifier says
(`examples`); of one that does not say (a user's function), nothing is checked.
"""

from __future__ import annotations

from collections.abc import Sequence

from rewards.grader import Item, Spec, load
from rewards.pool import VerifierPool
from rewards.verdict import Verdict
from rewards.verify import context
from samplers.types import Prompt

SHOWN = 5


def check_golds(prompts: Sequence[Prompt], verifier: Spec) -> dict[int, str]:
    """Why the gold of a row is bad, by position in `prompts`."""
    examples = load(verifier).examples
    asked: list[tuple[int, bool]] = []
    items: list[Item] = []
    for at, prompt in enumerate(prompts):
        meta = context(prompt)
        for right, texts in zip((True, False), examples(prompt.answer, meta), strict=True):
            items += [(text, prompt.answer, meta) for text in texts]
            asked += [(at, right)] * len(texts)
    if not items:
        return {}
    with VerifierPool(verifier) as pool:
        verdicts = pool.grade(items)
    bad: dict[int, str] = {}
    for (at, right), (text, _, _), verdict in zip(asked, items, verdicts, strict=True):
        if why := _fault(right, str(text), verdict):
            bad.setdefault(at, why)
    return bad


def _fault(right: bool, text: str, verdict: Verdict) -> str:
    if right and not verdict.correct:
        return verdict.detail or f"graded '{verdict.status}' as its own answer"
    return "" if right or not verdict.correct else f"the different answer {text[:60]} passes too"


def told(prompts: Sequence[Prompt], bad: dict[int, str], limit: int = SHOWN) -> str:
    """The bad rows with their ids and reasons, the first `limit` of them."""
    rows = [
        f"row {prompts[at].id}: answer {prompts[at].answer[:60]!r}: {why}"
        for at, why in list(bad.items())[:limit]
    ]
    more = f" (and {len(bad) - limit} more)" if len(bad) > limit else ""
    return "; ".join(rows) + more


def require_golds(prompts: Sequence[Prompt], verifier: Spec) -> None:
    """Raise ValueError naming the rows whose golds the verifier does not accept."""
    if bad := check_golds(prompts, verifier):
        raise ValueError(
            f"data: the verifier rejects the gold of {len(bad)} of {len(prompts)} rows; "
            f"{told(prompts, bad)}; correct or drop them, or choose another verifier"
        )
