"""anytime: think once, be cut at several budgets, answer at each of them.

AnytimeReasoner, Qi et al. 2025 (arXiv:2505.13438; code: sail-sg/AnytimeReasoner): m budgets up to
the thinking limit, a prior over them, several answers at each. Fixed cuts can alias with the steps
of a task; `samples` redraws them from the prior, one uniform draw in each of its strata.

Shape suffixes: C cuts.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PlainValidator, model_validator

from samplers import seeds
from samplers.budgets import base
from samplers.facts import CUT_CREDIT, CUTS, MARKERS, PROBES
from samplers.types import Plan, Prompt


def _prior(value: Any) -> str | tuple[float, ...]:
    if isinstance(value, str) and value in ("uniform", "linear", "final"):
        return value
    numbers = isinstance(value, list | tuple) and all(
        isinstance(p, int | float) and not isinstance(p, bool) for p in value
    )
    if not numbers:
        raise ValueError(
            f"{value!r} is no prior; allowed: uniform, linear, final, or a list of probabilities"
        )
    if not (min(value, default=-1) >= 0 and abs(sum(value) - 1) <= 1e-6):  # NaN is neither
        raise ValueError(
            f"{list(value)} sums to {sum(value):g}; give probabilities, 0 or more, that sum to 1"
        )
    return tuple(map(float, value))


Prior = Annotated[str | tuple[float, ...], PlainValidator(_prior)]
_THINK, _COUNT, _ANSWERS = 8000, 4, 4  # the paper's
_CUTS = ("budgets", "count", "samples")


class Config(base.Asking):
    think: int | None = Field(None, ge=1)
    """Thinking limit and last cut; None: the last of `budgets`, else 8000 [paper]."""
    budgets: tuple[int, ...] | None = Field(None, min_length=1)
    """The cuts, ascending; or else `count` or `samples` make them."""
    count: int = Field(_COUNT, ge=1)
    """m cuts at think/m, 2 think/m, ..., think [paper: 4]."""
    samples: int | None = Field(None, ge=1)
    """This many cuts, drawn anew from the prior; the last gives way to the thinking limit."""
    prior: Prior = "uniform"
    """How likely each budget is at test time: `uniform`, `linear` (as the budget), `final` (all on
    the last) or a list that sums to one: of one entry a cut, or with `samples` of one entry for
    each of as many equal bands of 0 to think."""
    per: Literal["prompt", "rollout"] = "prompt"
    """Cuts are drawn once for all rollouts of a prompt, which are then compared cut by cut, or for
    each."""
    answers_per_cut: int | None = Field(None, ge=1)
    """Answers sampled at each cut; None: 4 [paper], or 1 with a probe."""
    answer: int | None = Field(118, ge=1)
    """Cap of an answer [paper: 128 less the 10 of what is inserted]."""
    probe: str = ""
    """Text with {answer}, such as '\\boxed{{answer}}': at all cuts but the last the probability of
    the gold answer in it is the score, and nothing is sampled there."""

    @model_validator(mode="after")
    def _cut(self) -> Config:
        set_ = [name for name in _CUTS if name in self.model_fields_set and getattr(self, name)]
        if len(set_) > 1:
            raise ValueError(
                f"{' and '.join(set_)} each say where to cut; keep one and set the other to null"
            )
        if self.budgets is not None:
            base.ascending(self.budgets)
            if self.limit != self.budgets[-1]:
                raise ValueError(
                    f"budgets={list(self.budgets)} must end at the thinking limit "
                    f"think={self.think}: leave think out, or change the last budget"
                )
        elif self.cuts > self.limit:
            name = "samples" if self.samples else "count"
            raise ValueError(
                f"{name}={self.cuts} cuts do not fit into think={self.limit} tokens; lower {name} "
                "or raise think"
            )
        if isinstance(self.prior, tuple) and not self.samples and len(self.prior) != self.cuts:
            raise ValueError(
                f"prior={list(self.prior)} has {len(self.prior)} entries for {self.cuts} cuts; "
                "give one a cut"
            )
        if self.per == "rollout" and not self.samples:
            warnings.warn(
                "budget.per=rollout has no effect without samples: the cuts are fixed", stacklevel=2
            )
        base.fit(self.limit, self.answer, self.max_tokens)
        return self

    @model_validator(mode="after")
    def _probe(self) -> Config:
        if self.probe and "{answer}" not in self.probe:
            raise ValueError(
                f"probe={self.probe!r} must say where the gold answer goes: {{answer}}"
            )
        if self.probe and (self.answers_per_cut or 1) > 1:
            raise ValueError(
                f"answers_per_cut={self.answers_per_cut}: a probe scores one gold answer a cut; "
                "set answers_per_cut=1, or leave probe out"
            )
        return self

    @property
    def limit(self) -> int:
        """The thinking limit."""
        return self.think or (self.budgets[-1] if self.budgets else _THINK)

    @property
    def cuts(self) -> int:
        """How many there are."""
        if self.samples:
            return 1 if self.prior == "final" else self.samples
        return len(self.budgets) if self.budgets else self.count

    @property
    def answers(self) -> int:
        """Answers at each cut."""
        return self.answers_per_cut or (1 if self.probe else _ANSWERS)


# Cuts and what they weigh


def grid(think: int, count: int) -> tuple[int, ...]:
    """`count` budgets, equally far apart, the last at `think`."""
    return tuple(think * (j + 1) // count for j in range(count))


def weights(budgets: Sequence[int], prior: Prior) -> NDArray[np.float64]:
    """[C] the probability of each budget at test time."""
    budgets_C = np.array(budgets, np.float64)
    if isinstance(prior, tuple):
        return np.array(prior)
    if prior == "final":
        return np.eye(len(budgets_C))[-1]
    mass_C = budgets_C if prior == "linear" else np.ones_like(budgets_C)
    return mass_C / mass_C.sum()


def sampled(think: int, prior: Prior, u_C: NDArray[np.float64]) -> tuple[int, ...]:
    """Cuts from the prior's density over 1..think, one in each of its equally likely strata.

    Args:
        u_C: uniform numbers in (0, 1), one a stratum; the last cut is the thinking limit.
    """
    count = len(u_C)
    if prior == "final":
        return (think,)
    share_C = (np.arange(count) + u_C) / count
    if isinstance(prior, tuple):
        bands = np.linspace(0, 1, len(prior) + 1)
        share_C = np.interp(share_C, np.cumsum([0, *prior]), bands)
    elif prior == "linear":
        share_C = np.sqrt(share_C)
    cuts_C = np.ceil(think * share_C).astype(int)
    cuts_C[-1] = think
    apart_C = np.arange(count)  # where tokens are few: ascending all the same
    cuts_C = np.maximum.accumulate(cuts_C - apart_C) + apart_C
    return tuple(np.minimum(cuts_C, think - apart_C[::-1]).tolist())


class Point(NamedTuple):
    """Where a finished thought is cut for one or several budgets."""

    multiplicity: int
    """Budgets that see just this much of it: all at or beyond its end share one point."""
    valid_len: int
    """Tokens that are seen, a sampled end marker included."""
    needs_close: bool
    """The thought is still open there."""


def truncation(length: int, closed: bool, budgets: Sequence[int]) -> list[Point]:
    """Truncation points of a thought of `length` tokens, the end marker of a `closed` one included.

    `samplers/run.py` does the same but for one case: budgets there count thinking tokens, so one
    that falls just before a sampled end marker takes the marker in, instead of forcing it again.
    """
    inside = [b for b in budgets if b < length]
    points = [Point(1, b, True) for b in inside]
    beyond = len(budgets) - len(inside)
    return [*points, Point(beyond, length, not closed)] if beyond else points


# The policy


def plans(config: Config, prompt: Prompt, n: int, step: int, memory: Any, key: int) -> list[Plan]:
    """`n` plans: cuts, the prior's weight of each, and how each is answered.

    Raises:
        ValueError: no response cap.
    """
    if config.per == "prompt" or config.samples is None:
        return [_plan(config, key)] * n
    return [_plan(config, seeds.key(key, i)) for i in range(n)]


def _plan(config: Config, key: int) -> Plan:
    if config.samples is None:
        cuts = config.budgets or grid(config.limit, config.count)
        weight_C = tuple(weights(cuts, config.prior).tolist())
    else:
        u_C = np.array([base.uniform(key, c) for c in range(config.samples)])
        cuts, weight_C = sampled(config.limit, config.prior, u_C), ()
    return base.plan(
        config,
        think=config.limit,
        cuts=cuts,
        weights=weight_C,
        answers_per_cut=config.answers,
        probe=config.probe,
    )


def natural(config: Config) -> Plan:
    """One thought that nobody cuts."""
    return base.plan(config)


def provides(config: Config) -> set[str]:
    probes = {PROBES} if config.probe else set()
    return {CUTS} | probes if _nested(config) else probes


def requires(config: Config) -> dict[str, str]:
    needed = {MARKERS: "thoughts are cut"}
    if _nested(config):
        needed[CUT_CREDIT] = (
            "answers at cuts are sampled and paid for; without it they teach nothing"
        )
    return needed


def _nested(config: Config) -> bool:
    """More than one answer of one thought."""
    return config.cuts > 1 or config.answers > 1
