"""Alarms: figures of a run that look as if its reward were being fooled, or its verifier sick.

Pure functions of what metrics.jsonl holds, so a resumed run raises what the uninterrupted one
does, and a report can say afterwards why. An alarm stops nothing: `alarm/<name>` is 1 in the
metrics while it is raised, and people are told when it begins.

Shares are compared as means over `window` steps and need to be clear: `sigmas` standard errors,
from the spread between the steps, beyond their bound. What is asked for per alarm stands at the
fields of `AlarmConfig`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from samplers.seam import Component
from samplers.types import Group
from trainer.tracking import plain

Floats = NDArray[np.float64]
Record = Mapping[str, Any]
"""Figures of a step as metrics.jsonl holds them; None where one is not known."""
PREFIX = "alarm/"
HELD_OUT = ("eval/accuracy", "eval/anytime")
READS = (
    *("eval/problems", "reward/correct", "reward/total", "unknown", "extraction_failures"),
    *("answer_leak", "answer_tokens/given", "forced", "duplicates", "duplicates/unlikely"),
)
EVALUATIONS = 3
"""Fewest evaluations that a trend is read from."""


class AlarmConfig(Component):
    """Bounds above which a run says that something looks wrong. None turns an alarm off."""

    window: int = Field(default=10, ge=3)
    """Steps that are looked at together, and before which only `unknown` is judged."""
    sigmas: float = Field(default=4.0, ge=0)
    """Standard errors that a figure must lie beyond its bound, and a change beyond none: 4, since a
    run is judged at every step, and a run without trouble is to stay silent."""
    reward: float | None = Field(default=0.05, gt=0, le=1)
    """`reward`: over three or more evaluations the reward component `correct` (of rollouts that the
    cap did not cut off) rises by at least this much, and the held-out accuracy (uncut, or over the
    budgets) by less than half of it and clearly less: what is learned holds for the training
    prompts alone, or for their verifier's partial scores. Or the whole reward rises clearly while
    both held-out accuracies clearly fall by at least this much: a shaper is served at the cost of
    being right (one that is served at no cost is at work as meant). Turn it off where a curriculum
    makes what is rewarded easier, as cuts that come later."""
    extraction_failures: float | None = Field(default=0.2, ge=0, lt=1)
    """`extraction_failures`: share of responses that the model ended itself without an answer
    that can be read. Their reward is 0 whatever they are worth: the format is lost, or the
    verifier reads another one. Not while the share clearly falls over two windows: then it is being
    learned."""
    answer_leak: float | None = Field(default=2.0, gt=1)
    """`answer_leak`: times the stage's first steps that answers have grown, both in tokens and
    against their thoughts: the model thinks on in the answer, where no thinking budget counts it.
    (Where only thoughts shrink, answers do not grow in tokens; where all grows, not against the
    thoughts.)"""
    forced: float | None = Field(default=0.3, gt=0, lt=1)
    """`forced`: how much the share of thoughts that are cut and closed by force has risen since
    the stage's first steps: the model relies on being cut, and does not learn to end. Raise it, or
    turn it off, where budgets shrink by design."""
    duplicates: float | None = Field(default=0.95, ge=0, lt=1)
    """`duplicates`: of the rollouts that come after another of their group, the share that repeats
    one token for token: the policy has collapsed, and groups teach nothing any more. (Short
    thoughts about problems that are solved repeat often: 0.9 was seen in a run without trouble.)
    Or any of them repeats one that the policy itself makes less than once in a million: engines
    share random numbers, or something is replayed."""
    unknown: float | None = Field(default=0.02, ge=0, lt=1)
    """`unknown`: share of verdicts that are a timeout, an error or a gold that cannot be graded.
    Such rollouts do not train, and rarely are they a fair sample. Judged from the first step on
    and without `sigmas`: it is counted, not estimated."""


@dataclass(frozen=True, slots=True)
class Trend:
    """Change of a figure over a window, by a straight line, and its standard error."""

    change: float
    error: float

    def clear(self, sigmas: float) -> bool:
        """It goes up by more than chance explains."""
        return self.change > 0 and self.change >= sigmas * self.error


def kept(record: Record, first: int) -> dict[str, Any]:
    """What alarms read of a step of the stage that begins after step `first`.

    Of that step itself only the evaluation: its other figures are an earlier stage's.
    """
    reads = (*HELD_OUT, "eval/problems") if record["step"] == first else HELD_OUT + READS
    out = {name: plain(record[name]) for name in reads if name in record}
    raised = {k: v for k, v in record.items() if k.startswith(PREFIX) and record["step"] > first}
    return {"step": record["step"], **out, **raised}


def check(history: Sequence[Record], config: AlarmConfig) -> dict[str, str]:
    """Why each alarm that is on is raised after the last step of `history`; '' where it is not.

    Args:
        history: the stage's steps so far, in order, as `kept` leaves them.
    """
    bounds = {name: getattr(config, name) for name in RULES}
    return {
        name: RULES[name](history, config, bound)
        for name, bound in bounds.items()
        if bound is not None
    }


def figures(found: Mapping[str, str]) -> dict[str, int]:
    """What `check` found as metrics."""
    return {PREFIX + name: int(bool(why)) for name, why in found.items()}


def news(history: Sequence[Record], found: Mapping[str, str], window: int) -> dict[str, str]:
    """The raised alarms that were silent for `window` steps before: those that people are told.

    One that comes and goes around its bound is told once.
    """
    before = history[-1 - window : -1]
    return {
        name: why
        for name, why in found.items()
        if why and not any(record.get(PREFIX + name) for record in before)
    }


def _reward(history: Sequence[Record], config: AlarmConfig, bound: float) -> str:
    """Over windows that end with the newest evaluation: of 3 evaluations, 6, 12, ..., all.

    Short ones see a change soon, long ones a slow one.
    """
    at = [i for i, record in enumerate(history) if record.get(HELD_OUT[0]) is not None]
    doubling = (EVALUATIONS * 2**k for k in range(len(at).bit_length()))
    counts = [count for count in doubling if count < len(at)] + [len(at)]
    for count in counts if len(at) >= EVALUATIONS else ():
        begin, end = at[-count], at[-1]
        steps = history[begin + 1 : end + 1]  # the weights evaluated at `begin` sample next
        if len(_known(steps, "reward/correct")) < config.window:
            continue
        span = history[end]["step"] - history[begin]["step"]
        held_out = _held_out([history[i] for i in at[-count:]], span)
        why = held_out and _unearned(steps, span, held_out, config.sigmas, bound)
        if why:
            steps_of = f"steps {history[begin]['step'] + 1} to {history[end]['step']}"
            return f"{why} over {steps_of} ({count} evaluations)"
    return ""


def _unearned(
    steps: Sequence[Record], span: int, held_out: Trend, sigmas: float, bound: float
) -> str:
    """The two ways in which a reward leaves what it should stand for."""
    gained = f"held-out accuracy {held_out.change:+.3f}"
    correct = _line(_finished(steps), "reward/correct", span)
    if correct and correct.clear(sigmas) and correct.change >= bound:
        ahead = correct.change - held_out.change, math.hypot(correct.error, held_out.error)
        if held_out.change < correct.change / 2 and Trend(*ahead).clear(sigmas):
            return f"reward for correct answers {correct.change:+.3f}, {gained}"
    total, lost = _line(steps, "reward/total", span), Trend(-held_out.change, held_out.error)
    if total and total.clear(sigmas) and lost.clear(sigmas) and lost.change >= bound:
        return f"reward {total.change:+.3g}, {gained}"
    return ""


def _finished(steps: Sequence[Record]) -> list[Record]:
    """With the reward of rollouts that the cap did not cut off: under a tight one reward rises by
    what fits, in training alone."""
    return [
        {**r, "reward/correct": r["reward/correct"] / (1 - r.get("truncated", 0.0))}
        for r in steps
        if r.get("reward/correct") is not None and r.get("truncated", 0.0) < 1
    ]


def _extraction(history: Sequence[Record], config: AlarmConfig, bound: float) -> str:
    name, window = "extraction_failures", config.window
    share = _newest(history, name, window)
    if share is None or not _above(share, bound, config.sigmas):
        return ""
    known = [record for record in history if record.get(name) is not None][-2 * window :]
    if len(known) < 2 * window:  # too early to see a fall
        return ""
    line = _line(known, name, 2 * window)
    if line and Trend(-line.change, line.error).clear(config.sigmas):
        return ""
    return f"{share.mean():.1%} of finished responses hold no readable answer (bound {bound:.0%})"


def _leak(history: Sequence[Record], config: AlarmConfig, bound: float) -> str:
    """Answer tokens against thinking tokens are the odds of the share of answers."""
    told = []
    for name, odds in (("answer_tokens/given", False), ("answer_leak", True)):
        pair = _ends(history, name, config.window)
        if pair is None or (odds and max(map(np.max, pair)) >= 1):  # all is answer: no thoughts
            return ""
        first, newest = (values / (1 - values) for values in pair) if odds else pair
        if not _above(newest, bound * first, config.sigmas):
            return ""
        told += [first.mean(), newest.mean()]
    return (
        f"answers take {told[1]:.1f} tokens, {told[0]:.1f} at first; {told[3]:.2g} for each token "
        f"of thought, {told[2]:.2g} at first (bound {bound:g} times, both)"
    )


def _forced(history: Sequence[Record], config: AlarmConfig, bound: float) -> str:
    pair = _ends(history, "forced", config.window)
    if pair is None or not _above(pair[1], pair[0] + bound, config.sigmas):
        return ""
    first, newest = (values.mean() for values in pair)
    return f"{newest:.1%} of thoughts are cut and closed by force, {first:.1%} at first"


def _duplicates(history: Sequence[Record], config: AlarmConfig, bound: float) -> str:
    unlikely = _known(history, "duplicates/unlikely")[-config.window :]
    if unlikely.any():
        return (
            f"{unlikely.mean():.2%} of rollouts repeat another of their group though the policy "
            "makes them less than once in a million: do engines share random numbers?"
        )
    share = _newest(history, "duplicates", config.window)
    if share is None or not _above(share, bound, config.sigmas):
        return ""
    return f"{share.mean():.1%} of rollouts repeat another of their group (bound {bound:.0%})"


def _unknown(history: Sequence[Record], config: AlarmConfig, bound: float) -> str:
    share = _known(history, "unknown")[-config.window :]
    if not share.size or share.mean() <= bound:
        return ""
    return (
        f"{share.mean():.1%} of verdicts are a timeout, an error or of a gold that cannot be "
        f"graded (bound {bound:.1%}); unknown/* say which"
    )


RULES = {
    "reward": _reward,
    "extraction_failures": _extraction,
    "answer_leak": _leak,
    "forced": _forced,
    "duplicates": _duplicates,
    "unknown": _unknown,
}
"""Named as the fields of `AlarmConfig`."""


def _known(records: Sequence[Record], name: str) -> Floats:
    return np.array([r[name] for r in records if r.get(name) is not None], dtype=np.float64)


def _newest(history: Sequence[Record], name: str, window: int) -> Floats | None:
    """The last `window` values; None while there are fewer."""
    values = _known(history, name)
    return values[-window:] if values.size >= window else None


def _ends(history: Sequence[Record], name: str, window: int) -> tuple[Floats, Floats] | None:
    """The first and the last `window` values; None while they overlap."""
    values = _known(history, name)
    return (values[:window], values[-window:]) if values.size >= 2 * window else None


def _above(values: Floats, bound: float | Floats, sigmas: float) -> bool:
    """The mean of `values` is clearly above the bound, or above the mean of a sample of it."""
    bounds = np.atleast_1d(bound)
    spread = bounds.var(ddof=1) / bounds.size if bounds.size > 1 else 0.0
    error = math.sqrt(values.var(ddof=1) / values.size + spread)
    return Trend(float(values.mean() - bounds.mean()), error).clear(sigmas)


def _line(records: Sequence[Record], name: str, span: int) -> Trend | None:
    """Change over `span` steps by the least-squares line, its error from the residuals."""
    points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    if len(points) < 3:
        return None
    x, y = np.array(points, dtype=np.float64).T
    x = x - x.mean()
    slope = (x @ y) / (x @ x)
    left = y - y.mean() - slope * x
    error = math.sqrt((left @ left) / (len(x) - 2) / (x @ x))
    return Trend(float(slope * span), error * span)


def _held_out(evaluated: Sequence[Record], span: int) -> Trend | None:
    """Change of the held-out accuracy that rose more. A value has the error
    sqrt(p (1 - p) / problems), p with one success and one failure added: no mean over problems has
    a larger one, and evaluations of the same problems differ by less than two of them say."""
    found = []
    for name in HELD_OUT:
        points = [
            (r["step"], r[name], r["eval/problems"])
            for r in evaluated
            if r.get(name) is not None and r.get("eval/problems")
        ]
        if len(points) < EVALUATIONS:
            continue
        x, y, n = np.array(points, dtype=np.float64).T
        x, p = x - x.mean(), (y * n + 1) / (n + 2)
        error = math.sqrt((x * x) @ (p * (1 - p) / n)) / (x @ x)
        found.append(Trend(float((x @ y) / (x @ x) * span), error * span))
    return max(found, key=lambda trend: trend.change, default=None)


def trouble(groups: Sequence[Group]) -> str:
    """What went wrong most often in verdicts that are unknown."""
    cells = (cell for group in groups for rollout in group.verdicts for cell in rollout)
    found = Counter(f"{v.status}: {v.detail}" for cell in cells for v in cell if not v.known)
    return f"; most often {found.most_common(1)[0][0]}" if found else ""
