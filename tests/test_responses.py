"""Dumps of responses: the shapes that tools write, where the answer begins, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from samplers.render import ThinkingConfig
from samplers.responses import Dump, ResponseColumns, Thinking, load, never_opened

MARKERS = ThinkingConfig()
WHOLE = Thinking(None)


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, thinking: Thinking = WHOLE, **columns: str) -> Dump:
    return load(path, ResponseColumns(**columns), thinking)


SAID = {"role": "assistant", "content": "5"}
ASKED = {"role": "user", "content": "2+3?"}
SHAPES: dict[str, tuple[Any, list[str | None]]] = {
    "text": ("5", ["5"]),
    "number": (5, ["5"]),
    "samples": (["5", None, "6"], ["5", None, "6"]),
    "chat": ([SAID], ["5"]),
    "conversation": ([ASKED, SAID], ["5"]),
    "chats": ([[SAID], [ASKED, SAID | {"content": "6"}]], ["5", "6"]),
    "message": (SAID, ["5"]),
    "message without content": (SAID | {"content": None}, [None]),
    "parts": ([SAID | {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
              ["ab"]),
    "completions of an engine": ([{"text": "5"}, {"text": "6"}], ["5", "6"]),
    "choices": ([{"index": 0, "message": SAID}], ["5"]),
    "a batch's": ({"status_code": 200, "body": {"id": "c", "choices": [{"message": SAID}]}}, ["5"]),
    "nested samples": ([["5"], ["6"]], ["5", "6"]),
    "no samples": ([], []),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_response_has_many_shapes(shape: str, tmp_path: Path) -> None:
    value, texts = SHAPES[shape]
    rows = {"answer": "5", "response": value}, {"answer": "5", "response": "last"}
    dump = read(write(tmp_path / "r.jsonl", *rows))
    assert [r.whole for r in dump.responses] == [*texts, "last"]
    assert [(r.row, r.sample) for r in dump.responses][:-1] == [(0, k) for k in range(len(texts))]


def test_messages_that_end_with_the_assistant_are_prompt_and_response(tmp_path: Path) -> None:
    dump = read(write(tmp_path / "r.jsonl", {"messages": [ASKED, SAID], "ground_truth": "5"}))
    assert (dump.gold, dump.column) == ("ground_truth", "messages")
    assert dump.responses[0].answer == "5"
    assert dump.prompts[0].messages == (ASKED,)


def test_the_options_of_a_question_are_no_responses(tmp_path: Path) -> None:
    row = {"question": "2+3?", "choices": ["4", "5"], "answer": "B", "prediction": "B"}
    dump = read(write(tmp_path / "r.jsonl", row, row | {"choices": []}))
    assert (dump.column, [r.whole for r in dump.responses]) == ("prediction", ["B", "B"])
    empty = read(write(tmp_path / "e.jsonl", {"answer": "B", "response": []}))
    assert (empty.column, empty.responses) == ("response", [])
    chosen = read(tmp_path / "r.jsonl", response="choices")
    assert [r.whole for r in chosen.responses] == ["4", "5"]


def test_a_place_in_a_list_is_a_column(tmp_path: Path) -> None:
    row = {"doc": {"choices": ["5", "6"]}, "model_response": {"text": ["x", "y"]}}
    columns = {"answer": "doc.choices.0", "response": "model_response.text"}
    dump = read(write(tmp_path / "r.jsonl", row, {**row, "doc": {"choices": []}}), **columns)
    assert [p.answer for p in dump.prompts] == ["5", ""]
    assert [r.whole for r in dump.responses] == ["x", "y", "x", "y"]


def test_rows_without_ids_that_ask_the_same_are_samples_of_one_problem(tmp_path: Path) -> None:
    rows = [
        {"input": text, "gts": gold, "output": "x"}
        for text, gold in (("2+3?", "5"), ("2+4?", "6"), ("2+3?", "5"), ("2+3?", "7"))
    ]
    dump = read(write(tmp_path / "r.jsonl", *rows))
    assert [p.id for p in dump.prompts] == ["r/1", "r/2", "r/1", "r/4"]
    assert [dump.name(r) for r in dump.responses] == ["r/1#0", "r/2#0", "r/3#0", "r/4#0"]
    named = write(tmp_path / "n.jsonl", *({**row, "uid": i} for i, row in enumerate(rows)))
    assert [p.id for p in read(named).prompts] == ["0", "1", "2", "3"]
    bare = [{k: v for k, v in row.items() if k != "input"} for row in rows]
    assert len({p.id for p in read(write(tmp_path / "b.jsonl", *bare)).prompts}) == 4


def test_the_models_own_answer_is_never_taken_for_the_gold(tmp_path: Path) -> None:
    """A run's samples and most dumps call what was extracted `answer`."""
    mine = {"id": "a", "gold": "5", "answer": "6", "text": "so 6"}
    dump = read(write(tmp_path / "r.jsonl", mine, mine | {"id": "b", "gold": None}))
    assert (dump.gold, dump.column) == ("gold", "text")
    assert [p.answer for p in dump.prompts] == ["5", ""]
    chosen = read(tmp_path / "r.jsonl", answer="answer", response="gold")
    assert (chosen.prompts[0].answer, chosen.responses[0].whole) == ("6", "5")


