"""format: a small reward for a well-formed thought and a well-formed answer.

    weight * (think * [thought is well formed] + answer * [answer is well formed])

A thought is well formed if there is exactly one end marker up to the end of the answer, and the
model wrote it (or, with `closed: any`, anyone). An answer is well formed if it is there, ended by
itself, and passes `pattern` and `boxed`. "Train Long, Think Short" (arXiv:2508.08940), which states
neither weights nor parts: those are ours. It is paid to wrong answers too; as long as it is less
than the score of a right answer that one still beats them. `gate: correct` pays right ones only.

With `malformed` an answer of which a part is malformed earns that in place of everything that was
listed before: 0 is AnytimeReasoner's rule (with `closed: any`), -1 HBPO's and Phi-4's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from rewards.shaping.base import Gated, added
from rewards.texts import Decode, answers
from samplers.facts import MARKERS
from samplers.render import ThinkingConfig
from samplers.types import Answer, Group, Rollout

BOX = "\\boxed{"


class Config(Gated):
    weight: float = Field(0.1, ge=0)
    """Reward when both parts are well formed and their shares add up to one (ours)."""
    think: float = Field(0.5, ge=0)
    """Share of the thought; 0: nobody looks at it."""
    answer: float = Field(0.5, ge=0)
    """Share of the answer; 0: nobody looks at it."""
    closed: Literal["self", "any"] = "self"
    """Who may close a thought: the model alone, or also the budget policy by force."""
    pattern: str | None = None
    """Regular expression that is to be found in the answer (anchor it with ^ and $; `.` matches
    line ends)."""
    boxed: Literal["answer", "think"] | None = None
    """Where there must be exactly one \\boxed{: in the answer, or in the thought before it (the
    Practical Two-Stage Recipe)."""
    malformed: float | None = Field(None, le=0)
    """Reward of a malformed answer in place of everything listed before; None: what it earned."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _asks_something(self) -> Config:
        if not self.think and not self.answer:
            raise ValueError("think=0 and answer=0 leave nothing to look at; give one a share")
        if not self.weight and self.malformed is None:
            raise ValueError("weight=0 without malformed has no effect; set either of them")
        return self


def requires(config: Config) -> dict[str, str]:
    return {MARKERS: "it looks at the thought; set think: 0"} if _reads_thoughts(config) else {}


def shape(
    groups: Sequence[Group],
    config: Config,
    state: Any,
    decode: Decode | None,
    thinking: ThinkingConfig | None,
) -> tuple[list[NDArray[np.float64]], Any]:
    """One [G, C, A] array per group: in [0, weight * (think + answer)] where well formed."""
    rows = [answers(group) for group in groups]
    flat = [_whole(*cell) for row in rows for cell in row]
    texts, end = iter([""] * len(flat)), ""
    if _reads_thoughts(config):
        assert decode is not None
        assert thinking is not None, "`requires` says so"
        texts, end = iter(decode(flat)), thinking.end
    out = []
    for group, row in zip(groups, rows, strict=True):
        marks = [_well_formed(*cell, next(texts), end, config) for cell in row]
        well_GCA2 = np.array(marks, dtype=bool).reshape(*group.known_GCA.shape, 2)
        shares = np.array([config.think, config.answer])
        extra_GCA = added(group, config.weight * (well_GCA2 * shares).sum(-1), config.gate)
        if config.malformed is not None:
            bad_GCA = (~well_GCA2 & (shares > 0)).any(-1)
            extra_GCA = np.where(bad_GCA, config.malformed - group.total_GCA, extra_GCA)
        out.append(extra_GCA)
    return out, state


def _reads_thoughts(config: Config) -> bool:
    return config.think > 0 or config.boxed == "think"


def _whole(rollout: Rollout, answer: Answer) -> list[int]:
    """Ids of all that led to the answer, forced ones too."""
    return [*rollout.thought.ids_T[: answer.after].tolist(), *answer.tokens.ids_T.tolist()]


def _well_formed(
    rollout: Rollout, answer: Answer, text: str, end: str, config: Config
) -> tuple[bool, bool]:
    """(thought, answer) of one response, whose `text` has everything in it."""
    marks = text.count(end) if end else 0
    itself = rollout.closed and answer.after == len(rollout.thought)
    thought = marks == 1 and (itself or config.closed == "any")
    if rollout.skipped:  # the prompt, or a prefill, closed it
        thought = marks <= 1
    said = (answer.text or "").strip()
    good = bool(said) and answer.tokens.finish == "stop"
    if config.pattern is not None:
        good = good and re.search(config.pattern, said, re.DOTALL) is not None
    if config.boxed is not None:
        where = said if config.boxed == "answer" else text.partition(end)[0]
        good = good and where.count(BOX) == 1
    return thought, good
