"""Task sums, reasoning-gym's chains in the tiny tokenizer's characters, and its base model."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.golds import check_golds
from rewards.grader import load
from rewards.verify import context
from samplers.seeds import key
from samplers.tasks import _chains
from samplers.types import Job, Plan, Prompt
from trainer import tiny

pytest.importorskip("reasoning_gym", reason="pip install 'laconic[reasoning-gym]'")
from samplers.tasks import reasoning_gym, sums

ROOT = Path(__file__).resolve().parent.parent
CONFIG = sums.Config()
NUMBER = r"-?\d+"
CLEAN: dict[str, Any] = {"confusable": 0, "slip": 0, "recheck": 0, "restart": 0, "hasty": 0}


def text_of(prompt: Prompt) -> str:
    return str(prompt.messages[0]["content"])


def parsed(text: str) -> tuple[int, list[tuple[str, int]]]:
    """`7+5-3?` -> 7, [(+, 5), (-, 3)]."""
    assert re.fullmatch(r"\d+([+-]\d+)+\?", text)
    first, *rest = re.findall(r"[+-]?\d+", text)
    return int(first), [(part[0], int(part[1:])) for part in rest]


def running(text: str) -> list[int]:
    """The totals after each number, by Python's own arithmetic."""
    first, rest = parsed(text)
    return np.cumsum([first, *(b if op == "+" else -b for op, b in rest)]).tolist()


# Problems


@settings(max_examples=100, deadline=None)
@given(
    index=st.integers(0, 2**40),
    seed=st.integers(0, 2**31),
    split=st.sampled_from(["train", "test"]),
    terms=st.tuples(st.integers(2, 8), st.integers(2, 8)).map(lambda p: (min(p), max(p))),
    digits=st.integers(1, 2),
)
def test_the_answer_is_the_total_and_no_running_total_leaves_the_range(
    index, seed, split, terms, digits
):
    totals = (0, 19 * 10 ** (digits - 1))
    config = sums.Config(terms=terms, digits=digits, totals=totals)
    prompt = sums.prompt(config, split, index, seed)
    after_N = running(text_of(prompt))
    assert prompt.answer == str(after_N[-1])
    assert totals[0] <= min(after_N)
    assert max(after_N) <= totals[1]
    assert prompt.meta["n"] == prompt.meta["difficulty"] == len(after_N)
    assert terms[0] <= len(after_N) <= terms[1]
    numbers = [parsed(text_of(prompt))[0], *(b for _, b in parsed(text_of(prompt))[1])]
    assert all(len(str(number)) == digits for number in numbers)
    assert prompt.index == index
    assert _chains.held_out(text_of(prompt)) == (split == "test")


def test_a_problem_is_the_librarys():
    for index in range(20):
        prompt = sums.prompt(CONFIG, "test", index)
        expression = prompt.meta["entry"]["metadata"]["expression"]
        assert text_of(prompt) == expression.replace(" ", "") + "?"
        assert prompt.answer == prompt.meta["entry"]["answer"]
        assert prompt.meta["source_dataset"] == "chain_sum"


def test_lengths_are_uniform_however_many_problems_are_left_out():
    counts = Counter(sums.prompt(CONFIG, "train", i).meta["n"] for i in range(2000))
    assert sorted(counts) == [4, 5, 6, 7]
    for count in counts.values():
        assert count == pytest.approx(500, abs=100)  # 5 sigma


def test_a_prompt_depends_on_its_index_alone():
    forward = [sums.prompt(CONFIG, "train", i, 3) for i in range(50)]
    backward = [sums.prompt(CONFIG, "train", i, 3) for i in reversed(range(50))]
    assert forward == backward[::-1]
    other_seed = {text_of(sums.prompt(CONFIG, "train", i, 4)) for i in range(50)}
    assert len({text_of(p) for p in forward} & other_seed) < 5


