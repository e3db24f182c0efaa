"""Verdicts of groups, and the golds of a dataset checked before a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from rewards.grader import Item, Spec, load
from rewards.pool import VerifierPool
from rewards.verdict import Verdict
from samplers.types import Answer, Group, Prompt

Grade = Callable[[Sequence[Item]], Sequence[Verdict]]


def verify(groups: Sequence[Group], grade: Grade) -> list[Group]:
    """Groups with their verdicts, `[rollout][cut][answer]`, from one call of `grade`.

    Only the answer part is sent (rule 4). `meta` carries the row's own fields and, as `prompt`,
    the chat messages or the text. A probe is not sent: its probability is its score.
    """
    items = [
        (answer.text, group.prompt.answer, meta)
        for group in groups
        for meta in (context(group.prompt),)
        for rollout in group.rollouts
        for cut in rollout.answers
        for answer in cut
        if answer.probability is None
    ]
    verdicts = grade(items)
    assert len(verdicts) == len(items)
    rest = iter(verdicts)
    return [
        replace(
            group,
            verdicts=tuple(
                tuple(tuple(_probed(a) or next(rest) for a in cut) for cut in rollout.answers)
                for rollout in group.rollouts
            ),
        )
        for group in groups
    ]


def _probed(answer: Answer) -> Verdict | None:
    """Of a probe: right where the model would rather give the gold answer than any other."""
    p = answer.probability
    if p is None:
        return None
    return Verdict(p >= 0.5, p, "ok" if p >= 0.5 else "wrong", grader="gold-probability")


def context(prompt: Prompt) -> dict[str, object]:
    """What a verifier may know of the prompt besides its gold."""
    return {"prompt": list(prompt.messages) or prompt.text, **prompt.meta}


def check_golds(prompts: Sequence[Prompt], verifier: Spec) -> list[tuple[str, str]]:
    """(prompt id, reason) of every gold that the verifier does not accept as its own answer.

    A gold written as an answer must be right, and where the verifier can make a wrong neighbour
    of it (a digit changed), that must be wrong. Of a verifier that gives no examples (a user's
    function) nobody knows what a right answer looks like: nothing is checked.
    """
    examples = load(verifier).examples
    if examples is None:
        return []
    items: list[Item] = []
    for prompt in prompts:
        right, wrong = examples(prompt.answer)
        meta = context(prompt)
        items += [(right, prompt.answer, meta), (wrong, prompt.answer, meta)]
    with VerifierPool(verifier) as pool:
        verdicts = pool.grade(items)
    bad = []
    for i, prompt in enumerate(prompts):
        right_verdict, wrong_verdict = verdicts[2 * i : 2 * i + 2]
        if not right_verdict.correct:
            why = right_verdict.detail or f"graded '{right_verdict.status}' as its own answer"
            bad.append((prompt.id, why))
        elif wrong_verdict.correct:
            bad.append((prompt.id, f"the different answer {items[2 * i + 1][0]} passes too"))
    return bad


def require_golds(prompts: Sequence[Prompt], verifier: Spec) -> None:
    """Raise ValueError naming the rows whose golds the verifier does not accept."""
    bad = check_golds(prompts, verifier)
    if not bad:
        return
    answers = {prompt.id: prompt.answer for prompt in prompts}
    shown = "; ".join(f"row {id}: answer {answers[id][:60]!r}: {why}" for id, why in bad[:5])
    more = f" (and {len(bad) - 5} more)" if len(bad) > 5 else ""
    raise ValueError(
        f"data: the verifier rejects the gold of {len(bad)} of {len(prompts)} rows; {shown}{more}; "
        "correct or drop them, or choose another verifier"
    )