def test_worked_golds_are_read_as_those_of_datasets(tmp_path: Path) -> None:
    rows = {"answer": "2+3 #### 5", "output": "x"}, {"answer": {"inputs": [1]}, "output": "x"}
    dump = read(write(tmp_path / "r.jsonl", *rows))
    assert [p.answer for p in dump.prompts] == ["5", '{"inputs": [1]}']


@pytest.mark.parametrize(
    ("text", "closed", "opened"),
    [
        ("<think>1</think>5", "5", "5"),
        ("1</think>4</think>5", "5", "5"),
        ("<think>1", None, None),
        ("1</think><think>5", None, None),
        ("5", "5", None),
        (None, None, None),
    ],
)
def test_only_what_follows_the_last_end_marker_is_answer(
    text: str | None, closed: str | None, opened: str | None
) -> None:
    assert Thinking(MARKERS).answer(text) == closed
    assert Thinking(MARKERS, opened=True).answer(text) == opened
    assert WHOLE.answer(text) == text


def test_thoughts_that_the_template_opened_are_noticed(tmp_path: Path) -> None:
    def count(*texts: str) -> int:
        path = write(tmp_path / "r.jsonl", {"answer": "5", "responses": texts})
        return never_opened(read(path).responses, MARKERS)

    assert count("a</think>5", "cut off", "cut too") == 2
    assert count("<think>a</think>5", "cut off") == 0
    assert count("5", "6") == 0


def test_what_verifiers_know_of_a_row_is_what_they_know_in_training(tmp_path: Path) -> None:
    row = {"question": "2+3?", "answer": "5", "response": "5", "verifier": "exact", "choices": [1]}
    prompt = read(write(tmp_path / "r.jsonl", row)).prompts[0]
    assert prompt.messages == (ASKED,)
    assert prompt.verifier == "exact"
    assert dict(prompt.meta) == {"verifier": "exact", "choices": [1], "answer": "5"}


def test_a_runs_folder_is_read_step_by_step(tmp_path: Path) -> None:
    sample = {"id": "p", "gold": "5", "text": "5"}
    for step in (10, 9):
        write(tmp_path / "rollouts" / f"step-{step}.jsonl", sample | {"text": f"{step}"}, sample)
    dump = read(tmp_path)
    assert [r.whole for r in dump.responses] == ["9", "5", "10", "5"]
    names = [dump.name(r) for r in dump.responses]
    assert names == ["step-9/1#0", "step-9/2#0", "step-10/1#0", "step-10/2#0"]
    assert {p.id for p in dump.prompts} == {"p"}


def test_parquet_is_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"uid": 1, "gts": "5", "output": "5"}, {"uid": 2, "gts": "6", "output": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet")
    dump = read(tmp_path / "r.parquet")
    assert [r.whole for r in dump.responses] == ["5", None]


GOOD = {"id": 1, "answer": "5", "response": "5"}
BAD: dict[str, tuple[list[Any], dict[str, str], list[str]]] = {
    "no golds": ([{"response": "5", "x": 1}], {}, ["no column of golds among response, x"]),
    "no responses": ([{"answer": "5", "x": 1}], {}, ["no column of responses among answer, x"]),
    "column": ([GOOD], {"response": "respnse"}, ["'respnse' is missing", "'response'?"]),
    "object": ([GOOD, GOOD | {"response": {"a": 1}}], {}, ["r.jsonl:2", "an object of a"]),
    "roles": ([GOOD | {"response": [SAID, ASKED]}], {}, ["r.jsonl:1", "of role 'user'"]),
    "row": ([GOOD, [1]], {}, ["r.jsonl:2", "got a list"]),
    "empty": ([], {}, ["has no rows"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_dumps_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    rows, columns, said = BAD[case]
    path = write(tmp_path / "r.jsonl", *rows)
    with pytest.raises(ValueError) as error:
        load(path, ResponseColumns(**columns), WHOLE)
    assert all(part in str(error.value) for part in said), error.value
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no rollouts/\*\.jsonl"):
        read(tmp_path)
