"""The types that flow: Prompt, Plan, Job, Request, Completion, Tokens, Answer, Rollout, Group.

Shape suffixes: T tokens, G rollouts of a group, C cuts (nested budgets; 1 when the plan has
none), A answers per cut. Frozen dataclasses cross every boundary inside a process; between
processes they travel as columns (`samplers/columns.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Floats = NDArray[np.float32]
Finish = Literal["stop", "length", "abort", "repetition"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem. `index` is dense in its dataset: every statistic is an array over it."""

    index: int
    id: str
    messages: tuple[Mapping[str, str], ...]
    """Chat messages; empty when `text` is used as it stands (no chat template)."""
    text: str
    answer: str
    """The gold answer, as the verifier reads it."""
    verifier: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Anything else the row carries; `difficulty` (int) is read by reports."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How one rollout thinks. Lengths are tokens; None means: what the response cap leaves.

    `think` counts thinking tokens before the end marker, as serving engines do. When it is
    reached, `close` is inserted (forced, never trained on) and the answer begins. A plan with
    `think=None` never forces: a thought that reaches `max_tokens` stays unclosed.
    """

    max_tokens: int
    """Cap of the whole response: thought, inserted text and one answer."""
    think: int | None = None
    answer: int | None = None
    cuts: tuple[int, ...] = ()
    """Nested budgets, ascending: the thought is computed once and answered at each of them."""
    answers_per_cut: int = 1
    weights: tuple[float, ...] = ()
    """Prior probability of each cut as a test-time budget; empty means all equal."""
    probe: str = ""
    """Text of a gold answer, as in '{answer}' or '\\boxed{{answer}}'. Set, no cut but the last is
    answered: at the others that text (and the end of the response) is scored, not sampled."""
    close: str = ""
    """Text that closes a cut thought; empty means the end marker alone."""
    after_close: str = ""
    """Text inserted after every end marker, natural or forced, before the answer."""
    template: Mapping[str, Any] = field(default_factory=dict)
    """Chat-template arguments of the mode (`enable_thinking`, `reasoning_effort`, ...)."""
    system: str | None = None
    suffix: str = ""
    """Appended to the last user message (or to the text)."""
    prefill: str = ""
    """Forced start of the response, after the generation prompt."""
    subgroup: str = ""
    """Rollouts of one prompt that share a mode (its name) or a budget (its number) share this."""
    target: int | None = None
    """Tokens that were announced or are wanted; length rewards read it, generation does not."""
    collapse: bool = False
    """Cuts that see the same of the thought (all at or beyond its end) share the last one's
    answers: for measuring; training needs independent ones."""
    chunk: int | None = None
    """At most this many new tokens per step; the rest is continued by newer weights."""
    stopping: str | Mapping[str, Any] | None = None
    """A rule that may end the thought, or keep it going (`samplers/stopping`): for inference."""


@dataclass(frozen=True, slots=True)
class Job:
    """One rollout to make: the driver sends lists of these to a rollout worker."""

    prompt: Prompt
    plan: Plan
    group: int
    """Serial number of the group in the run (the draw of its prompt from the stream)."""
    index: int
    """Index of the rollout in its group."""
    seed: int
    """64-bit key of the rollout's random numbers (`samplers/seeds.py`)."""
    temperature: float = 1.0
    resume: Rollout | None = None
    """An unfinished rollout to continue."""
    top_p: float = 1.0
    top_k: int = 0
    """As of `Request`, for thought and answers: for inference, training samples of all tokens."""


