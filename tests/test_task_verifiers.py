"""task, reasoning_gym: procedural problems are made alike anywhere and graded by their own rules.

What the guards rest on was measured with reasoning-gym 0.1.25, and is asserted here.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.golds import check_golds
from rewards.grader import Grader, load
from rewards.service.pool import VerifierPool
from rewards.verdict import Verdict
from rewards.verify import context
from samplers.data import DataConfig
from samplers.data import load as load_data
from samplers.seam import function
from samplers.tasks import find
from samplers.types import Prompt

gym = pytest.importorskip("reasoning_gym", reason="pip install 'laconic[reasoning-gym]'")
from rewards.verifiers import reasoning_gym as scorers  # noqa: E402
from samplers.tasks import reasoning_gym as task  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SEVERAL = ("chain_sum", "countdown", "puzzle24", "knights_knaves", "spiral_matrix", "graph_color")


def graded(grader: Grader, text: str, prompt: Prompt) -> Verdict:
    return grader(text, prompt.answer, context(prompt))


# Tasks of ours, and of users


def score(answer: str, meta: Mapping[str, Any]) -> Any:
    """This file is a user's task: half for the right length, nothing known of 'who knows'."""
    if answer == "who knows":
        return None
    if answer == "raise":
        raise RuntimeError("no score today")
    return 1.0 if answer == meta["gold"] else 0.5 * (len(answer) == meta["n"])


def test_a_task_without_a_score_asks_for_its_gold() -> None:
    grader = load({"name": "task", "task": "find"})
    prompt = find.prompt(find.Config(), "train", 3)
    assert grader.at_once(prompt.answer, prompt.answer, context(prompt)) is not None
    assert graded(grader, f" {prompt.answer}\n", prompt).correct
    assert graded(grader, f"{prompt.answer}{prompt.answer}", prompt).status == "wrong"
    assert graded(grader, " ", prompt).status == "no_answer"


def test_a_tasks_own_score_is_the_verdict() -> None:
    grader = load({"name": "task", "task": "tests.test_task_verifiers"})
    meta = {"n": 3}
    assert grader.at_once("abc", "abc", meta) is None
    assert grader("abc", "abc", meta) == Verdict(
        True, 1.0, "ok", "abc", "task/1 task=tests.test_task_verifiers"
    )
    assert grader("xyz", "abc", meta).score == 0.5
    assert grader("xyz", "abc", meta).status == "wrong"
    lenient = load({"name": "task", "task": "tests.test_task_verifiers", "correct_at": 0.5})
    assert lenient("xyz", "abc", meta).correct
    assert grader("who knows", "abc", meta).status == "error"
    assert grader("raise", "abc", meta).status == "error"