def test_the_same_in_another_process():
    code = (
        "from samplers.tasks import sums\n"
        "print(*(sums.demonstration(sums.Config(), i)[1] for i in range(10)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [sums.demonstration(CONFIG, i)[1] for i in range(10)]


@pytest.mark.parametrize("config", [CONFIG, sums.Config(terms=(2, 2)), sums.Config(terms=(3, 3))])
def test_train_and_test_never_share_a_text(config):
    """Small problem spaces repeat texts within a split, and still never across."""
    train = {text_of(sums.prompt(config, "train", i, s)) for s in (0, 1) for i in range(1000)}
    test = {text_of(sums.prompt(config, "test", i)) for i in range(500)}
    assert not train & test
    assert len(test) > 10


# Demonstrations


def test_demonstrations_pose_the_training_prompts():
    for index in range(20):
        prompt, _ = sums.demonstration(CONFIG, index, seed=5)
        assert prompt == sums.prompt(CONFIG, "train", index, 5)


def steps_of(one_pass: str) -> list[tuple[str, str, str]]:
    """(first pass: '' or checked: 'r', 'a op b', result) of every step, joined where inline."""
    step = rf"({NUMBER}[+-]\d)=({NUMBER})"
    out, left = [], one_pass
    while len(left) > 1 and (found := re.match(rf"(r?){step}", left)):
        out.append(found.groups())
        after = left[found.end() :]
        left = after if after.startswith("r") else found[3] + after
    assert re.fullmatch(NUMBER, left), one_pass
    return out


def passes_of(thought: str) -> list[tuple[str, bool]]:
    """The passes, and whether each has come to its total."""
    return [(part.removesuffix("!"), part.endswith("!")) for part in thought.split("w")]


def test_demonstrations_follow_their_grammar():
    config = sums.Config(hasty=0)
    later = Counter()
    for index in range(800):
        prompt, completion = sums.demonstration(config, index)
        thought, answer = completion.split("</think>")
        first, rest = parsed(text_of(prompt))
        passes = passes_of(thought)
        assert [done for _, done in passes] in (
            [True] * len(passes),
            [False] + [True] * (len(passes) - 1),
        )
        for text, done in passes:
            asked = [fact for mark, fact, _ in steps_of(text) if not mark]
            assert text.startswith(str(first))
            expected = [f"{op}{b}" for op, b in rest]
            assert [fact[-2:] for fact in asked] == expected[: len(asked)]
            assert len(asked) == len(expected) or not done
        assert answer == steps_of(passes[-1][0])[-1][2]
        done = sum(done for _, done in passes)
        assert done <= config.passes
        later["passes"] += done - 1
    assert later["passes"] / 800 > 1.2  # most of the waste comes after the total is known


def test_a_hasty_answer_is_what_is_known():
    """The last total of a pass that was finished, else the last running one, else the first."""
    cut = sums.Config(hasty=1)
    whole = sums.Config(hasty=0)
    ends = Counter()
    for index in range(400):
        prompt, completion = sums.demonstration(cut, index)
        thought, answer = completion.split("</think>")
        assert sums.demonstration(whole, index)[1].startswith(thought)
        assert not re.match(r"\d", sums.demonstration(whole, index)[1][len(thought) :])
        if "!" in thought:
            known, kind = re.findall(rf"={NUMBER}", thought[: thought.rindex("!")])[-1][1:], "total"
        elif "=" in thought:
            known, kind = re.findall(rf"={NUMBER}", thought)[-1][1:], "running"
        else:
            known, kind = str(parsed(text_of(prompt))[0]), "first"
        assert answer == known
        ends[kind] += 1
    assert min(ends.values()) > 10


def test_clean_demonstrations_are_right_and_their_length_is_known():
    config = sums.Config(**CLEAN, verify=0)
    for index in range(200):
        prompt, completion = sums.demonstration(config, index)
        thought, answer = completion.split("</think>")
        after_N = running(text_of(prompt))
        assert answer == prompt.answer
        assert [int(result) for _, _, result in steps_of(thought[:-1])] == after_N[1:]
        assert len(thought) == 2 + sum(3 + len(str(total)) for total in after_N[1:])


def test_sloppiness_is_as_configured():
    """Rates of wrong facts, on a first pass and later, and what comes of them."""
    config = sums.Config(restart=0, hasty=0)
    confusions = sums._confusions(CONFIG.confusable)
    assert len(confusions) == round(0.16 * 200)
    rates: dict[tuple[str, str], list[bool]] = {}
    for index in range(2000):
        _, completion = sums.demonstration(config, index)
        for number, (text, _) in enumerate(passes_of(completion.split("</think>")[0])):
            for mark, fact, result in steps_of(text):
                a, op, b = re.fullmatch(rf"({NUMBER})([+-])(\d)", fact).groups()
                kind = "usual" if (int(a) % 10, op, int(b)) in confusions else "other"
                when = "again" if number or mark else "first"
                rates.setdefault((when, kind), []).append(eval(fact) != int(result))
    wrong = {which: float(np.mean(found)) for which, found in rates.items()}
    slip = 0.01
    assert wrong["first", "usual"] == pytest.approx(0.7 + 0.3 * slip, abs=0.03)
    assert wrong["again", "usual"] == pytest.approx(0.3 + 0.7 * slip, abs=0.03)
    assert wrong["first", "other"] == pytest.approx(slip, abs=0.005)
    assert wrong["again", "other"] == pytest.approx(slip, abs=0.005)


def test_what_comes_of_it():
    """Right answers, waste, and where it lies, of the default demonstrations."""
    right, tokens, needed, known = [], [], [], []
    for index in range(3000):
        prompt, completion = sums.demonstration(CONFIG, index)
        thought, answer = completion.split("</think>")
        right.append(answer == prompt.answer)
        tokens.append(len(thought))
        needed.append(2 + sum(3 + len(str(t)) for t in running(text_of(prompt))[1:]))
        known.append(thought.find("!") + 1 or len(thought))
    assert np.mean(right) == pytest.approx(0.71, abs=0.03)
    assert np.mean(tokens) / np.mean(needed) == pytest.approx(3.5, abs=0.2)
    assert np.mean(known) / np.mean(needed) == pytest.approx(1.23, abs=0.1)
    assert np.mean(np.array(tokens) > 190) < 0.01


# Graders, tokenizer, mistakes


def test_both_graders_agree():
    prompts = [sums.prompt(CONFIG, "test", i) for i in range(30)]
    for name in ("exact", "reasoning_gym"):
        assert check_golds(prompts, name) == {}
    exact, scorer = load("exact"), load("reasoning_gym")
    for prompt in prompts:
        for text in (prompt.answer, str(int(prompt.answer) + 1), f"-{prompt.answer}", "r", ""):
            if text == "-0":
                continue  # a number for the scorer, another text for exact
            verdicts = [grader(text, prompt.answer, context(prompt)) for grader in (exact, scorer)]
            assert verdicts[0].correct == verdicts[1].correct == (text == prompt.answer)


def test_the_default_goes_through_the_tokenizer_and_back():
    tokenizer = tiny.tokenizer()
    for index in range(200):
        prompt, completion = sums.demonstration(CONFIG, index)
        text = f"{text_of(prompt)}<think>{completion}<eos>"
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids) == text
        assert len(ids) == len(text_of(prompt)) + len(re.sub("</think>", "", completion)) + 3


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"terms": (3, 2)}, "terms"),
        ({"terms": (1, 2)}, "terms"),
        ({"totals": (1, 19)}, "totals"),
        ({"totals": (0, 19), "digits": 2}, "at least 99"),
        ({"verify": 1.5}, "verify"),
        ({"term": (2, 3)}, "term"),
    ],
)
def test_wrong_settings_are_named(settings_, says):
    with pytest.raises(ValueError, match=says):
        sums.Config(**settings_)


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'validation'"):
        sums.prompt(CONFIG, "validation", 0)


