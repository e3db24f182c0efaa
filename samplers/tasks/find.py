"""Find: which candidate evaluates to 0 (mod 7)? A task a tiny model can think about.

A problem lists n chains of digits, `A6+4-6B3+4+3C0-0+0?`; exactly one is 0 modulo 7 and its label
is the answer. Evaluating a candidate costs 11 tokens, so accuracy grows with thinking: after c of
n candidates the answer is known with probability c/n and is otherwise a guess among n-c.

The demonstrations of the warm-up are sloppy on purpose: some facts are confused, candidates are
checked again, and the thought goes on after the hit. Reinforcement learning then has mistakes and
over-thinking to remove.

Everything is a function of (seed, split, index): nothing is stored, any index can be drawn alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from pydantic import Field, model_validator

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


class Config(Component):
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
    recheck: float = Field(0.45, ge=0, le=1)
    """How often a candidate is checked again (at most twice)."""
    go_on: float = Field(0.6, ge=0, le=1)
    """How often the thought goes on although a hit was found."""
    again_unsolved: float = Field(0.7, ge=0, le=1)
    """How often all is done a second time when the first pass found no hit."""
    again_solved: float = Field(0.35, ge=0, le=1)
    """How often all is done a second time when it did."""
    longest_pass: int = Field(115, ge=0)
    """A first pass with more tokens than this is never followed by a second."""

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
    """Training prompt `index` and a sloppy completion: thought, end marker, letter (no <eos>)."""
    problem = _problem(config, "train", index, seed)
    thought, letter = _think(config, problem, draws(seed, "thought", index))
    return _as_prompt(problem, "train", index), f"{thought}{END_THINK}{letter}"


def _as_prompt(problem: Problem, split: Split, index: int) -> Prompt:
    return Prompt(
        index=index,
        id=f"find/{split}/{index}",
        messages=({"role": "user", "content": problem.text},),
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


def _think(config: Config, problem: Problem, draw: Draw) -> tuple[str, str]:
    """A sloppy thought and the letter it ends with."""
    thought, found = _pass(config, problem, draw)
    again = config.again_unsolved if found is None else config.again_solved
    if len(thought) <= config.longest_pass and draw() < again:
        second, found_again = _pass(config, problem, draw)
        thought += "w" + second
        found = found_again if found_again is not None else found
    if found is None:
        found = int(draw() * len(problem.chains))
    return thought, LABELS[found]


def _pass(config: Config, problem: Problem, draw: Draw) -> tuple[str, int | None]:
    """Candidates in order, each perhaps checked again; and the last one thought to be 0."""
    thought, found = "", None
    for i, chain in enumerate(problem.chains):
        text, value = _evaluate(config, chain, config.confused, draw)
        thought += LABELS[i] + text + ".!"[value == 0]
        for _ in range(2):
            if draw() >= config.recheck:
                break
            text, value = _evaluate(config, chain, config.confused_again, draw)
            thought += "r" + text + ".!"[value == 0]
        if value == 0:
            found = i
            if draw() >= config.go_on:
                break
    return thought, found
