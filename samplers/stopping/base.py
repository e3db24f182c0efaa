"""What stopping rules have in common: a look at a thought under way, and what may be done then.

A rule is a file with a `Config` and functions of which it has those that it needs

    probe(config) -> Probe                   what is put to the model at each look; it is not kept
    stops(config, looks) -> bool             pure: end the thought now?
    resumes(config, spent, times) -> str     text to go on with where the model wants to end after
                                             `spent` tokens, and was `times` times made to go on;
                                             '' lets it
    ramp(config, budget, token) -> Ramp      how the logit of the end marker `token` is raised

    check(config, plan)                      ValueError for a plan that it cannot watch

A rule with `probe` has `stops`, and `Config.every`: thinking tokens from look to look. Live it is
`samplers/watched.py` that runs them. Offline the looks are the cuts of a saved trace: `exit_of`
says at which of them a rule would have stopped, by the same `stops`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from pydantic import Field

from samplers import seam
from samplers.seam import Component
from samplers.types import Plan

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Probe:
    """A question put behind the thought so far."""

    text: str
    """Follows the thought, or the close."""
    tokens: int
    """Most tokens of what it says."""
    close: bool = True
    """The plan's way of closing a thought comes first: the model answers as at a hard budget."""
    temperature: float = 0.0
    given: tuple[str, ...] = ()
    """Texts to weigh instead of sampling one; `Look.share` is the first one's share of them."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a rule sees."""

    spent: int
    """Thinking tokens so far."""
    answer: str | None
    """Canonical trial answer; None: none was given."""
    confidence: float
    """Geometric mean of the probabilities of the trial answer's tokens; NaN: not asked."""
    share: float = NAN
    """Of a probe's `given`; NaN where none was asked, as in all looks of saved traces."""


class Watching(Component):
    """Settings of rules that look at trial answers."""

    every: int = Field(32, ge=1)
    """Thinking tokens from look to look."""
    text: str = ""
    """Follows the end marker, as in '\\n**Final Answer**\\n\\boxed{'."""
    tokens: int = Field(32, ge=1, le=128)
    """Most tokens of a trial answer."""
    temperature: float = Field(0.0, ge=0)
    """Of trial answers; 0: greedy."""


def ask(config: Watching) -> Probe:
    """A trial answer, as the model would give it if its thought were closed here."""
    return Probe(config.text, config.tokens, temperature=config.temperature)


def exit_of(rule: ModuleType, config: Any, looks: Sequence[Look]) -> int | None:
    """Index of the look at which the rule ends the thought; None: never."""
    for i in range(len(looks)):
        if rule.stops(config, looks[: i + 1]):
            return i
    return None


def offline(rule: ModuleType) -> bool:
    """Whether saved traces tell what it would have done: it looks at trial answers alone."""
    return hasattr(rule, "stops") and getattr(rule, "OFFLINE", True)


def resolve(spec: str | Mapping[str, Any]) -> tuple[ModuleType, Any]:
    """The rule that `spec` names, and its settings.

    Raises:
        ValueError: no such rule, or settings that it refuses, in one line.
    """
    if not isinstance(spec, str):
        spec = {**spec, "name": str(spec.get("name", "")).replace("-", "_")}
    else:
        spec = spec.replace("-", "_")
    rule, config = seam.told("samplers.stopping", spec)
    if not any(hasattr(rule, name) for name in ("stops", "resumes", "ramp")):
        raise ValueError(f"stopping: module '{rule.__name__}' has none of stops, resumes and ramp")
    return rule, config


def check(plan: Plan) -> tuple[ModuleType, Any]:
    """Rule and settings of a plan that the rule can watch.

    Raises:
        ValueError: no such rule, or settings of rule and plan that do not go together.
    """
    assert plan.stopping is not None
    rule, config = resolve(plan.stopping)
    if plan.cuts or plan.chunk is not None:
        raise ValueError(
            f"stopping: a thought that a rule may end has no cuts ({plan.cuts}) and no chunks "
            f"({plan.chunk}); leave out one or the other"
        )
    most = plan.max_tokens if plan.think is None else plan.think
    if hasattr(rule, "probe") and config.every >= most:
        raise ValueError(
            f"stopping.every: {config.every} would have no effect: a thought has {most} tokens at "
            "most, and is never looked at; lower it"
        )
    getattr(rule, "check", lambda *_: None)(config, plan)
    return rule, config
