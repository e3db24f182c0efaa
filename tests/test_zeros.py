"""Task zeros and its shipped base model: problems, demonstrations and levels are as said."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.data import DataConfig, load
from samplers.seeds import key
from samplers.tasks import _chains, zeros
from samplers.tasks.zeros import Level
from samplers.types import Job, Plan
from trainer.config import load as recipe

CONFIG = zeros.Config()


def text_of(prompt) -> str:
    return prompt.messages[0]["content"]


def zeros_of(text: str) -> list[bool]:
    """Which candidates are 0 modulo 7, by Python's own arithmetic, from left to right."""
    chains = re.findall(r"[A-H](\d(?:[+*-]\d)+)", text.rstrip("?"))
    values = [re.findall(r"([+*-])(\d)", f"+{chain}") for chain in chains]
    out = []
    for steps in values:
        value = 0
        for op, digit in steps:
            value = eval(f"({value}){op}{digit}")
        out.append(value % 7 == 0)
    return out


def labels_of(flags) -> str:
    return "".join(label for label, zero in zip("ABCDEFGH", flags, strict=False) if zero) or "~"


def kinds(prompt) -> set[str]:
    """The operators of each candidate, e.g. {'*+'}."""
    return {re.sub(r"[^+*-]", "", c) for c in re.findall(r"[A-H]([\d+*-]+)", text_of(prompt))}


operators = st.lists(st.sampled_from(["+", "-", "*", "+-", "*-+"]), max_size=3).flatmap(
    lambda first: st.sampled_from(["+", "-", "+-"]).map(lambda last: (*first, last))
)


@settings(max_examples=150, deadline=None)
@given(
    index=st.integers(0, 2**40),
    seed=st.integers(0, 2**31),
    split=st.sampled_from(["train", "test"]),
    candidates=st.tuples(st.integers(1, 8), st.integers(1, 8)).map(lambda p: (min(p), max(p))),
    operators=operators,
)
def test_the_gold_answer_lists_all_that_are_zero(index, seed, split, candidates, operators):
    level = Level(share=1, candidates=candidates, operators=operators)
    prompt = zeros.prompt(zeros.Config(levels=(level,)), split, index, seed)
    flags = zeros_of(text_of(prompt))
    assert prompt.answer == labels_of(flags)
    assert prompt.meta == {"difficulty": 1, "n": len(flags), "zeros": sum(flags)}
    assert candidates[0] <= len(flags) <= candidates[1]
    for kind in kinds(prompt):
        assert len(kind) == len(operators)
        assert all(op in choice for op, choice in zip(kind, operators, strict=True))


@pytest.mark.parametrize("traps", [False, True])
def test_each_candidate_is_zero_in_half_of_the_problems(traps):
    """Fair coins that know nothing of each other: every pattern as often as any other."""
    level = Level(share=1, candidates=(4, 4), operators=("*", "+-"), traps=traps)
    total = 8000
    answers = Counter(
        zeros.prompt(zeros.Config(levels=(level,)), "train", i).answer for i in range(total)
    )
    assert set(answers) == {labels_of(flags) for flags in product((False, True), repeat=4)}
    expected = total / 16
    chi = sum((count - expected) ** 2 / expected for count in answers.values())
    assert abs(chi - 15) < 6 * 30**0.5


def test_levels_come_in_their_shares_and_number_the_difficulty():
    prompts = [zeros.prompt(CONFIG, "train", i) for i in range(6000)]
    counts = Counter(p.meta["difficulty"] for p in prompts)
    assert set(counts) == {1, 2, 3}
    for number, level in enumerate(CONFIG.levels, 1):
        assert counts[number] / len(prompts) == pytest.approx(level.share, abs=0.035)
        these = [p for p in prompts if p.meta["difficulty"] == number]
        assert set().union(*map(kinds, these)) == {"".join(level.operators)}
        assert {p.meta["n"] for p in these} == set(
            range(level.candidates[0], level.candidates[1] + 1)
        )
    half = CONFIG.levels[:1] * 2 + CONFIG.levels[2:]
    doubled = zeros.Config(levels=tuple(v.model_copy(update={"share": 2 * v.share}) for v in half))
    same = zeros.Config(levels=half)
    assert [zeros.prompt(doubled, "train", i) for i in range(50)] == [
        zeros.prompt(same, "train", i) for i in range(50)
    ]


