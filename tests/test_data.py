"""Datasets: layouts recognised, mistakes named by file and row, and the order prompts come in."""

from __future__ import annotations

import json
import os
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.verify import context
from samplers.data import DataConfig, PromptStream, dress, load
from samplers.files import read
from samplers.types import Prompt

ROWS = [{"problem": f"{i} + {i} = ?", "answer": str(2 * i), "id": f"p{i}"} for i in range(7)]


def jsonl(tmp_path: Path, rows, name: str = "rows.jsonl") -> str:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def real(name: str) -> str:
    beside = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    path = Path(os.environ.get("LACONIC_DATA", beside)) / name
    if not path.is_file():
        pytest.skip(f"no {name}: set LACONIC_DATA to a folder that has it")
    return str(path)


# what is recognised


def write_json(path: Path, rows) -> None:
    path.write_text(json.dumps(rows, indent=1))


def write_jsonl(path: Path, rows) -> None:
    lines = "\n\n".join(json.dumps(r, ensure_ascii=False) for r in rows)
    path.write_text("\ufeff" + lines, encoding="utf-8")


def write_parquet(path: Path, rows) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.json", write_json), ("a.jsonl", write_jsonl), ("a.parquet", write_parquet)],
)
def test_file_kinds_read_the_same(tmp_path, name, write):
    rows = [{**r, "problem": r["problem"] + " \u2028 caf\u00e9"} for r in ROWS]
    write(tmp_path / name, rows)
    dataset = load(DataConfig(path=str(tmp_path / name)))
    assert len(dataset) == dataset.size == 7
    for i, row in enumerate(rows):
        prompt = dataset[i]
        assert prompt.messages == ({"role": "user", "content": row["problem"]},)
        assert (prompt.index, prompt.id, prompt.answer) == (i, row["id"], row["answer"])
    with pytest.raises(IndexError):
        dataset[7]


def test_users_functions_get_the_golds_column_as_it_stands(tmp_path):
    """TRL's reward functions name it: `def accuracy(completions, solution, **kwargs)`."""
    row = {"problem": "2 + 3 = ?", "solution": r"2 + 3 is \boxed{5}.", "source": "x"}
    prompt = load(DataConfig(path=jsonl(tmp_path, [row])))[0]
    assert (prompt.answer, prompt.meta["solution"]) == ("5", row["solution"])
    assert context(prompt).keys() == {"prompt", "solution", "source"}


def test_verl_layout(tmp_path):
    """Parquet as verl's preprocessing writes it: ids carry source and split."""
    rows = [
        {
            "data_source": source,
            "prompt": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": f"{source} {i}?"},
            ],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(i)},
            "extra_info": {"split": "train", "index": i, "answer": "worked"},
        }
        for source in ("openai/gsm8k", "math")
        for i in range(3)
    ]
    write_parquet(tmp_path / "verl.parquet", rows)
    dataset = load(DataConfig(path=str(tmp_path / "verl.parquet"), suffix=" Think.", system="No."))
    assert [p.id for p in map(dataset.get, range(6))][:4] == [
        "openai/gsm8k/train/0",
        "openai/gsm8k/train/1",
        "openai/gsm8k/train/2",
        "math/train/0",
    ]
    prompt = dataset[4]
    assert prompt.answer == "1"
    assert prompt.messages == (  # a system message of its own is kept
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "math 1? Think."},
    )
    assert prompt.meta["data_source"] == "math"
    assert prompt.meta["extra_info"]["answer"] == "worked"


@pytest.mark.parametrize(
    ("row", "gold"),
    [
        ({"question": "q", "answer": "16 - 7 = 9\n#### 9"}, "9"),
        ({"problem": "q", "solution": r"so \boxed{1} or \boxed{\frac{1}{2}}."}, r"\frac{1}{2}"),
        ({"problem": "q", "solution": "#### 1,000", "answer": None}, "1,000"),
        ({"problem": "q", "answer": 27.0}, "27"),
        ({"problem": "q", "answer": 0}, "0"),
        ({"problem": "q", "answer": 2.5}, "2.5"),
        ({"problem": "q", "answer": float("nan"), "ground_truth": "4"}, "4"),
        ({"prompt": "q", "ground_truth": [1, 2]}, "[1, 2]"),
        ({"prompt": "q", "answer": {"b": 1, "a": 2}}, '{"a": 2, "b": 1}'),
    ],
)
def test_gold_answers(tmp_path, row, gold):
    prompt = load(DataConfig(path=jsonl(tmp_path, [row])))[0]
    assert prompt.answer == gold
    assert prompt.messages[-1]["content"] == "q"
    assert prompt.id == "rows/1"


