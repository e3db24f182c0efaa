"""Verdicts of groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from rewards.grader import Item
from rewards.verdict import Verdict
from samplers.types import Answer, Group, Prompt, Rollout

UNMADE = Verdict(False, 0.0, "error", detail="no engine survived its prompt")
"""Of what was never made nothing is known."""
Grade = Callable[[Sequence[Item]], Sequence[Verdict]]


def verify(groups: Sequence[Group], grade: Grade) -> list[Group]:
    """Groups with their verdicts, `[rollout][cut][answer]`, from one call of `grade`.

    Only the answer part is sent (rule 4). `meta` carries the row's own fields, as `prompt` the chat
    messages or the text, and as `verifier` the one that the row names. A probe is not sent: its
    probability is its score. Nor is what was never made: nothing is known of it.
    """
    items = [
        (answer.text, group.prompt.answer, meta)
        for group in groups
        for meta in (context(group.prompt),)
        for rollout in group.rollouts
        for cut in rollout.answers
        for answer in cut
        if answer.probability is None and not rollout.unmade
    ]
    verdicts = grade(items)
    assert len(verdicts) == len(items)
    rest = iter(verdicts)
    return [
        replace(
            group,
            verdicts=tuple(
                tuple(
                    tuple(_unasked(rollout, a) or next(rest) for a in cut)
                    for cut in rollout.answers
                )
                for rollout in group.rollouts
            ),
        )
        for group in groups
    ]


def _unasked(rollout: Rollout, answer: Answer) -> Verdict | None:
    """Of a probe: right where the model would rather give the gold answer than any other."""
    if rollout.unmade:
        return UNMADE
    p = answer.probability
    if p is None:
        return None
    return Verdict(p >= 0.5, p, "ok" if p >= 0.5 else "wrong", grader="gold-probability")


def context(prompt: Prompt) -> dict[str, object]:
    """What a verifier may know of the prompt besides its gold."""
    known = {"prompt": list(prompt.messages) or prompt.text, **prompt.meta}
    return known | {"verifier": prompt.verifier} if prompt.verifier else known
