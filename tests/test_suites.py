"""Risk: a set that is read wrongly, graded against a wrong gold, or is another set."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.grader import load
from samplers.budget import Asks
from samplers.types import Prompt
from tests import answers
from trainer.eval import problems, suites
from trainer.eval.folder import open_folder
from trainer.eval.judging import judge
from trainer.eval.problems import SHUFFLE, row_of
from trainer.eval.run import describe
from trainer.eval.samples import PROBLEMS, SAMPLES, SETTINGS, line
from trainer.eval.settings import EvalSettings, ways
from trainer.eval.suites import BOXED, SUITES, Wanted, task

ROWS: dict[str, dict[str, Any]] = {
    "math500": {"problem": "p", "solution": "no", "answer": r"\frac{1}{2}", "level": 3},
    "aime24": {"problem_idx": 7, "problem": "p", "answer": "033"},
    "aime25": {"problem_idx": 7, "problem": "p", "answer": 33},
    "aime26": {"id": "x", "problem": "p", "answer": 33},
    "amc23": {"id": 0, "problem": "p", "answer": 27.0, "question": "q"},
    "gsm8k": {"question": "p", "answer": "3 + 15 = <<3+15=18>>18\n#### 1,018"},
    "olympiadbench": {"id": 9, "question": "p", "final_answer": ["$2$", "$-3$"], "answer": "no"},
    "minerva": {"question": "p", "answer": "4.5e33"},
    "gpqa": {
        "Question": "p",
        "Correct Answer": "warm ",
        "Incorrect Answer 1": "cold",
        "Incorrect Answer 2": "hot",
        "Incorrect Answer 3": "mild",
        "Record ID": "rec1",
    },
    "hmmt": {"problem_idx": 1, "problem": "p", "answer": r"\sqrt{2}"},
}
GOLDS = {
    "math500": r"\frac{1}{2}",
    "aime24": "033",
    "aime25": "33",
    "aime26": "33",
    "amc23": "27",
    "gsm8k": "1,018",
    "olympiadbench": "2, -3",
    "minerva": "4.5e33",
    "gpqa": "A",
    "hmmt": r"\sqrt{2}",
}
RIGHT = {
    "aime24": "33",
    "gsm8k": "1018",
    "olympiadbench": "-3, 2",
    "minerva": r"4.5 \times 10^{33}",
    "gpqa": "(A) warm",
}
"""Other ways to write them."""


def file(folder: Path, *rows: dict[str, Any], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(autouse=True)
def _another_set() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* it may be another set")
        yield


@pytest.mark.parametrize("name", SUITES)
def test_rows_as_they_are_published(name: str, tmp_path: Path) -> None:
    found = task(f"{name}={file(tmp_path, ROWS[name])}", Wanted())
    (prompt,) = found.prompts
    text = prompt.messages[-1]["content"]
    assert prompt.answer == GOLDS[name]
    assert text.startswith("p") or name == "amc23"
    assert text.endswith("\\boxed{}.")
    assert found.name == name
    assert found.samples >= 4
    grader, row = load(found.verifier), row_of(name, prompt)
    for said in (GOLDS[name], RIGHT.get(name, GOLDS[name])):
        body, gold, meta = problems.item_of(row, 0, None)
        del body
        label = said if name != "gpqa" else said.replace("A", gold)
        assert grader(rf"\boxed{{{label}}}", gold, meta).correct, (said, gold)
    if name == "math500":
        assert row["difficulty"] == 3
        assert text == "p" + BOXED


@pytest.mark.parametrize(
    ("name", "file_", "count", "verifier"),
    [
        ("math500", "math500.jsonl", 500, "math"),
        ("aime24", "aime24.jsonl", 30, "numeric"),
        ("amc23", "amc23.jsonl", 40, "math"),
        ("gsm8k", "gsm8k_test.json", 1319, "numeric"),
    ],
)
def test_real_files(name: str, file_: str, count: int, verifier: str) -> None:
    """Read whole, every gold accepted by its verifier, and no word that it may be another set."""
    path = answers.path(file_)
    if not path.is_file():
        pytest.skip(f"{file_} not found: set LACONIC_DATA to the folder that holds it")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = task(f"{name}={path}", Wanted())
    assert len(found.prompts) == count
    assert found.verifier == verifier
    assert [prompt.answer for prompt in found.prompts] == [
        gold for gold in answers.answers(file_) if gold
    ] or name == "amc23"
    assert len({prompt.id for prompt in found.prompts}) == count
    again = task(f"{name}={path}", Wanted(problems=10))
    assert again.prompts == found.prompts[:10]
    assert again.fingerprint != found.fingerprint


def test_a_folder_of_suites_and_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([ROWS["aime25"]]), tmp_path / "aime25.parquet")
    file(tmp_path, ROWS["math500"], name="math500.json")
    wanted = Wanted(folder=tmp_path)
    assert task("aime25", wanted).prompts[0].answer == "33"
    assert task("math500", wanted).source == str(tmp_path / "math500.json")
    with pytest.raises(ValueError, match=r"holds no hmmt\.jsonl"):
        task("hmmt", wanted)


def test_procedural_tasks_and_own_files(tmp_path: Path) -> None:
    plain, hard = task("find", Wanted()), task("{name: find, candidates: [6, 6]}", Wanted())
    assert len(plain.prompts) == suites.PROBLEMS
    assert (plain.stream, plain.verifier) == (0, "exact")
    assert {p.meta["n"] for p in hard.prompts} == {6}
    assert plain.fingerprint != hard.fingerprint
    path = file(tmp_path, {"text": "1+1?", "target": "2"}, name="mine.jsonl")
    own = task(path, Wanted(columns={"prompt": "text", "answer": "target"}, verifier="numeric"))
    assert (own.name, own.prompts[0].answer, own.verifier) == ("mine", "2", "numeric")
    assert own.prompts[0].messages[-1]["content"] == "1+1?"


def test_tasks_of_one_command_draw_other_random_numbers(tmp_path: Path) -> None:
    names = ("math500", "aime24", "hmmt")
    streams = [task(f"{n}={file(tmp_path, ROWS[n])}", Wanted()).stream for n in names]
    assert len({0, *streams}) == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mth500", "did you mean 'math500'"),
        ("fnd", "did you mean 'find'"),
        ("math50=x.jsonl", "no suite is named 'math50'; did you mean 'math500'"),
        ("aime24=nowhere.jsonl", "--tasks aime24: file 'nowhere.jsonl' does not exist"),
        ("{name: find, candidats: [2, 3]}", "candidats"),
        ("{name: find", "--tasks: '{name: find'"),
    ],
)
def test_what_is_not_there_is_told(text: str, said: str) -> None:
    with pytest.raises(ValueError) as told:
        task(text, Wanted())
    assert said in str(told.value)


def test_columns_that_are_not_there_are_told(tmp_path: Path) -> None:
    path = file(tmp_path, {"txt": "1+1?", "target": "2"}, name="mine.jsonl")
    with pytest.raises(ValueError, match=r"no prompt column among txt, target; .*--columns"):
        task(path, Wanted())
    with pytest.raises(ValueError, match=r"column 'text' .* did you mean 'txt'"):
        task(path, Wanted(columns={"prompt": "text", "answer": "target"}))
    with pytest.raises(ValueError, match=r"'promt' is no kind of column; did you mean 'prompt'"):
        task(path, Wanted(columns={"promt": "txt"}))
    with pytest.raises(ValueError, match=r"task 'find' has no columns"):
        task("find", Wanted(columns={"prompt": "txt"}))


def test_bad_golds_are_refused_dropped_or_kept(tmp_path: Path) -> None:
    rows = [{"id": str(i), "problem": "p", "answer": gold} for i, gold in enumerate(("1", "x"))]
    text = f"aime24={file(tmp_path, *rows)}"
    with pytest.raises(ValueError, match=r"rejects the gold of 1 of 2 problems; row 1: answer 'x'"):
        task(text, Wanted())
    with pytest.warns(UserWarning, match="left out"):
        assert [p.id for p in task(text, Wanted(bad_golds="drop")).prompts] == ["0"]
    assert len(task(text, Wanted(bad_golds="keep")).prompts) == 2


def test_another_number_of_problems_is_told(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=r"amc23 has 40 problems and .* has 1"):
            task(f"amc23={file(tmp_path, ROWS['amc23'])}", Wanted())


# Options in another order at every sample


def question(count: int) -> Prompt:
    options = [f"option {i}" for i in range(count)]
    text = f"Which?\n\n{problems.listed(options)}\n\nAnswer."
    meta = {"options": options, SHUFFLE: 0}
    return Prompt(5, "q", ({"role": "user", "content": text},), "", "A", "", meta)


@given(count=st.integers(2, 10), sample=st.integers(0, 500))
def test_shuffled_options_are_asked_graded_and_told_alike(count: int, sample: int) -> None:
    prompt = question(count)
    posed = problems.posed(prompt, sample).messages[-1]["content"]
    row = row_of("gpqa", prompt)
    _, gold, meta = problems.item_of(row, sample, None)
    assert f"({gold}) option 0\n" in posed
    shown = [line for line in posed.splitlines() if line.startswith("(")]
    assert [line[4:] for line in shown] == meta["options"]
    assert sorted(meta["options"]) == sorted(prompt.meta["options"])
    grade = load("choice")
    for place, text in enumerate(meta["options"]):
        label = problems.LABELS[place]
        verdict = grade(rf"\boxed{{{label}}}", gold, meta)
        assert verdict.correct == (text == "option 0")
        back = problems.unshuffled(row, sample, verdict.answer)
        assert back == problems.LABELS[prompt.meta["options"].index(text)]
    assert posed == problems.posed(prompt, sample).messages[-1]["content"]


def test_the_right_option_stands_everywhere_alike() -> None:
    prompt = question(4)
    golds = Counter(problems.item_of(row_of("q", prompt), s, None)[1] for s in range(4000))
    assert set(golds) == set("ABCD")
    assert max(abs(n - 1000) for n in golds.values()) < 150  # five standard deviations


def test_options_may_come_with_a_letter_or_a_text(tmp_path: Path) -> None:
    options = ["cold", "warm", "hot", "mild"]
    for i, gold in enumerate(("B", "warm")):
        row = {"question": "p", "options": options, "answer": gold}
        (prompt,) = task(f"gpqa={file(tmp_path, row, name=f'{i}.jsonl')}", Wanted()).prompts
        assert prompt.meta["options"] == ["warm", "cold", "hot", "mild"]
    text = f"gpqa={file(tmp_path, {'question': 'p', 'options': options, 'answer': 'tepid'})}"
    with pytest.raises(ValueError, match=r"answer 'tepid' is no letter of its options"):
        task(text, Wanted())


def test_saved_answers_to_shuffled_options_are_judged_by_what_they_say(tmp_path: Path) -> None:
    """A model that always names one option by its text's label; and one that always says B."""
    prompt, settings = question(4), EvalSettings(samples=24)
    found = problems.Task("gpqa", "", (prompt,), "choice")
    described = describe(settings, [found], ways(settings, Asks()), Asks(), {})
    (tmp_path / SETTINGS).write_text(json.dumps(described))
    row = row_of("gpqa", prompt)
    (tmp_path / PROBLEMS).write_text(line(row))
    said = []
    for sample in range(24):
        options = problems.item_of(row, sample, None)[2]["options"]
        label = problems.LABELS[options.index("option 2")] if sample < 12 else "B"
        cut = {"budget": "inf", "think": 1, "tokens": 3, "text": rf"\boxed{{{label}}}"}
        cut |= {"forced": False, "finish": "stop", "confidence": 0.5}
        key = {"task": "gpqa", "id": "q", "sample": sample, "asked": "", "closed": True}
        said.append(line({**key, "finish": "stop", "cuts": [cut]}))
    (tmp_path / SAMPLES).write_text("".join(said))
    judge(open_folder(tmp_path))
    (table,) = open_folder(tmp_path).tables()
    assert len(set(table.class_MSJ[0, :12, 0].tolist())) == 1  # one option, whatever its letter
    assert not table.correct_MSJ[0, :12].any()
    rights = [
        problems.item_of(row, sample, None)[2]["options"][1] == "option 0"
        for sample in range(12, 24)
    ]
    assert table.correct_MSJ[0, 12:, 0].tolist() == [float(right) for right in rights]
    assert len(set(table.class_MSJ[0, 12:, 0].tolist())) > 1