@pytest.mark.parametrize(
    ("value", "difficulty"), [(5, 5), ("Level 5", 5), (4.5, 4), ("7", 7), (-1.0, None), ("x", None)]
)
def test_difficulty_is_a_whole_number_or_absent(tmp_path, value, difficulty):
    row = {"problem": "q", "answer": "a", "level": value}
    assert load(DataConfig(path=jsonl(tmp_path, [row])))[0].meta.get("difficulty") == difficulty


def test_column_map_and_what_every_prompt_gets(tmp_path):
    rows = [
        {"q": {"text": "why"}, "gold": "x", "who": "me", "how": "exact", "hard": 3, "more": [1]}
    ]
    columns = {"prompt": "q.text", "answer": "gold", "id": "who", "verifier": "how"}
    config = {"path": jsonl(tmp_path, rows), "columns": {**columns, "difficulty": "hard"}}
    prompt = load(DataConfig(**config, suffix="?", system="S"))[0]
    assert prompt.messages == (
        {"role": "system", "content": "S"},
        {"role": "user", "content": "why?"},
    )
    assert (prompt.id, prompt.answer, prompt.verifier) == ("me", "x", "exact")
    assert prompt.meta["difficulty"] == 3
    assert prompt.meta["more"] == [1]
    plain = load(DataConfig(**config, suffix="?", chat=False))[0]
    assert (plain.messages, plain.text) == ((), "why?")


def test_a_prompt_of_plain_text_gets_it_too():
    plain = Prompt(0, "x", (), "why", "1", "")
    assert dress(DataConfig(task="find", system="S: ", suffix="?"), plain).text == "S: why?"


@pytest.mark.parametrize(
    ("name", "size", "first"),
    [
        ("math500.jsonl", 500, r"\left( 3, \frac{\pi}{2} \right)"),
        ("aime24.jsonl", 30, "204"),
        ("amc23.jsonl", 40, "27"),
        ("gsm8k_test.json", 1319, "18"),
        ("aime_train.json", 975, "60"),
    ],
)
def test_real_files(name, size, first):
    dataset = load(DataConfig(path=real(name)))
    assert len(dataset) == size
    assert dataset[0].answer == first
    assert all(dataset[i].answer for i in range(size))


def test_a_real_file_with_holes():
    """math_train.json has rows without an answer: named, or left out when asked to."""
    path = real("math_train.json")
    with pytest.raises(ValueError, match=r"math_train.json row 887: no answer in answer.*skip"):
        load(DataConfig(path=path))
    dataset = load(DataConfig(path=path, skip_unanswered=True))
    assert 7400 < len(dataset) < len(read(path))
    assert [dataset[i].index for i in range(len(dataset))] == list(range(len(dataset)))


# what is refused


def check(config: dict, *says: str) -> None:
    with pytest.raises(ValueError) as caught:
        load(DataConfig(**config))
    for part in says:
        assert part in str(caught.value)
    if type(caught.value).__name__ != "ValidationError":
        assert "\n" not in str(caught.value)


def test_missing_file_names_the_nearest(tmp_path):
    jsonl(tmp_path, ROWS, "train.jsonl")
    check({"path": str(tmp_path / "trian.jsonl")}, "trian.jsonl", "did you mean 'train.jsonl'?")
    check({"path": str(tmp_path / "no" / "a.jsonl")}, "nor does the folder", str(tmp_path / "no"))


def test_broken_json_names_the_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"problem": "q", "answer": "1"}\n\n{"problem": "q", "answer" "2"}\n')
    check({"path": str(path)}, "a.jsonl:3: broken JSON", "column")
    path = tmp_path / "a.json"
    path.write_text('[\n{"problem": "q", "answer": "1"},\n{"problem": }\n]')
    check({"path": str(path)}, "a.json:3: broken JSON")


def test_unreadable_files(tmp_path):
    for name, content, says in [
        ("a.jsonl", b"\xff\xfe\x00", "UTF-8"),
        ("a.parquet", b"no parquet", "Parquet"),
        ("a.csv", b"q,a", ".jsonl, .json, .parquet"),
        ("b.jsonl", b"\n \n", "has no rows"),
        ("b.json", b"[]", "has no rows"),
        ("c.jsonl", b"3\n", "c.jsonl:1: a row is an object"),
    ]:
        (tmp_path / name).write_bytes(content)
        check({"path": str(tmp_path / name)}, name, says)


