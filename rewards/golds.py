"""The golds of a dataset, checked before anything is spent on them.

A gold must accept itself and reject its neighbours: of one that does not, every rollout would be
taught the wrong thing, or nothing. What a right and a wrong answer look like, a verifier says
(`examples`); of one that does not say (a user's function), nothing is checked.
"""

from __future__ import annotations

from collections.abc import Sequence

from rewards.grader import Item, Spec, load
from rewards.service.pool import VerifierPool
from rewards.verdict import Verdict
from rewards.verify import context
from samplers.types import Prompt

EXPLAINED, NAMED = 5, 50
"""Rows told with their reasons, and by their ids."""


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
    if verdict.status == "gold_error" or (right and not verdict.correct):
        return verdict.detail or f"graded '{verdict.status}' as its own answer"
    return f"the different answer {text[:60]} passes too" if verdict.correct and not right else ""


def told(prompts: Sequence[Prompt], bad: dict[int, str]) -> str:
    """The bad rows: the first of each reason with its gold, the ids of more."""
    first = {why: at for at, why in reversed(bad.items())}
    explained = [(at, why) for at, why in bad.items() if first[why] == at][:EXPLAINED]
    rows = [
        f"row {prompts[at].id}: answer {prompts[at].answer[:60]!r}: {why}" for at, why in explained
    ]
    others = [at for at in bad if at not in dict(explained)]
    ids = [prompts[at].id for at in others[: NAMED - len(explained)]]
    more = f"; also rows {', '.join(ids)}" if ids else ""
    rest = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    return "; ".join(rows) + more + rest