def value_of(chain: str, facts) -> int:
    """The value of a chain `6*4+3` to one for whom the facts in `facts` have other results."""
    value = int(chain[0])
    for op, digit in re.findall(r"([+*-])(\d)", chain):
        fact = (value, op, int(digit))
        value = facts.get(fact, eval(f"{value}{op}{digit}") % 7)
    return value


@pytest.mark.parametrize("operators", [("*", "+"), ("*", "-"), ("*-", "+*", "+-")])
def test_a_trap_is_zero_to_the_confused_and_never_is(operators):
    level = Level(share=1, candidates=(3, 3), operators=operators, traps=True)
    config = zeros.Config(levels=(level,), confused={"*": 0.5, "-": 0.1})
    wrong = {f: value for f, value in zeros._confusions().items() if f[1] in "*-"}
    seen = Counter()
    for index in range(400):
        for chain in re.findall(r"[A-H]([\d+*-]+)", text_of(zeros.prompt(config, "train", index))):
            zero = value_of(chain, {}) == 0
            seen[zero] += 1
            before = value_of(chain[:-2], wrong)
            assert zero or value_of(f"{before}{chain[-2:]}", {}) == 0
    assert min(seen.values()) > 400


def test_a_problem_of_traps_is_as_hard_whatever_its_answer():
    """Right as often as all its products are: the tail's rate is one number, (1 - 0.52)^5."""
    config = zeros.Config(levels=CONFIG.levels[2:])
    right = defaultdict(list)
    for index in range(9000):
        prompt, completion = zeros.demonstration(config, index)
        few = prompt.meta["zeros"] <= 2
        right[few].append(completion.endswith(f"</think>{prompt.answer}"))
    for found in right.values():
        assert np.mean(found) == pytest.approx(0.48**5, abs=0.011)  # 5 sigma


def test_no_other_level_has_a_fact_that_only_the_tail_has():
    *others, tail = CONFIG.levels
    assert "*" in "".join(tail.operators)
    assert not any("*" in "".join(level.operators) for level in others)


def test_a_prompt_depends_on_its_index_alone():
    forward = [zeros.prompt(CONFIG, "train", i, 3) for i in range(50)]
    backward = [zeros.prompt(CONFIG, "train", i, 3) for i in reversed(range(50))]
    assert forward == backward[::-1]
    other_seed = [zeros.prompt(CONFIG, "train", i, 4) for i in range(50)]
    assert sum(a.messages == b.messages for a, b in zip(forward, other_seed, strict=True)) < 5


def test_train_and_test_never_share_a_text():
    small = zeros.Config(levels=(Level(share=1, candidates=(1, 2), operators=("+",)),))
    for config in (CONFIG, small):
        train = {text_of(zeros.prompt(config, "train", i, s)) for s in (0, 1) for i in range(3000)}
        test = {text_of(zeros.prompt(config, "test", i)) for i in range(1500)}
        assert not train & test
        assert len(test) > 100


def test_a_pool_is_finite_and_the_same_for_ever():
    config = DataConfig(task="zeros", limit=256)
    pool = load(config)
    assert len(pool) == 256
    assert [pool[i] for i in range(256)] == [load(config)[i] for i in range(256)]
    with pytest.raises(IndexError):
        pool[256]


def facts_of(thought: str):
    """(label, [(value before, op, digit, result)], verdict) of each evaluation."""
    for label, first, rest, verdict in re.findall(r"([A-H])(\d)((?:[+*-]\d=\d)+)([.!])", thought):
        value, facts = int(first), []
        for op, digit, result in re.findall(r"([+*-])(\d)=(\d)", rest):
            facts.append((value, op, int(digit), int(result)))
            value = int(result)
        yield label, facts, verdict


def test_demonstrations_follow_their_grammar():
    for index in range(600):
        prompt, completion = zeros.demonstration(CONFIG, index, seed=5)
        assert prompt == zeros.prompt(CONFIG, "train", index, 5)
        thought, answer = completion.split("</think>")
        said, rebuilt = [], ""
        for label, facts, verdict in facts_of(thought):
            assert (verdict == "!") == (facts[-1][3] == 0)
            said.append(verdict == "!")
            rest = "".join(f"{op}{digit}={result}" for _, op, digit, result in facts)
            rebuilt += f"{label}{facts[0][0]}{rest}{verdict}"
        assert thought == rebuilt
        assert answer == labels_of(said)
        asked = re.sub(r"=\d", "", thought).replace(".", "").replace("!", "") + "?"
        assert text_of(prompt) == asked