@dataclass(frozen=True, slots=True)
class Ramp:
    """A logit raised while a completion grows: none before `start` tokens, all from `end` on."""

    token: int
    start: float
    end: float
    strength: float

    def at(self, count: float) -> float:
        """What is added where `count` tokens of the completion stand."""
        done = (count - self.start) / (self.end - self.start)
        return self.strength * min(max(done, 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class Request:
    """What an engine is asked to complete: `ids` after the kept `prefix`, if any."""

    id: int
    ids: Ids
    max_tokens: int
    stop_ids: tuple[int, ...] = ()
    temperature: float = 1.0
    """0 is greedy. Logprobs are those after temperature and truncation (when greedy: of
    temperature 1, untruncated)."""
    seed: int = 0
    prefix: tuple[int, int] | None = None
    """(handle of an earlier completion kept with `keep`, how many of its tokens to reuse)."""
    keep: bool = False
    """Keep the KV of prompt and completion; the completion then carries a handle."""
    logit_bias: Mapping[int, float] | None = None
    given: Ids | None = None
    """Tokens to score after `ids` instead of sampling any: they come back as the completion, with
    the logprobs that the model gives them; limits and seed are then without effect."""
    drawn: int = 0
    """Tokens that this seed has drawn before: its random numbers go on behind them (torch), or
    are others for every such number (vLLM)."""
    ramp: Ramp | None = None
    """Refused by an engine without `ramps`."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability, among those of `top_k`
    (nucleus sampling, arXiv:1904.09751). Given tokens are scored without either."""
    top_k: int = 0
    """Only so many of the likeliest; 0: all."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine made. A stop token that was sampled is the last id and has a logprob."""

    id: int
    ids_T: Ids
    logprobs_T: Floats
    finish: Finish
    spans: tuple[tuple[int, int], ...]
    """(first token, weight version): ascending runs of tokens made by one version."""
    handle: int | None = None
    prefilled: int = 0
    """Prompt tokens computed for it, those of a prefix that was to be reused included (vLLM)."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A run of response tokens. A forced token has no behaviour logprob: NaN says so."""

    ids_T: Ids
    logprobs_T: Floats
    finish: Finish
    spans: tuple[tuple[int, int], ...] = ()

    @property
    def forced_T(self) -> NDArray[np.bool_]:
        return np.isnan(self.logprobs_T)

    def __len__(self) -> int:
        return len(self.ids_T)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. It sees the prompt and the first `after` tokens of the thought."""

    after: int
    tokens: Tokens
    """Forced text first (end marker of a cut thought, inserted phrase), then what was sampled."""
    text: str | None
    """The answer part, decoded; None where none was reached, or the model went on thinking."""
    probability: float | None = None
    """Of a probe (`Plan.probe`): what the model gave the gold answer, whole. None: sampled."""

    @property
    def reached(self) -> bool:
        """The model was let speak here, whether it answered or went on thinking."""
        return self.tokens.finish != "abort" and not bool(self.tokens.forced_T.all())


@dataclass(frozen=True, slots=True)
class Watch:
    """What a stopping rule did to a rollout, and what its looks cost beside what they saved."""

    looks: int = 0
    sampled: int = 0
    """Tokens sampled and not kept: trial answers, and ends of thought that were replaced."""
    fed: int = 0
    """Tokens of questions fed to the model, and of tokens that it was asked to weigh."""
    exit: int | None = None
    """Thinking tokens at which the rule ended the thought; None: it did not."""
    resumed: int = 0
    """Times that the thought was made to go on."""
    reread: int = 0
    """Tokens read again because the engine had not kept them: of a piece's or look's beginning."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One finished (or, with `unfinished`, paused) rollout."""

    prompt: int
    group: int
    index: int
    seed: int
    plan: Plan
    prompt_ids_T: Ids
    """Rendered prompt, generation prompt and any thought opened by the template included."""
    thought: Tokens
    """Thinking tokens; a sampled end marker is the last of them. Empty with `thinking: none`."""
    closed: bool
    """The model closed its thought itself."""
    answers: tuple[tuple[Answer, ...], ...]
    """[cut][answer]; a plan without cuts has one cut of one answer, always present."""
    unfinished: bool = False
    skipped: bool = False
    """The prompt or the plan's prefill closed the thought: the model had only to answer."""
    watch: Watch | None = None
    """Of a plan with a stopping rule."""

    @property
    def ended(self) -> bool:
        """The thought came to its end unforced, so the final answer is the model's own."""
        return self.closed or self.skipped

    @property
    def unmade(self) -> bool:
        """No engine survived its prompt: there is nothing of it, not even a rendered prompt."""
        return self.thought.finish == "abort" and not len(self.prompt_ids_T)

    @property
    def think_tokens(self) -> int:
        """Thinking tokens, the natural end marker not counted."""
        return len(self.thought) - int(self.closed)

    @property
    def final(self) -> Answer:
        """The answer at the largest budget."""
        return self.answers[-1][0]

    @property
    def answer_tokens(self) -> int:
        """Sampled tokens of the final answer."""
        return int((~self.final.tokens.forced_T).sum())

    @property
    def response_tokens(self) -> int:
        """Thought and final answer, forced tokens included."""
        return len(self.thought) + len(self.final.tokens)

    @property
    def made(self) -> tuple[Answer, ...]:
        """Every answer that was generated; a collapsed plan's cuts may show one several times."""
        cuts = self.answers
        if self.plan.collapse:
            cuts = tuple({cut[0].after: cut for cut in cuts}.values())
        return tuple(answer for cut in cuts for answer in cut)

    @property
    def sampled_tokens(self) -> int:
        """Everything that was generated and paid for: every answer of every cut, trial answers."""
        runs = [self.thought, *(a.tokens for a in self.made)]
        tried = 0 if self.watch is None else self.watch.sampled
        return int(sum((~run.forced_T).sum() for run in runs)) + tried

    @property
    def truncated(self) -> bool:
        """The response ended by its length limit, by its finish reason."""
        last = self.final.tokens if len(self.final.tokens) else self.thought
        return last.finish == "length"

    @property
    def oldest_version(self) -> int:
        runs = [self.thought, *(a.tokens for cut in self.answers for a in cut)]
        return min((version for run in runs for _, version in run.spans), default=0)


class Verdict(Protocol):
    """What samplers read of a verdict (`rewards.verdict.Verdict` is one)."""

    @property
    def correct(self) -> bool: ...
    @property
    def score(self) -> float: ...
    @property
    def known(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt and all its sampled rollouts. Atomic: never split or misaligned.

    Selecting sets `kept_G` and removes nothing: baselines and length statistics use all that
    was sampled unless a method says otherwise.
    """

    prompt: Prompt
    serial: int
    rollouts: tuple[Rollout, ...]
    verdicts: tuple[tuple[tuple[Any, ...], ...], ...] = ()
    """[rollout][cut][answer] of Verdict; empty before verification."""
    rewards: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """Named components, each [G, C, A]; NaN where the verdict is unknown."""
    token_rewards: Mapping[str, tuple[NDArray[np.float64], ...]] = field(default_factory=dict)
    """Optional named per-token components: one [T] array per rollout, thought then final answer."""
    annotations: Mapping[str, tuple[NDArray[np.float32], ...]] = field(default_factory=dict)
    """What learners computed because a component needs it: one array per rollout."""
    kept_G: NDArray[np.bool_] | None = None
    """Which rollouts train; None means all."""
    weights_G: NDArray[np.float64] | None = None
    """What each rollout's advantages are multiplied by before packing; None means 1."""
    part: int = 0
    """A draw that is sampled again after it was trained or discarded is another group: its
    rollouts are not compared with those before (`samplers/allocation/base.py`)."""

    def __len__(self) -> int:
        return len(self.rollouts)

    @property
    def key(self) -> int:
        """Tells it from every other group of a stage, parts of the same draw included."""
        return self.serial + (self.part << 40)

    @property
    def correct_GCA(self) -> NDArray[np.bool_]:
        return np.array([[[v.correct for v in c] for c in r] for r in self.verdicts], dtype=bool)

    @property
    def known_GCA(self) -> NDArray[np.bool_]:
        return np.array([[[v.known for v in c] for c in r] for r in self.verdicts], dtype=bool)

    @property
    def subgroups(self) -> dict[str, NDArray[np.bool_]]:
        """[G] per subgroup key, in order of appearance: which rollouts share it."""
        keys = [rollout.plan.subgroup for rollout in self.rollouts]
        return {key: np.array([k == key for k in keys]) for key in dict.fromkeys(keys)}

    @property
    def total_GCA(self) -> NDArray[np.float64]:
        """Sum of the named components."""
        return np.sum(list(self.rewards.values()), axis=0)

    @property
    def oldest_version(self) -> int:
        """Of what was made."""
        return min((r.oldest_version for r in self.rollouts if not r.unmade), default=0)