def test_too_few_problems_are_refused_not_searched_for_ever(monkeypatch):
    monkeypatch.setattr(_chains, "held_out", lambda text: False)
    monkeypatch.setattr(_chains, "_TRIES", 20)
    with pytest.raises(ValueError, match=r"terms \[4, 7\] with digits 1.* test split"):
        sums.prompt(CONFIG, "test", 0)
    monkeypatch.setattr(sums, "_TRIES", 1)
    with pytest.raises(ValueError, match=r"totals: \[0, 19\] leave out nearly every.* 16 terms"):
        sums.prompt(sums.Config(terms=(16, 16)), "train", 0)


def test_without_the_library_the_fix_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    reasoning_gym._made.cache_clear()
    sums._source.cache_clear()
    config = sums.Config()
    with pytest.raises(ValueError, match=r"pip install 'laconic\[reasoning-gym\]'"):
        sums.prompt(config, "train", 0)


def test_the_library_is_not_imported_for_a_config():
    code = (
        "import sys\nfrom samplers.tasks import sums\nsums.Config()\n"
        "print('reasoning_gym' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


# The shipped base model


def test_the_shipped_base_is_sloppy_and_thinks_too_much():
    from samplers.engines.torch import Config as EngineConfig
    from samplers.render import ThinkingConfig
    from samplers.rollout import RolloutWorker
    from trainer.modelfolder import fetch

    prompts = [sums.prompt(CONFIG, "test", i) for i in range(300)]
    plan = Plan(max_tokens=192)
    jobs = [Job(p, plan, p.index, 0, key(0, p.index)) for p in prompts]
    worker = RolloutWorker.from_pretrained(
        str(fetch("base/sums")), EngineConfig(), ThinkingConfig()
    )
    rollouts = worker.generate(jobs)
    needed = [2 + sum(3 + len(str(t)) for t in running(text_of(p))[1:]) for p in prompts]
    told = [r.final.text or "" for r in rollouts]
    assert np.mean([bool(re.fullmatch(NUMBER, text)) for text in told]) > 0.98
    assert 0.6 < np.mean([t == p.answer for t, p in zip(told, prompts, strict=True)]) < 0.8
    assert np.mean([len(r.thought) for r in rollouts]) > 2.5 * np.mean(needed)
