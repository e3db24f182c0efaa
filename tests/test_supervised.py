"""Supervised batches: what is trained on, bucketing, the curriculum, resuming, and files."""

from __future__ import annotations

import json
import sys
import types
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.data import DataConfig
from samplers.tasks import find
from trainer import tiny
from trainer.rows import supervised_row
from trainer.supervised import SupervisedConfig, SupervisedStream, bucket

EOS = 1
TASK = DataConfig(task="find")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


def make(tokenizer, config=None, data=TASK, **changes) -> SupervisedStream:
    def render(prompt, plan):
        if not prompt.messages:
            return tokenizer(prompt.text + plan.suffix).input_ids
        talk = list(prompt.messages)
        return tokenizer.apply_chat_template(talk, add_generation_prompt=True)["input_ids"]

    given = {
        "steps": 20,
        "seed": 0,
        "render": render,
        "encode": lambda text: tokenizer(text).input_ids,
        "eos_id": EOS,
    }
    return SupervisedStream(
        config or SupervisedConfig(pool=64, batch_tokens=512), data, **{**given, **changes}
    )


def text(tokenizer, row) -> str:
    return tokenizer.decode(row.ids_T)


def same(a, b) -> bool:
    return [r.ids_T.tolist() for r in a] == [r.ids_T.tolist() for r in b]


def test_rows_are_demonstrations_and_only_completions_are_trained_on(tokenizer):
    rows = [row for _ in range(3) for row in make(tokenizer).next()]
    expected = {}
    for i in range(64):
        prompt, completion = find.demonstration(find.Config(), i, 0)
        expected[i] = (prompt.messages[0]["content"] + "<think>", completion + "<eos>")
    assert rows
    for row in rows:
        prompt, target = expected[row.prompt]
        assert text(tokenizer, row) == prompt + target
        assert row.plain
        assert row.mask_T.tolist() == [False] * len(prompt.replace("<think>", "~")) + [True] * (
            len(row) - len(prompt.replace("<think>", "~"))
        )
        assert row.ids_T[-1] == EOS
        assert row.mask_T[-1]
        np.testing.assert_array_equal(row.advantages_T[row.mask_T], 1)
        assert np.isnan(row.behaviour_T).all()
        assert (row.versions_T == -1).all()


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80), tokens=st.integers(1, 200))
def test_buckets_hold_every_row_once_and_no_more_than_fits(lengths, tokens):
    rows = [
        supervised_row(np.zeros(1, np.int32), np.zeros(n, np.int32), i)
        for i, n in enumerate(lengths)
    ]
    batches = bucket(rows, tokens)
    assert sorted(r.prompt for b in batches for r in b) == list(range(len(rows)))
    for batch in batches:
        assert len(batch) == 1 or max(map(len, batch)) * len(batch) <= tokens
    for a, b in pairwise(batches):  # full: the next row would not have fitted
        assert len(b[0]) * (len(a) + 1) > tokens
        assert len(a[-1]) <= len(b[0])


def test_a_pool_is_visited_once_in_random_order(tokenizer):
    stream = make(tokenizer)
    seen, lengths = [], []
    while len(seen) < 64:
        rows = stream.next()
        seen += [row.prompt for row in rows]
        lengths.append(max(map(len, rows)))
    assert sorted(seen) == list(range(64))
    assert lengths != sorted(lengths)
    assert {row.prompt for row in stream.next()} <= set(range(64, 128))
    assert not same(make(tokenizer, seed=1).next(), make(tokenizer).next())


def test_the_curriculum_holds_for_its_share_of_the_steps(tokenizer):
    phases = [
        {"until": 0.3, "settings": {"candidates": [2, 2]}},
        {"until": 0.5, "settings": {"candidates": [3, 3], "ops": [1, 1]}},
    ]
    config = SupervisedConfig(pool=64, batch_tokens=512, curriculum=phases)
    data = DataConfig(task={"name": "find", "candidates": [4, 6]})
    stream = make(tokenizer, config, data)
    sizes = []
    for _ in range(20):
        prompts = [text(tokenizer, row).split("?")[0] for row in stream.next()]
        sizes.append({sum(c.isalpha() for c in prompt) for prompt in prompts})
    assert sizes[:6] == [{2}] * 6
    assert sizes[6:10] == [{3}] * 4
    assert set.union(*sizes[10:]) <= {4, 5, 6}


@pytest.mark.parametrize("stop", [0, 1, 5, 6, 7, 12])
@pytest.mark.parametrize("limit", [None, 50])
def test_a_restored_stream_goes_on_as_if_never_stopped(tokenizer, stop, limit):
    phases = [{"until": 0.3, "settings": {"candidates": [2, 3]}}]
    config = SupervisedConfig(pool=32, batch_tokens=1024, curriculum=phases)
    data = DataConfig(task="find", limit=limit)
    whole = make(tokenizer, config, data)
    batches = [whole.next() for _ in range(20)]
    first = make(tokenizer, config, data)
    for _ in range(stop):
        first.next()
    second = make(tokenizer, config, data)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert all(same(second.next(), batch) for batch in batches[stop:])