def test_rows_that_cannot_be_used(tmp_path):
    ok = {"problem": "q", "answer": "1"}
    for rows, says in [
        ([ok, {"problem": "q"}], ("rows.jsonl:2: no answer in answer",)),
        ([ok, {"problem": "q", "answer": ""}], ("rows.jsonl:2: no answer",)),
        ([ok, {"problem": "q", "answer": None}], ("rows.jsonl:2: no answer",)),
        ([ok, {"problem": " ", "answer": "1"}], ("rows.jsonl:2", "'problem' is ' '")),
        ([ok, {"answer": "1"}], ("rows.jsonl:2", "'problem' is None")),
        ([{"prompt": [], "answer": "1"}], ("rows.jsonl:1", "list of messages")),
        ([{"prompt": [{"role": "user"}], "answer": "1"}], ("rows.jsonl:1", "list of messages")),
        ([{"prompt": ["hi"], "answer": "1"}], ("rows.jsonl:1", "list of messages")),
        (
            [{"prompt": [{"role": "assistant", "content": "x"}], "answer": "1"}],
            ("rows.jsonl:1", "'assistant'"),
        ),
        (
            [{**ok, "id": 1}, {**ok, "id": 2}, {**ok, "id": 1}],
            ("rows.jsonl:3", "'1'", "rows.jsonl:1"),
        ),
        ([{"text": "q", "answer": "1"}], ("no prompt column among text, answer", "data.columns")),
        ([{"problem": "q", "tests": {"f": "g"}}], ("no answer column", "tests.f")),
    ]:
        check({"path": jsonl(tmp_path, rows)}, *says)


def test_unknown_columns_and_fields_name_the_nearest(tmp_path):
    path = jsonl(tmp_path, ROWS)
    check({"path": path, "columns": {"answer": "anser"}}, "'anser'", "did you mean 'answer'?")
    check({"path": path, "columns": {"gold": "answer"}}, "gold")
    check({"path": path, "task": "find"}, "exactly one of task, path and hub", "task, path")
    check({}, "none of them")
    check({"path": path, "limit": 0}, "limit")
    check({"task": "fnd"}, "'fnd'", "did you mean 'find'?")
    check({"task": {"name": "find", "candidates": [5, 2]}}, "candidates")


def test_training_prompts_are_never_evaluated_by_accident(tmp_path):
    path = jsonl(tmp_path, ROWS)
    with pytest.raises(ValueError, match=r"data.path: names nothing for 'test'.*\{train:"):
        load(DataConfig(path=path), "test")
    both = DataConfig(path={"train": path, "test": jsonl(tmp_path, ROWS[:2], "test.jsonl")})
    assert (len(load(both)), len(load(both, "test"))) == (7, 2)


def test_settings_without_effect_warn(tmp_path):
    with pytest.warns(UserWarning, match=r"data.columns has no effect with data.task"):
        DataConfig(task="find", columns={"prompt": "x"})
    with pytest.warns(UserWarning, match=r"data.revision has no effect with data.path"):
        DataConfig(path="x.jsonl", revision="main")


def test_texts_without_chat_have_one_message(tmp_path):
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    path = jsonl(tmp_path, [{"prompt": talk, "answer": "1", "id": "x"}])
    check({"path": path, "chat": False}, "data.chat", "'x'")


# hub datasets, through a stand-in for the optional package


def fake_hub(monkeypatch, asked: list) -> None:
    def load_dataset(path, name=None, split=None, revision=None):
        asked.append((path, name, split, revision))
        if split == "nope":
            raise ValueError("Unknown split 'nope'.\nShould be one of ['train'].")
        return [{"question": "q?", "answer": "so\n#### 3"}]

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_hub_datasets(monkeypatch):
    asked: list = []
    fake_hub(monkeypatch, asked)
    config = DataConfig(hub="openai/gsm8k", subset="main", revision="abc")
    prompt = load(config, "test")[0]
    assert (prompt.answer, prompt.id) == ("3", "openai/gsm8k/test/1")
    assert asked == [("openai/gsm8k", "main", "test", "abc")]
    check({"hub": "a/b", "split": "nope"}, "'a/b' split 'nope'", "Should be one of")


def test_hub_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    check({"hub": "a/b"}, "laconic[hub]")


# fingerprints and order


def test_fingerprints_follow_the_content(tmp_path):
    base = load(DataConfig(path=jsonl(tmp_path, ROWS)))
    copied = load(DataConfig(path=jsonl(tmp_path, ROWS, "copy.jsonl")))
    assert copied.fingerprint == base.fingerprint
    changed = [dict(r) for r in ROWS]
    changed[3]["answer"] = "0"
    others = [
        load(DataConfig(path=jsonl(tmp_path, changed, "changed.jsonl"))),
        load(DataConfig(path=jsonl(tmp_path, ROWS[::-1], "reversed.jsonl"))),
        load(DataConfig(path=jsonl(tmp_path, ROWS), limit=6)),
        load(DataConfig(path=jsonl(tmp_path, ROWS), suffix="!")),
    ]
    tasks = [
        load(DataConfig(task="find"), split, seed)
        for split, seed in (("train", 0), ("train", 1), ("test", 0))
    ]
    tasks += [
        load(DataConfig(task={"name": "find", "ops": [1, 2]})),
        load(DataConfig(task="find", limit=9)),
    ]
    prints = [d.fingerprint for d in [base, *others, *tasks]]
    assert len(set(prints)) == len(prints)