@pytest.mark.parametrize(
    ("spec", "says"), [({"task": "fund"}, "did you mean 'find'"), ({}, "task"), ({"tsk": 1}, "tsk")]
)
def test_a_task_that_is_not_there_is_told(spec: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load({"name": "task", **spec})


# Problems of reasoning-gym


def made(dataset: str, count: int = 20, split: Any = "train", **more: Any) -> list[Prompt]:
    config = task.Config(dataset=dataset, **more)
    return [task.prompt(config, split, i) for i in range(count)]


def test_a_problem_is_a_function_of_seed_split_and_index() -> None:
    config = task.Config(dataset="chain_sum")
    backwards = [task.prompt(config, "train", i) for i in reversed(range(20))][::-1]
    assert backwards == made("chain_sum")
    assert {task.prompt(config, "train", 5, seed).messages[0]["content"] for seed in range(9)} == {
        task.prompt(config, "train", 5, seed).messages[0]["content"] for seed in reversed(range(9))
    }
    assert len({p.messages[0]["content"] for p in made("chain_sum")}) == 20
    one, other = (task.prompt(config, "train", 5, seed) for seed in (0, 1))
    assert one != other


def test_train_and_test_share_no_question() -> None:
    """Of few problems as of many: the split is a property of the question."""
    few = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    sides = {
        split: {
            prompt.messages[0]["content"]
            for seed in (0, 1)
            for i in range(400)
            for prompt in (
                task.prompt(task.Config(dataset="chain_sum", settings=few), split, i, seed),
            )
        }
        for split in ("train", "test")
    }
    assert not sides["train"] & sides["test"]
    assert min(map(len, sides.values())) > 10


def test_too_few_problems_for_a_split_are_refused() -> None:
    only = {"size": 1}
    config = task.Config(dataset="chain_sum", settings=only)
    with pytest.raises(ValueError, match="too few different problems to fill"):
        [task.prompt(config, split, 0) for split in ("train", "test")]  # type: ignore[arg-type]


def test_the_process_and_what_it_drew_before_do_not_matter() -> None:
    """Global generators neither steer the library's problems nor are moved by them."""
    random.seed(5)
    np.random.seed(5)
    first = made("list_functions", 30) + made("pool_matrix", 3)
    after = random.random(), np.random.random()
    random.seed(5)
    np.random.seed(5)
    assert after == (random.random(), np.random.random())
    assert made("list_functions", 30) + made("pool_matrix", 3) == first


def test_problems_that_follow_the_hash_seed_need_it_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(ValueError, match="PYTHONHASHSEED=0"):
        task.Config(dataset="ransom_note")
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert len(made("ransom_note", 2)) == 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"dataset": "chain_sun"}, "did you mean 'chain_sum'"),
        ({"dataset": "chain_sum", "settings": {"terms": 3}}, "refuses them.*terms"),
        ({"dataset": "chain_sum", "settings": {"min_terms": -1}}, "refuses them"),
        ({"dataset": "chain_sum", "settings": {"seed": 3}}, "take it out"),
        ({"dataset": "composite"}, "refuses them"),
        ({}, "dataset"),
    ],
)
def test_mistakes_of_the_task_are_told(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        task.Config(**settings)


def test_a_recipes_data_are_made_and_graded() -> None:
    spec = {"name": "reasoning_gym", "dataset": "countdown", "settings": {"max_numbers": 4}}
    dataset = load_data(DataConfig(task=spec, limit=6), "train", seed=3)
    prompts = [dataset[i] for i in range(6)]
    assert check_golds(prompts, "reasoning_gym") == {}
    with VerifierPool("reasoning_gym", workers=1) as pool:
        golds = [(f"So <answer>{p.answer}</answer>", p.answer, context(p)) for p in prompts]
        others = [("<answer>1+1</answer>", p.answer, context(p)) for p in prompts]
        statuses = [verdict.status for verdict in pool.grade(golds + others)]
    assert statuses == ["ok"] * 6 + ["wrong"] * 6


# Their scorers, guarded


GRADER = load("reasoning_gym")


@pytest.mark.parametrize("dataset", SEVERAL)
def test_golds_pass_and_those_of_other_problems_do_not(dataset: str) -> None:
    prompts = made(dataset, 6)
    for prompt, other in pairwise(prompts):
        if prompt.answer:
            assert graded(GRADER, rf"It is \boxed{{{prompt.answer}}}", prompt).correct
            assert graded(GRADER, prompt.answer, prompt).correct
        for text in (scorers.NONSENSE, other.answer or "{}"):
            verdict = graded(GRADER, text, prompt)
            assert verdict.known
            assert not verdict.correct


@pytest.mark.parametrize("dataset", SEVERAL)
def test_rows_that_went_through_a_file_are_graded_alike(dataset: str) -> None:
    for prompt in made(dataset, 3):
        entry = json.loads(json.dumps(prompt.meta["entry"]))
        row = {"metadata": entry["metadata"], "prompt": entry["question"]}
        for meta in (row, {**row, "metadata": json.dumps(row["metadata"])}, {"entry": entry}):
            for text in (prompt.answer or "{}", "17"):
                assert GRADER(text, prompt.answer, meta) == graded(GRADER, text, prompt)


def test_lists_that_were_tuples_are_tuples_again() -> None:
    """rearc compares a grid with the tuples that it made: a gold from a file must pass."""
    (prompt,) = made("rearc", 1)
    meta = {"entry": json.loads(json.dumps(prompt.meta["entry"]))}
    assert GRADER(prompt.answer, prompt.answer, meta).correct


def test_an_answer_is_not_evaluated(tmp_path: Path) -> None:
    """Scorers of these datasets would run it."""
    mark = tmp_path / "ran"
    for call in (
        f"__import__('pathlib').Path('{mark}').touch()",
        f"[open('{mark}', 'w')]",
        f"exec(\"open('{mark}', 'w')\")",
        f"(lambda: open('{mark}', 'w'))()",
    ):
        for dataset in (*scorers.LISTS, *scorers.FORMULAS):
            if dataset in task.HASHED and "PYTHONHASHSEED" not in os.environ:
                continue
            for prompt in made(dataset, 1):
                assert graded(GRADER, f"<answer>{call}</answer>", prompt).status == "unparseable"
    assert not mark.exists()
    # as their authors mean it, a list may be written as one, for a part of the marks
    (prompt,) = made("spiral_matrix", 1)
    listed = str([int(n) for n in prompt.answer.split()])
    partial = load({"name": "reasoning_gym", "partial": True})
    assert graded(partial, listed, prompt).score == pytest.approx(0.1)
    assert graded(GRADER, listed, prompt).score == 0


def evaluators() -> Iterator[str]:
    """Files of the library that evaluate text, and may do so with an answer."""
    folder = Path(gym.__file__).parent
    for file in folder.rglob("*.py"):
        source = file.read_text()
        found = re.search(r"(?<![.\w])(?:eval|exec)\(|parse_expr\(|sympify\(|pickle", source)
        if found and "def score_answer" in source:
            yield file.stem


def test_every_scorer_that_evaluates_is_known() -> None:
    """A new one in another version of the library fails here, before it meets an answer."""
    harmless = {  # these evaluate what the library wrote: problems, golds, their own programs
        *("codeio", "number_sorting", "bitwise_arithmetic", "basic_arithmetic"),
        "propositional_logic",  # a parse_expr of its own
    }
    assert set(evaluators()) - harmless == {*scorers.LISTS, *scorers.FORMULAS}


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9",
        "2**(9**9)",
        "((9**60)**60)**60",
        "10**65",
        "factorial(9)",
        "x.y",
        "a[0]",
        "f'{1}'",
    ],
)
def test_formulas_are_bounded(text: str) -> None:
    for prompt in made("simple_integration", 1):
        assert graded(GRADER, text, prompt).status == "unparseable"
    assert graded(GRADER, "+".join(["1"] * 5000), made("countdown", 1)[0]).status == "unparseable"


