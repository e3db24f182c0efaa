"""What is generated, as texts and counts: a rollout as its reader and its payer see it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

import numpy as np

from samplers.render import Renderer
from samplers.types import Finish, Floats, Plan, Prompt, Rollout, Watch

Ended = Literal["itself", "budget", "rule", "length", "abort", "none"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens by phase."""

    prompt: int = 0
    """Read, once for all samples."""
    thinking: int = 0
    """Before the end marker, forced ones included."""
    answer: int = 0
    """Sampled of the answer, its end included."""
    forced: int = 0
    """Inserted: what closed a thought, or kept it going."""
    probes: int = 0
    """Sampled and not kept: trial answers of a stopping rule, ends of thought that it replaced."""
    questions: int = 0
    """Read in a stopping rule's looks."""
    reread: int = 0
    """Of thoughts, read again for a rule's looks and pieces: what vLLM's prefix cache lacks."""
    total: int = 0
    """All that was sampled or forced, of every sample."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Sample:
    """One thought and its answer."""

    text: str
    """The whole response, markers included."""
    reasoning: str
    answer: str | None
    """None: none was reached, or the model went on thinking."""
    ended: Ended
    """How the thought did: by itself, at the budget, by the stopping rule, by the response's cap,
    because other samples sufficed (abort); none: there was nothing to think."""
    finish: Finish
    """Of the response: its end was sampled (stop), it was cut (length), or ended (abort)."""
    forced: str
    """All that was inserted."""
    logprob: float
    """Mean over sampled tokens; NaN where there are none."""
    confidence: float
    """Geometric mean of the probabilities of the answer's sampled tokens, as in evaluations; NaN
    where there are none."""
    usage: Usage
    rollout: Rollout


@dataclass(frozen=True, slots=True)
class Generation:
    """What came of one prompt."""

    prompt: Prompt
    plan: Plan
    samples: tuple[Sample, ...]
    chosen: int
    """Which of them is returned; the first where no selection was asked for or nobody answered."""
    usage: Usage
    """Of all samples together."""
    aborted: int = 0
    """Samples that were ended because others sufficed."""
    spared: int = 0
    """Tokens that these might still have thought, at most. What they would have, nobody knows."""
    votes: Mapping[str, int] = field(default_factory=dict)
    """Of a selection: canonical answers and how many samples gave each."""

    @property
    def best(self) -> Sample:
        return self.samples[self.chosen]

    @property
    def text(self) -> str:
        return self.best.text

    @property
    def reasoning(self) -> str:
        return self.best.reasoning

    @property
    def answer(self) -> str | None:
        return self.best.answer

    @property
    def finish_reason(self) -> Finish:
        return self.best.finish

    @property
    def forced(self) -> str:
        return self.best.forced

    @property
    def truncated(self) -> bool:
        return self.best.rollout.truncated


def read(rollout: Rollout, renderer: Renderer) -> Sample:
    """A rollout as texts and counts."""
    decode, last = renderer.decode, rollout.final.tokens
    thought = rollout.thought
    forced = np.concatenate([t.ids_T[t.forced_T] for t in (thought, last)])
    said = last.logprobs_T[~last.forced_T]
    logprobs = np.concatenate([thought.logprobs_T[~thought.forced_T], said])
    watch = rollout.watch or Watch()
    usage = Usage(
        prompt=len(rollout.prompt_ids_T),
        thinking=rollout.think_tokens,
        answer=rollout.answer_tokens,
        forced=len(forced),
        probes=watch.sampled,
        questions=watch.fed,
        reread=watch.reread,
        total=rollout.response_tokens + watch.sampled,
    )
    end = last if len(last) or thought.finish == "stop" else thought
    return Sample(
        decode(np.concatenate([thought.ids_T, last.ids_T])),
        decode(thought.ids_T[: rollout.think_tokens]),
        rollout.final.text,
        _ended(rollout, renderer),
        end.finish,
        decode(forced),
        _mean(logprobs),
        math.exp(_mean(said)),
        usage,
        rollout,
    )


def _mean(values_T: Floats) -> float:
    return float(values_T.mean(dtype=np.float64)) if len(values_T) else math.nan


def _ended(rollout: Rollout, renderer: Renderer) -> Ended:
    if rollout.thought.finish == "abort":
        return "abort"
    if rollout.skipped or renderer.thinking is None:
        return "none"
    if rollout.watch is not None and rollout.watch.exit is not None:
        return "rule"
    if rollout.closed or rollout.thought.finish == "stop":
        return "itself"
    return "budget" if rollout.final.reached else "length"