def test_test_problems_are_the_same_for_every_seed():
    config = DataConfig(task="find")
    a, b = (load(config, "test", seed) for seed in (0, 1))
    assert a.fingerprint == b.fingerprint
    assert [a[i] for i in range(20)] == [b[i] for i in range(20)]
    c, d = (load(config, "train", seed) for seed in (0, 1))
    assert [c[i].messages for i in range(20)] != [d[i].messages for i in range(20)]


def test_unlimited_tasks_count_up_and_limited_ones_are_shuffled():
    unlimited = PromptStream(load(DataConfig(task="find")), seed=1)
    assert [unlimited.next()[1].index for _ in range(5)] == [0, 1, 2, 3, 4]
    assert unlimited.dataset.size is None
    with pytest.raises(TypeError, match="unlimited"):
        len(unlimited.dataset)
    pool = PromptStream(load(DataConfig(task="find", limit=6)), seed=1)
    first, second = ([pool.next()[1].index for _ in range(6)] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(6))


def finite(size: int):
    return load(DataConfig(task="find", limit=size))


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 40), seed=st.integers(0, 2**63), epochs=st.integers(1, 4))
def test_every_epoch_shows_each_prompt_once(size, seed, epochs):
    stream = PromptStream(finite(size), seed)
    draws = [stream.next() for _ in range(size * epochs)]
    assert [draw for draw, _ in draws] == list(range(size * epochs))
    for e in range(epochs):
        indices = [p.index for _, p in draws[e * size : (e + 1) * size]]
        assert sorted(indices) == list(range(size))
    assert stream.epoch == epochs


def test_shuffling_is_uniform_and_differs_by_epoch_and_seed():
    dataset = finite(4)
    orders = Counter()
    for seed in range(600):
        stream = PromptStream(dataset, seed)
        orders[tuple(stream.next()[1].index for _ in range(4))] += 1
        orders[tuple(stream.next()[1].index for _ in range(4))] += 1
    assert len(orders) == 24
    assert all(count == pytest.approx(50, abs=36) for count in orders.values())  # 5 sigma
    unshuffled = PromptStream(dataset, 3, shuffle=False)
    assert [unshuffled.next()[1].index for _ in range(8)] == [0, 1, 2, 3] * 2


def test_what_was_put_back_comes_first_oldest_first():
    stream = PromptStream(finite(10), 5)
    drawn = [stream.next() for _ in range(6)]
    for draw, prompt in (drawn[4], drawn[1], drawn[3]):
        stream.put_back(draw, prompt)
    assert [stream.next() for _ in range(3)] == [drawn[1], drawn[3], drawn[4]]
    assert stream.next()[0] == 6
    with pytest.raises(AssertionError):
        stream.put_back(99, drawn[0][1])


@settings(max_examples=60, deadline=None)
@given(
    moves=st.lists(st.sampled_from(["next", "back"]), max_size=30),
    stop=st.integers(0, 30),
    size=st.sampled_from([1, 3, 8, None]),
)
def test_a_restored_stream_goes_on_as_if_never_stopped(moves, stop, size):
    """Any mixture of draws and returns, saved as JSON at any moment."""
    dataset = load(DataConfig(task="find", limit=size))
    one, out, held = PromptStream(dataset, 9), [], []
    for i, move in enumerate(moves):
        if i == stop:
            saved = json.loads(json.dumps(one.state_dict()))
            one = PromptStream(load(DataConfig(task="find", limit=size)), 9)
            one.load_state_dict(saved)
        if move == "next":
            held.append(one.next())
            out.append(held[-1][0])
        elif held:
            one.put_back(*held.pop(0))
    two, again, kept = PromptStream(dataset, 9), [], []
    for move in moves:
        if move == "next":
            kept.append(two.next())
            again.append(kept[-1][0])
        elif kept:
            two.put_back(*kept.pop(0))
    assert out == again
    assert held == kept


@pytest.mark.parametrize("change", ["data", "seed", "shuffle"])
def test_a_changed_dataset_is_not_resumed(change):
    state = PromptStream(finite(6), 1).state_dict()
    other = PromptStream(
        finite(7 if change == "data" else 6), 2 if change == "seed" else 1, change != "shuffle"
    )
    with pytest.raises(ValueError, match="fingerprint" if change == "data" else change):
        other.load_state_dict(state)