def test_sums_use_the_given_numbers_and_come_out_exactly() -> None:
    """The library's puzzle24 takes any four numbers, and 24.9 for 24."""
    entry = {"question": "?", "answer": "8*3/(1*1)", "metadata": {"numbers": [8, 3, 1, 1]}}
    meta = {"source_dataset": "puzzle24", "entry": entry}
    graded_ = {
        text: GRADER(text, "8*3/(1*1)", meta).correct
        for text in (
            "8*3/(1*1)",
            "1*1*3*8",
            "(6+6)*(1+1)",
            "6*4*1*1",
            "8*3+1/1",
            "7*7/2-0",
            "-8*-3*1*1",
        )
    }
    assert [text for text, right in graded_.items() if right] == [
        "8*3/(1*1)",
        "1*1*3*8",
        "-8*-3*1*1",
    ]
    close = {"question": "?", "answer": "", "metadata": {"numbers": [99999, 3], "target": 33333}}
    assert GRADER("99999/3", "", {"source_dataset": "countdown", "entry": close}).correct
    close["metadata"]["target"] = 33333.1  # type: ignore[index]
    assert not GRADER("99999/3", "", {"source_dataset": "countdown", "entry": close}).correct


def test_full_marks_for_nonsense_are_no_verdict() -> None:
    """The library calls every answer right of game_of_life_halting, `0` of coin_flip, `nan` of
    complex_arithmetic and -11 for 11 of gsm_symbolic."""
    for prompt in made("game_of_life_halting", 4):
        other = {"True": "False", "False": "True"}[prompt.answer]
        assert graded(GRADER, prompt.answer, prompt).correct
        assert [graded(GRADER, t, prompt).status for t in (other, "perhaps")] == ["wrong"] * 2
    for dataset, text, says in (
        ("coin_flip", "0", "wrong"),
        ("complex_arithmetic", "nan", "unparseable"),
        ("complex_arithmetic", "inf", "unparseable"),
    ):
        for prompt in made(dataset, 4):
            assert graded(GRADER, prompt.answer, prompt).correct
            assert graded(GRADER, text, prompt).status == says
    for prompt in made("gsm_symbolic", 4):
        assert graded(GRADER, f"-{prompt.answer}", prompt).status == "wrong"
        assert graded(GRADER, f"{prompt.answer} 7", prompt).status == "wrong"