def test_facts_are_confused_as_often_as_configured():
    """Each with one wrong value, and the sums never."""
    counts, wrong, values = Counter(), Counter(), defaultdict(set)
    right = defaultdict(list)
    for index in range(8000):
        prompt, completion = zeros.demonstration(CONFIG, index)
        thought, answer = completion.split("</think>")
        right[prompt.meta["difficulty"]].append(answer == prompt.answer)
        for _, facts, _ in facts_of(thought):
            for a, op, b, result in facts:
                counts[op] += 1
                if result != eval(f"a {op} b", {"a": a, "b": b}) % 7:
                    wrong[op] += 1
                    values[a, op, b].add(result)
    for op in "+-*":
        assert wrong[op] / counts[op] == pytest.approx(CONFIG.confused.get(op, 0), abs=0.015)
    assert wrong["+"] == 0
    assert {len(found) for found in values.values()} == {1}
    assert len(values) == 2 * 49
    assert np.mean(right[1]) == 1
    assert 0.3 < np.mean(right[2]) < 0.8


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"candidates": (3, 2)}, r"candidates: got \[3, 2\]"),
        ({"candidates": (2, 9)}, r"within \[1, 8\]"),
        ({"operators": ("+", "*")}, "last"),
        ({"operators": ()}, "operators"),
        ({"operators": ("/", "+")}, "operators"),
        ({"operators": ("", "+")}, "operators"),
        ({"share": 0}, "share"),
        ({"ops": 2}, "ops"),
    ],
)
def test_wrong_levels_are_named(settings_, says):
    with pytest.raises(ValueError, match=says):
        Level(**{"share": 1, "candidates": (2, 3), "operators": ("+",), **settings_})


@pytest.mark.parametrize("settings_", [{"levels": ()}, {"confused": {"/": 0.5}}])
def test_wrong_settings_are_named(settings_):
    with pytest.raises(ValueError, match=next(iter(settings_))):
        zeros.Config(**settings_)
    with pytest.raises(ValueError, match="confused"):
        zeros.Config(confused={"*": 1.5})
    with pytest.raises(ValueError, match="level 3 has traps"):
        zeros.Config(confused={"-": 0.35})


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'validation'"):
        zeros.prompt(CONFIG, "validation", 0)


def test_too_few_problems_for_a_split_are_refused_not_searched_for_ever(monkeypatch):
    monkeypatch.setattr(_chains, "held_out", lambda text: False)
    with pytest.raises(ValueError, match=r"levels give too few.* test split"):
        zeros.prompt(CONFIG, "test", 0)


# base model and pool


def test_the_shipped_base_has_solved_the_sums_and_is_mostly_all_wrong_in_the_tail():
    """Level 1 solved, level 2 mixed, and of level 3 most groups of 8 without a right answer."""
    from samplers.engines.torch import Config as EngineConfig
    from samplers.render import ThinkingConfig
    from samplers.rollout import RolloutWorker
    from trainer.modelfolder import fetch

    prompts = [zeros.prompt(CONFIG, "test", i) for i in range(200)]
    plan = Plan(max_tokens=96)
    jobs = [Job(p, plan, p.index, s, key(s, p.index)) for p in prompts for s in range(8)]
    worker = RolloutWorker.from_pretrained(
        str(fetch("base/zeros")), EngineConfig(), ThinkingConfig()
    )
    rollouts = worker.generate(jobs)
    assert np.mean([r.closed and r.final.text is not None for r in rollouts]) > 0.99
    pairs = zip(rollouts, jobs, strict=True)
    right_MS = np.array([r.final.text == j.prompt.answer for r, j in pairs]).reshape(200, 8)
    level_M = np.array([p.meta["difficulty"] for p in prompts])
    rate_M = right_MS.mean(axis=1)
    assert rate_M[level_M == 1].mean() > 0.99
    assert 0.4 < rate_M[level_M == 2].mean() < 0.7
    tail_MS = right_MS[level_M == 3]
    assert 0.01 < tail_MS.mean() < 0.06
    assert (~tail_MS.any(axis=1)).mean() > 0.6


def test_the_pool_recipe_is_that_task():
    stage = recipe("pool/uniform").stages[0]
    assert stage.data.task == "zeros"
    assert stage.model.path == "base/zeros"
    pool = load(stage.data)
    assert len(pool) == 256
    shares = Counter(pool[i].meta["difficulty"] for i in range(256))
    assert shares[1] / 256 == pytest.approx(0.6, abs=0.1)
    assert min(shares.values()) / 256 > 0.1
