"""Find: which candidate evaluates to 0 (mod 7)? A task a tiny model can think about.

A problem lists n chains of digits, `A6+4-6B3+4+3C0-0+0?`; exactly one is 0 modulo 7 and its label
is the answer. Evaluating a candidate costs 11 tokens, so accuracy grows with thinking: after c of
n candidates the answer is known with probability c/n and is otherwise a guess among n-c. More
candidates (up to 8) and operations make it harder.

The demonstrations of the warm-up are sloppy on purpose: some facts are confused, candidates are
checked again, and the thought goes on after the hit. Reinforcement learning then has mistakes and
over-thinking to remove. They may also carry instructions, as budget policies write them: a token
for a mode of thinking, or a number of tokens that is obeyed roughly.

Everything is a function of (seed, split, index): nothing is stored, any index can be drawn alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from pydantic import Field, model_validator

from samplers.budgets.base import BUDGET
from samplers.seam import Component
from samplers.seeds import key
from samplers.tasks._chains import (
    END_THINK,
    LABELS,
    MODULUS,
    Chain,
    Draw,
    Fact,
    Split,
    apply,
    between,
    draws,
    evaluate,
    mistaken,
    of_split,
    pose_chain,
    question,
    stream_of,
)
from samplers.types import Prompt

_CONFUSION_SEED = 1238  # demonstrations are then right 3 times in 4: thinking twice can help
_VERDICT = re.compile(r"([A-Hr])[^A-Hrw.!]*([.!])")  # of a finished evaluation
_ENDING = 3  # tokens after a thought: end marker, letter, <eos>


class Habits(Component):
    """How much a demonstration thinks."""

    recheck: float = Field(0.45, ge=0, le=1)
    """How often a candidate is checked again, and then again, at most `rechecks` times."""
    rechecks: int = Field(2, ge=0)
    """How many times one evaluation of a candidate may be checked."""
    go_on: float = Field(0.6, ge=0, le=1)
    """How often the thought goes on although a hit was found."""
    again_unsolved: float = Field(0.7, ge=0, le=1)
    """How often all is done once more while no hit was found."""
    again_solved: float = Field(0.35, ge=0, le=1)
    """How often all is done once more when one was."""
    passes: int = Field(2, ge=0)
    """How many times all may be done; 0: there is no thought, and the answer is a guess."""
    longest_pass: int = Field(115, ge=0)
    """A thought with more tokens than this never begins another pass."""


class Instruction(Component):
    """What some demonstrations are asked to do, and how they do it."""

    share: float = Field(gt=0, le=1)
    """Part of the demonstrations that carry it."""
    suffix: str = Field(min_length=1)
    """Text after the problem, as that of a budget policy; {budget} stands for the number."""
    habits: Habits | None = None
    """How much is thought; fields left out have their defaults. None: as without instruction."""
    budget: tuple[int, int] | None = None
    """Least and most tokens that are announced, uniform between. The response (thought, end marker,
    letter and <eos>) has about as many: the thought never ends by itself and is broken off."""
    spread: float = Field(0.0, ge=0, lt=1)
    """By how much of the number the response may miss it, uniform within plus and minus."""

    @model_validator(mode="after")
    def _one_kind(self) -> Instruction:
        told = BUDGET in self.suffix
        if told != (self.budget is not None):
            raise ValueError(
                f"budget: got {self.budget} with suffix {self.suffix!r}; a budget is written by "
                f"{BUDGET} in its suffix: give both, or neither for a mode"
            )
        if self.budget is None:
            if self.spread:
                raise ValueError(f"spread: got {self.spread} without a budget; leave it out")
        elif not _ENDING <= self.budget[0] <= self.budget[1]:
            raise ValueError(
                f"budget: got {list(self.budget)}; write [least, most] from {_ENDING}, which end "
                "marker, letter and <eos> take"
            )
        elif self.habits is not None and not self.habits.passes:
            raise ValueError("habits.passes: got 0 with a budget, which a thought fills; give 1")
        return self


class Config(Habits):
    """Which problems are posed, and how sloppily the demonstrations think."""

    candidates: tuple[int, int] = (2, 6)
    """Fewest and most candidates of a problem (1 to 8), uniform between."""
    ops: tuple[int, int] = (2, 2)
    """Fewest and most operations of a candidate, uniform between, the same within a problem."""
    confusable: float = Field(0.35, ge=0, le=1)
    """Share of the 98 facts (a op b) that demonstrations confuse, each with one wrong value."""
    confused: float = Field(0.6, ge=0, le=1)
    """How often a confusable fact is wrong when a candidate is first evaluated."""
    confused_again: float = Field(0.2, ge=0, le=1)
    """The same when it is checked again: lower, so that checking helps."""
    slip: float = Field(0.02, ge=0, le=1)
    """How often any other fact is replaced by a random digit."""
    instructions: tuple[Instruction, ...] = ()
    """What demonstrations are asked to do; those that are left carry no instruction."""

    @model_validator(mode="after")
    def _ranges(self) -> Config:
        for name, (low, high), least, most in (
            ("candidates", self.candidates, 1, len(LABELS)),
            ("ops", self.ops, 1, 16),
        ):
            if not least <= low <= high <= most:
                raise ValueError(
                    f"{name}: got [{low}, {high}]; write [fewest, most] within [{least}, {most}]"
                )
        shares = [instruction.share for instruction in self.instructions]
        if sum(shares) > 1 + 1e-9:
            raise ValueError(f"instructions: shares {shares} sum to {sum(shares)}; at most 1")
        return self


@dataclass(frozen=True, slots=True)
class Problem:
    """`chains[hit]` is 0 modulo 7, and no other is."""

    chains: tuple[Chain, ...]
    hit: int

    @property
    def text(self) -> str:
        return question(self.chains)


def prompt(config: Config, split: Split, index: int, seed: int = 0) -> Prompt:
    """Problem `index` of `split`, as the tokenizer's chat template takes it.

    Raises:
        ValueError: unknown split, or a config with too few different problems to split.
    """
    return _as_prompt(_problem(config, split, index, seed), split, index)


def demonstration(config: Config, index: int, seed: int = 0) -> tuple[Prompt, str]:
    """Training prompt `index`, perhaps with an instruction after its problem, and a sloppy
    completion: thought, end marker, letter (no <eos>).

    What carries no instruction is as if there were none in `config`.
    """
    problem = _problem(config, "train", index, seed)
    draw = draws(seed, "thought", index)
    told = _instruction(config, index, seed)
    if told is None:
        suffix, (thought, letter) = "", _think(config, config, problem, draw)
    else:
        instruction, number, tokens = told
        habits = instruction.habits or config
        suffix = instruction.suffix.replace(BUDGET, str(number))
        if instruction.budget is None:
            thought, letter = _think(config, habits, problem, draw)
        else:
            thought, letter = _fill(config, habits, problem, tokens, draw)
    return _as_prompt(problem, "train", index, suffix), f"{thought}{END_THINK}{letter}"


def _instruction(config: Config, index: int, seed: int) -> tuple[Instruction, int, int] | None:
    """The instruction of a demonstration, the number it announces and the tokens of its thought."""
    if not config.instructions:
        return None
    draw = draws(seed, "instruction", index)
    left = draw()
    for instruction in config.instructions:
        left -= instruction.share
        if left < 0:
            number = between(draw, *(instruction.budget or (0, 0)))
            response = number * (1 + instruction.spread * (2 * draw() - 1))
            return instruction, number, max(round(response) - _ENDING, 0)
    return None


def _as_prompt(problem: Problem, split: Split, index: int, suffix: str = "") -> Prompt:
    return Prompt(
        index=index,
        id=f"find/{split}/{index}",
        messages=({"role": "user", "content": problem.text + suffix},),
        text="",
        answer=LABELS[problem.hit],
        verifier="exact",
        meta={
            "difficulty": len(problem.chains),
            "n": len(problem.chains),
            "ops": len(problem.chains[0][1]),
            "hit": problem.hit,
        },
    )


def _problem(config: Config, split: Split, index: int, seed: int) -> Problem:
    problem = of_split(lambda draw: _pose(config, draw), lambda p: p.text, split, seed, index)
    if problem is None:
        raise ValueError(
            f"candidates {list(config.candidates)} with ops {list(config.ops)} give too few "
            f"different problems to fill a {split} split; allow more of either"
        )
    return problem


def _pose(config: Config, draw: Draw) -> Problem:
    n = between(draw, *config.candidates)
    operators = ["-+"] * between(draw, *config.ops)
    hit = int(draw() * n)
    return Problem(tuple(pose_chain(draw, operators, zero=i == hit) for i in range(n)), hit)


@lru_cache(maxsize=8)
def _confusions(share: float) -> dict[Fact, int]:
    """The confusable facts and the wrong value of each; the same in every data set."""
    draw = stream_of(key(_CONFUSION_SEED, 0)).__next__
    facts = [(a, op, b) for a in range(MODULUS) for op in "+-" for b in range(MODULUS)]
    order = sorted((draw(), fact) for fact in facts)
    chosen = (fact for _, fact in order[: round(share * len(facts))])
    return {f: mistaken(f, draw) for f in chosen}


def _evaluate(config: Config, chain: Chain, confused: float, draw: Draw) -> tuple[str, int]:
    """Text and value of one sloppy evaluation."""
    wrong = _confusions(config.confusable)

    def result(fact: Fact) -> int:
        if fact in wrong and draw() < confused:
            return wrong[fact]
        return int(draw() * MODULUS) if draw() < config.slip else apply(*fact)

    return evaluate(chain, result)


def _think(config: Config, habits: Habits, problem: Problem, draw: Draw) -> tuple[str, str]:
    """A sloppy thought and the letter it ends with."""
    thought, found = "", None
    for number in range(habits.passes):
        if number:
            again = habits.again_unsolved if found is None else habits.again_solved
            if len(thought) > habits.longest_pass or draw() >= again:
                break
            thought += "w"
        text, hit = _pass(config, habits, problem, draw)
        thought += text
        found = hit if hit is not None else found
    if found is None:
        found = int(draw() * len(problem.chains))
    return thought, LABELS[found]


def _fill(
    config: Config, habits: Habits, problem: Problem, tokens: int, draw: Draw
) -> tuple[str, str]:
    """A thought of so many tokens, broken off wherever it is, and the letter it ends with."""
    tireless, thought = habits.model_copy(update={"go_on": 1.0}), ""
    while len(thought) < tokens:
        thought += "w" * bool(thought) + _pass(config, tireless, problem, draw)[0]
    return thought[:tokens], _conclude(thought[:tokens], len(problem.chains), draw)


def _conclude(thought: str, n: int, draw: Draw) -> str:
    """What an unfinished thought knows: its last hit that stands, or one of those left."""
    label = ""
    stands: dict[str, bool] = {}
    for mark, verdict in _VERDICT.findall(thought):
        label = label if mark == "r" else mark
        stands.pop(label, None)  # the last evaluated comes last
        stands[label] = verdict == "!"
    hits = [label for label, zero in stands.items() if zero]
    if hits:
        return hits[-1]
    left = [label for label in LABELS[:n] if label not in stands] or list(LABELS[:n])
    return left[int(draw() * len(left))]


def _pass(config: Config, habits: Habits, problem: Problem, draw: Draw) -> tuple[str, int | None]:
    """Candidates in order, each perhaps checked again; and the last one thought to be 0."""
    thought, found = "", None
    for i, chain in enumerate(problem.chains):
        text, value = _evaluate(config, chain, config.confused, draw)
        thought += LABELS[i] + text + ".!"[value == 0]
        for _ in range(habits.rechecks):
            if draw() >= habits.recheck:
                break
            text, value = _evaluate(config, chain, config.confused_again, draw)
            thought += "r" + text + ".!"[value == 0]
        if value == 0:
            found = i
            if draw() >= habits.go_on:
                break
    return thought, found