def test_a_scorer_that_raises_blames_answer_or_gold() -> None:
    (prompt,) = made("prime_factorization", 1)
    assert graded(GRADER, "two times two", prompt).status == "unparseable"
    meta = context(prompt)
    assert GRADER(
        "two times two", "one", {**meta, "entry": {**meta["entry"], "answer": "one"}}
    ).status == ("gold_error")


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"metadata": 3},
        {"metadata": {}},
        {"source_dataset": "chain_sun", "metadata": {}},
        {"source_dataset": "chain_sum", "settings": {"terms": 1}, "metadata": {}},
        {"source_dataset": "chain_sum", "metadata": "{"},
    ],
)
def test_a_row_that_cannot_be_scored_is_a_gold_error(meta: Mapping[str, Any]) -> None:
    assert GRADER("1", "1", meta).status == "gold_error"


def test_no_answer_and_the_last_tag() -> None:
    (prompt,) = made("chain_sum", 1)
    assert graded(GRADER, " \n", prompt).status == "no_answer"
    assert graded(GRADER, "so <answer> </answer>", prompt).status == "no_answer"
    text = f"<answer>x</answer> rather <answer>{prompt.answer}</answer>"
    assert graded(GRADER, text, prompt).correct
    assert graded(GRADER, f"<answer>{prompt.answer}</answer><answer>x</answer>", prompt).status == (
        "wrong"
    )


def test_without_the_library_the_fix_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    task._made.cache_clear()
    with pytest.raises(ValueError, match=r"pip install 'laconic\[reasoning-gym\]'"):
        task.Config(dataset="chain_sum")

    def missing(name: str) -> str:
        raise scorers.PackageNotFoundError(name)

    monkeypatch.setattr(scorers, "version", missing)
    with pytest.raises(ValueError, match=r"pip install 'laconic\[reasoning-gym\]'"):
        load("reasoning_gym")


# All of it

SWEEP = """
import sys, hashlib, json
from samplers.tasks import reasoning_gym as task
from reasoning_gym.factory import DATASETS
out = {}
for name in sorted(DATASETS):
    if name == "composite":
        continue
    config = task.Config(dataset=name)
    few = 3 if name in ("futoshiki", "knight_swap") else 12
    prompts = [task.prompt(config, "train", i) for i in range(few)]
    out[name] = hashlib.md5(repr([(p.messages, p.answer) for p in prompts]).encode()).hexdigest()
print(json.dumps(out))
"""


def sweep(hash_seed: str) -> dict[str, str]:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SWEEP], env=environment, capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_problems_of_every_dataset_are_the_same_in_every_process() -> None:
    one, other, again = (sweep(seed) for seed in ("1", "2", "1"))
    assert one == again
    assert {name for name in one if one[name] != other[name]} <= set(task.HASHED)
    assert len(one) > 100


@pytest.mark.slow
def test_every_dataset_accepts_its_golds_and_no_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    names = function("reasoning_gym.factory:DATASETS")
    passed: dict[str, list[str]] = {"rejected": [], "accepted": [], "unknown": []}
    count = 0
    for name in sorted(set(names) - {"composite"}):
        prompts = made(name, 3 if name in ("futoshiki", "knight_swap") else 8)
        for prompt, other in zip(prompts, [*prompts[1:], prompts[0]], strict=True):
            count += 1
            if prompt.answer and not graded(GRADER, prompt.answer, prompt).correct:
                passed["rejected"].append(prompt.id)
            for text in (other.answer, "?", "0", "nan", "True", "[]", "I do not know"):
                verdict = graded(GRADER, text or "{}", prompt)
                same = re.sub(r"\W|0", "", text) == re.sub(r"\W|0", "", prompt.answer)
                if verdict.correct and not same:
                    passed["accepted"].append(f"{prompt.id}: {text[:40]}")
                if not verdict.known:
                    passed["unknown"].append(f"{prompt.id}: {verdict.detail}")
    assert passed == {"rejected": [], "accepted": [], "unknown": []}
    assert count > 700
