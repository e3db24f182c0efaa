"""Demonstrations of task find that carry instructions: a mode, or a number of tokens."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.budgets import modes, prompted
from samplers.tasks import _chains, find
from samplers.types import Plan
from trainer import tiny
from trainer.config import load

PLAIN = find.Config()
FEW = {"share": 0.2, "suffix": "<b2>", "habits": {"recheck": 0.4, "go_on": 0.1, "passes": 1}}
NONE = {"share": 0.1, "suffix": "<b1>", "habits": {"passes": 0}}
TOLD = {"share": 0.3, "suffix": ";{budget}", "budget": (32, 160), "spread": 0.6}
MIXED = find.Config(instructions=(FEW, NONE, TOLD))
ONE_CANDIDATE = r"[A-H]\d(?:[+-]\d=\d){2}[.!](?:r\d(?:[+-]\d=\d){2}[.!])*"


def text_of(prompt) -> str:
    return prompt.messages[0]["content"]


def suffix_of(prompt) -> str:
    return text_of(prompt).partition("?")[2]


def parts(completion: str) -> tuple[str, str]:
    thought, marker, letter = completion.partition("</think>")
    assert marker
    return thought, letter


def told(least: int, most: int, spread: float, **kw) -> find.Config:
    kind = {"share": 1.0, "suffix": ";{budget}", "budget": (least, most), "spread": spread}
    return find.Config(instructions=({**kind, **kw},))


@settings(max_examples=60, deadline=None)
@given(index=st.integers(0, 2**40), seed=st.integers(0, 2**31))
def test_what_carries_none_is_as_if_there_were_none(index, seed):
    prompt, completion = find.demonstration(MIXED, index, seed)
    plain = find.demonstration(PLAIN, index, seed)
    assert text_of(prompt) == text_of(plain[0]) + suffix_of(prompt)
    assert (prompt.id, prompt.answer, prompt.meta) == (
        plain[0].id,
        plain[0].answer,
        plain[0].meta,
    )
    if not suffix_of(prompt):
        assert (prompt, completion) == plain
    assert find.prompt(MIXED, "train", index, seed) == plain[0]


def test_demonstrations_without_instructions_are_those_of_before():
    """Digests of what base/find learned from."""
    import hashlib

    made = "\n".join(find.demonstration(PLAIN, i, s)[1] for s in (0, 7) for i in range(500))
    assert hashlib.sha256(made.encode()).hexdigest().startswith("db33b5ecfafe9f33")


def test_shares_are_as_configured():
    total = 6000
    kinds = Counter(suffix_of(find.demonstration(MIXED, i)[0])[:1] for i in range(total))
    marks = Counter(suffix_of(find.demonstration(MIXED, i)[0]) for i in range(total))
    assert kinds[";"] / total == pytest.approx(0.3, abs=0.03)
    assert marks["<b2>"] / total == pytest.approx(0.2, abs=0.026)
    assert marks["<b1>"] / total == pytest.approx(0.1, abs=0.02)
    assert marks[""] / total == pytest.approx(0.4, abs=0.032)


def test_the_suffix_is_what_a_plan_makes_of_it():
    """The ids that are imitated are those that reinforcement learning will sample after."""
    from samplers.render import Renderer, ThinkingConfig

    renderer = Renderer(tiny.tokenizer(), ThinkingConfig())
    levels = modes.Config(max_tokens=192, modes={"low": {"suffix": "<b2>"}})
    numbers = prompted.Config(max_tokens=192, budget=(32, 160), suffix=";{budget}")
    seen = Counter()
    for index in range(200):
        prompt, _ = find.demonstration(MIXED, index)
        plain, suffix = find.prompt(PLAIN, "train", index), suffix_of(prompt)
        plan = Plan(192, suffix=suffix)
        if suffix == "<b2>":
            assert modes.plans(levels, plain, 1, 0, {}, 0)[0].suffix == suffix
        if suffix.startswith(";"):
            number = numbers.model_copy(update={"budget": int(suffix[1:])})
            plan = prompted.plans(number, plain, 1, 0, {}, 0)[0]
        seen[suffix[:1]] += 1
        ids_T = renderer.render(prompt, Plan(0))
        assert np.array_equal(ids_T, renderer.render(plain, plan))
    assert min(seen.values()) > 20


@settings(max_examples=200, deadline=None)
@given(
    index=st.integers(0, 2**40),
    seed=st.integers(0, 2**31),
    budget=st.tuples(st.integers(3, 300), st.integers(3, 300)).map(lambda p: (min(p), max(p))),
    spread=st.floats(0, 0.99),
    candidates=st.tuples(st.integers(1, 8), st.integers(1, 8)).map(lambda p: (min(p), max(p))),
)
def test_a_response_has_about_as_many_tokens_as_were_announced(
    index, seed, budget, spread, candidates
):
    config = told(*budget, spread).model_copy(update={"candidates": candidates})
    prompt, completion = find.demonstration(config, index, seed)
    assert find.demonstration(config, index, seed) == (prompt, completion)
    number = int(suffix_of(prompt).removeprefix(";"))
    assert budget[0] <= number <= budget[1]
    thought, letter = parts(completion)
    tokens = len(thought) + 3  # end marker, letter, <eos>
    assert tokens == 3 or number * (1 - spread) - 0.5 <= tokens <= number * (1 + spread) + 0.5
    assert letter in _chains.LABELS[: prompt.meta["n"]]


def test_numbers_are_uniform_and_missed_evenly():
    config, total = told(32, 160, 0.6), 6000
    made = [find.demonstration(config, i) for i in range(total)]
    wanted_N = np.array([int(suffix_of(prompt)[1:]) for prompt, _ in made])
    used_N = np.array([len(parts(completion)[0]) + 3 for _, completion in made])
    counts = np.bincount((wanted_N - 32) // 43, minlength=3)
    assert counts == pytest.approx(np.full(3, total / 3), abs=5 * (total / 3) ** 0.5)
    miss_N = used_N / wanted_N - 1
    assert miss_N.mean() == pytest.approx(0, abs=0.02)
    assert miss_N.std() == pytest.approx(0.6 / 3**0.5, abs=0.01)
    assert abs(np.corrcoef(wanted_N, miss_N)[0, 1]) < 0.06


def test_a_thought_that_is_broken_off_begins_as_one_that_is_not():
    """It stops anywhere, and its text does not depend on where."""
    thoughts = [
        parts(find.demonstration(told(n, n, 0.0), index)[1])[0]
        for index in range(40)
        for n in (200, 20, 9, 3)
    ]
    for whole, *cuts in zip(*[iter(thoughts)] * 4, strict=True):
        assert len(whole) == 197
        assert [len(cut) for cut in cuts] == [17, 6, 0]
        assert all(whole.startswith(cut) for cut in cuts)
        finished = re.match(rf"(?:{ONE_CANDIDATE})(?:w?{ONE_CANDIDATE})*", whole)
        assert finished
        assert len(finished[0]) > 197 - 12


def expected(thought: str) -> tuple[list[str], set[str]]:
    """Labels with a standing hit, in the order of their last evaluation; all evaluated labels."""
    stands: list[tuple[str, bool]] = []
    label = ""
    for piece in re.findall(r"[A-Hr][^A-Hrw]*[.!]", thought):
        label = label if piece[0] == "r" else piece[0]
        stands = [pair for pair in stands if pair[0] != label] + [(label, piece[-1] == "!")]
    return [k for k, zero in stands if zero], {k for k, _ in stands}


def test_the_answer_is_the_last_hit_that_stands_or_one_of_those_left():
    seen = Counter()
    for index in range(1500):
        prompt, completion = find.demonstration(told(3, 160, 0.5), index)
        thought, letter = parts(completion)
        hits, evaluated = expected(thought)
        left = set(_chains.LABELS[: prompt.meta["n"]]) - evaluated
        if hits:
            assert letter == hits[-1]
        elif left:
            assert letter in left
        seen["hit" if hits else "left" if left else "none"] += 1
    assert min(seen.values()) > 30
    by_length: dict[bool, list[bool]] = {True: [], False: []}
    for n in (20, 160):
        for index in range(1500):
            prompt, completion = find.demonstration(told(n, n, 0.0), index)
            by_length[n == 160].append(parts(completion)[1] == prompt.answer)
    assert np.mean(by_length[False]) < 0.6 < np.mean(by_length[True])


def test_modes_think_as_their_habits_say():
    made: dict[str, list[tuple]] = {"": [], "<b1>": [], "<b2>": []}
    config = find.Config(instructions=(FEW, NONE))
    for index in range(2500):
        prompt, completion = find.demonstration(config, index)
        made[suffix_of(prompt)].append((parts(completion), prompt))
    assert all(thought == "" for (thought, _), _ in made["<b1>"])
    assert all("w" not in thought for (thought, _), _ in made["<b2>"])
    tokens = {name: np.mean([len(t) for (t, _), _ in rows]) for name, rows in made.items()}
    right = {
        name: np.mean([letter == p.answer for (_, letter), p in rows])
        for name, rows in made.items()
    }
    assert tokens["<b2>"] < 0.65 * tokens[""]
    assert right["<b1>"] < 0.4 < right["<b2>"]


def test_more_passes_and_checks_are_had_by_asking():
    config = find.Config(
        recheck=1, rechecks=3, go_on=1, again_unsolved=1, again_solved=1, passes=4, longest_pass=999
    )
    for index in range(50):
        thought, _ = parts(find.demonstration(config, index)[1])
        assert re.fullmatch(r"(?:(?:[A-H][^A-Hrw]+[.!](?:r[^A-Hrw]+[.!]){3})+w?){4}", thought), (
            thought
        )
        assert thought.count("w") == 3
    short = config.model_copy(update={"longest_pass": 0})
    assert "w" not in parts(find.demonstration(short, 0)[1])[0]


def test_instructions_move_no_problem_across_the_splits():
    """The split belongs to the problem: what is asked of it changes nothing."""
    train = {
        text_of(find.demonstration(MIXED, i)[0]).removesuffix(
            suffix_of(find.demonstration(MIXED, i)[0])
        )
        for i in range(3000)
    }
    test = {text_of(find.prompt(MIXED, "test", i)) for i in range(1500)}
    assert not train & test


@pytest.mark.parametrize("name", ["warmup/modes", "warmup/told"])
def test_the_recipes_are_said_to_leave_room_for_plain_demonstrations(name):
    task = dict(load(name).stages[0].data.task)
    assert task.pop("name") == "find"
    config = find.Config(**task)
    assert 0.25 <= 1 - sum(i.share for i in config.instructions) <= 0.5
    lengths = [len(find.demonstration(config, i)[1]) for i in range(2000)]
    assert max(lengths) < 480


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"share": 0}, "share"),
        ({"suffix": ""}, "suffix"),
        ({"budget": (32, 160)}, "{budget} in its suffix"),
        ({"suffix": ";{budget}"}, "budget: got None"),
        ({"suffix": ";{budget}", "budget": (160, 32)}, r"\[least, most\]"),
        ({"suffix": ";{budget}", "budget": (2, 32)}, r"\[least, most\] from 3"),
        ({"suffix": ";{budget}", "budget": (9, 32), "spread": 1.0}, "spread"),
        ({"spread": 0.5}, "spread: got 0.5 without a budget"),
        ({"suffix": ";{budget}", "budget": (9, 32), "habits": {"passes": 0}}, "habits.passes"),
        ({"habits": {"rechek": 0.1}}, "rechek"),
    ],
)
def test_wrong_instructions_are_named(settings_, says):
    with pytest.raises(ValueError, match=says):
        find.Instruction(**{"share": 0.5, "suffix": "<b1>", **settings_})


def test_shares_beyond_one_are_refused():
    with pytest.raises(ValueError, match=r"sum to 1\.2; at most 1"):
        find.Config(instructions=({**FEW, "share": 0.7}, {**NONE, "share": 0.5}))
    tenths = tuple({**NONE, "share": 0.1} for _ in range(10))
    assert len(find.Config(instructions=tenths).instructions) == 10