def test_another_dataset_is_not_resumed(tokenizer):
    stream = make(tokenizer)
    stream.next()
    other = make(tokenizer, data=DataConfig(task={"name": "find", "ops": [1, 1]}))
    with pytest.raises(ValueError, match="fingerprint"):
        other.load_state_dict(stream.state_dict())


# files


def jsonl(tmp_path: Path, rows) -> DataConfig:
    path = tmp_path / "sft.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(path=str(path), shuffle=False)


TALK = [{"role": "user", "content": "A1+6?"}, {"role": "assistant", "content": "A1+6=0!</think>A"}]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"prompt": "A1+6?", "completion": "A1+6=0!</think>A"}, ""),
        ({"question": "A1+6?", "response": "A1+6=0!</think>A"}, ""),
        ({"messages": TALK}, ""),
        ({"prompt": "A1+6?", "completion": "no", "best": "A1+6=0!</think>A"}, "best"),
        ({"prompt": TALK[:1], "completion": "<think>A1+6=0!</think>A"}, ""),
    ],
)
def test_files_of_prompts_and_completions(tokenizer, tmp_path, row, column):
    config = SupervisedConfig(completion=column)
    stream = make(tokenizer, config, jsonl(tmp_path, [row]), opened="<think>")
    for _ in range(2):  # a file goes round
        (only,) = stream.next()
        assert text(tokenizer, only) == "A1+6?<think>A1+6=0!</think>A<eos>"
        assert only.mask_T.sum() == len("A1+6=0!~A~")


def test_text_without_chat(tokenizer, tmp_path):
    data = jsonl(tmp_path, [{"prompt": "A1+6?", "completion": "A"}])
    data = data.model_copy(update={"chat": False, "suffix": "="})
    (row,) = make(tokenizer, data=data).next()
    assert text(tokenizer, row) == "A1+6?=A<eos>"


@pytest.mark.parametrize(
    ("rows", "config", "says"),
    [
        ([{"prompt": "A?", "completion": "A"}, {"prompt": "A?"}], {}, "sft.jsonl:2: no completion"),
        ([{"prompt": "A?", "answer": "A"}], {}, "sft.jsonl:1: no completion in completion or resp"),
        ([{"messages": TALK[:1]}], {}, "sft.jsonl:1: no completion"),
        ([{"messages": TALK[1:]}], {}, "sft.jsonl:1: no completion"),
        ([{"completion": "A"}], {}, "no prompt column"),
        (
            [{"prompt": "A?", "reply": "A"}],
            {"completion": "repyl"},
            "supervised.completion.*did you mean 'reply'",
        ),
        (
            [{"prompt": "A?", "completion": "A"}],
            {"curriculum": [{"until": 0.5, "settings": {"ops": [1, 1]}}]},
            "curriculum",
        ),
    ],
)
def test_files_that_cannot_be_used(tokenizer, tmp_path, rows, config, says):
    with pytest.raises(ValueError, match=says):
        make(tokenizer, SupervisedConfig(**config), jsonl(tmp_path, rows))


def test_rows_beyond_the_context_are_named(tokenizer, tmp_path):
    rows = [{"prompt": "A1+6?", "completion": "A" * n, "id": f"n{n}"} for n in (3, 4)]
    data = jsonl(tmp_path, rows)
    with pytest.raises(ValueError, match=r"'sft/2' has 11 tokens and the model holds 10"):
        make(tokenizer, data=data, context=10).next()


def test_wrong_settings_are_named():
    phase = {"settings": {}}
    for config, says in [
        ({"curriculum": [{"until": 0.5, **phase}, {"until": 0.3, **phase}]}, "ascend"),
        ({"curriculum": [{"until": 1.5, **phase}]}, "until"),
        ({"batch_tokens": 0}, "batch_tokens"),
    ]:
        with pytest.raises(ValueError, match=says):
            SupervisedConfig(**config)


def test_completions_of_a_hub_dataset(tokenizer, monkeypatch):
    asked: list = []

    def load_dataset(path, **settings):
        asked.append((path, settings["split"]))
        return [{"problem": "A1+6?", "generation": "A1+6=0!"}]

    hub = types.ModuleType("datasets")
    monkeypatch.setattr(hub, "load_dataset", load_dataset, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    data = DataConfig(hub="some/traces", split={"train": "train[:1]"})
    rows = make(tokenizer, SupervisedConfig(completion="generation"), data).next()
    assert asked == [("some/traces", "train[:1]")]
    assert rows[0].mask_T.sum() == len("A1+6=0!") + 1
