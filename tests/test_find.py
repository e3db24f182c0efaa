"""Task find, its tokenizer and its shipped base model: problems and demonstrations are as said."""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.tasks import _chains, find
from trainer import tiny
from trainer.fresh import with_weights

BASE = Path(__file__).resolve().parent.parent / "recipes" / "base"
CONFIG = find.Config()


def text_of(prompt) -> str:
    return prompt.messages[0]["content"]


def values_of(text: str) -> dict[str, int]:
    """label -> value modulo 7, by Python's own arithmetic."""
    chains = re.findall(r"([A-H])([0-9+-]+)", text.rstrip("?"))
    return {label: eval(chain) % 7 for label, chain in chains}


@settings(max_examples=150, deadline=None)
@given(
    index=st.integers(0, 2**40),
    seed=st.integers(0, 2**31),
    split=st.sampled_from(["train", "test"]),
    candidates=st.tuples(st.integers(1, 8), st.integers(1, 8)).map(lambda p: (min(p), max(p))),
    ops=st.tuples(st.integers(1, 5), st.integers(1, 5)).map(lambda p: (min(p), max(p))),
)
def test_exactly_the_gold_candidate_is_zero(index, seed, split, candidates, ops):
    config = find.Config(candidates=candidates, ops=ops)
    prompt = find.prompt(config, split, index, seed)
    values = values_of(text_of(prompt))
    assert [label for label, value in values.items() if value == 0] == [prompt.answer]
    assert prompt.meta["n"] == prompt.meta["difficulty"] == len(values)
    assert candidates[0] <= len(values) <= candidates[1]
    assert _chains.LABELS[prompt.meta["hit"]] == prompt.answer
    counts = {len(re.findall(r"[+-]", c)) for c in re.findall(r"[A-H]([0-9+-]+)", text_of(prompt))}
    assert counts == {prompt.meta["ops"]}
    assert ops[0] <= prompt.meta["ops"] <= ops[1]
    assert prompt.index == index


def test_problems_are_uniform():
    """Number of candidates, place of the hit, and every chain among its kind."""
    prompts = [find.prompt(CONFIG, "train", i) for i in range(12_000)]
    sizes = Counter(p.meta["n"] for p in prompts)
    assert set(sizes) == {2, 3, 4, 5, 6}
    for n, count in sizes.items():
        assert count == pytest.approx(2400, abs=220)  # 5 sigma
        hits = Counter(p.meta["hit"] for p in prompts if p.meta["n"] == n)
        for place in range(n):
            assert hits[place] == pytest.approx(count / n, abs=5 * (count / n) ** 0.5)

    chains = Counter(c for p in prompts for c in re.findall(r"[A-H]([0-9+-]+)", text_of(p)))
    every = [
        f"{a}{o}{b}{q}{c}" for a, o, b, q, c in product("0123456", "+-", "0123456", "+-", "0123456")
    ]
    zero = np.array([chains[c] for c in every if eval(c) % 7 == 0])
    other = np.array([chains[c] for c in every if eval(c) % 7 != 0])
    assert set(chains) <= set(every)
    for counts_K in (zero, other):  # chi-square against uniform, 6 standard deviations
        expected, freedom = counts_K.mean(), len(counts_K) - 1
        chi = float(((counts_K - expected) ** 2).sum() / expected)
        assert abs(chi - freedom) < 6 * (2 * freedom) ** 0.5


def test_a_prompt_depends_on_its_index_alone():
    forward = [find.prompt(CONFIG, "train", i, 3) for i in range(50)]
    backward = [find.prompt(CONFIG, "train", i, 3) for i in reversed(range(50))]
    assert forward == backward[::-1]
    other_seed = {text_of(find.prompt(CONFIG, "train", i, 4)) for i in range(50)}
    assert len({text_of(p) for p in forward} & other_seed) < 5


@pytest.mark.parametrize("config", [CONFIG, find.Config(candidates=(2, 2), ops=(1, 1))])
def test_train_and_test_never_share_a_text(config):
    """Small problem spaces repeat texts within a split, and still never across."""
    train = {text_of(find.prompt(config, "train", i, s)) for s in (0, 1) for i in range(3000)}
    test = {text_of(find.prompt(config, "test", i)) for i in range(1500)}
    assert not train & test
    assert len(test) > 100


def test_demonstrations_pose_the_training_prompts():
    for index in range(20):
        prompt, _ = find.demonstration(CONFIG, index, seed=5)
        assert prompt == find.prompt(CONFIG, "train", index, 5)


def steps_of(thought: str):
    """(label or 'r', first digit, [(op, digit, result)], verdict) of every evaluation."""
    for mark, first, rest, verdict in re.findall(r"([A-Hr])(\d)((?:[+-]\d=\d)+)([.!])", thought):
        yield mark, int(first), re.findall(r"([+-])(\d)=(\d)", rest), verdict


def test_demonstrations_follow_their_grammar():
    for index in range(1500):
        prompt, completion = find.demonstration(CONFIG, index)
        thought, letter = completion.split("</think>")
        one_pass = r"(?:[A-H]\d(?:[+-]\d=\d){2}[.!](?:r\d(?:[+-]\d=\d){2}[.!]){0,2})+"
        assert re.fullmatch(rf"{one_pass}(w{one_pass})?", thought)
        label, believed = "", {}
        for mark, _, facts, verdict in steps_of(thought):
            label = label if mark == "r" else mark
            assert (verdict == "!") == (facts[-1][2] == "0")
            believed.pop(label, None)
            believed[label] = verdict
        hits = [label for label, verdict in believed.items() if verdict == "!"]
        if len(hits) == 1 and "w" not in thought:
            assert letter == hits[0]
        assert letter in values_of(text_of(prompt))


def test_sloppiness_is_as_configured():
    """Rates of wrong facts, first and checked again, and what comes of them."""
    wrong = {"first": Counter(), "again": Counter()}
    right, length = Counter(), Counter()
    confusions = find._confusions(CONFIG.confusable)
    assert len(confusions) == round(0.35 * 98)
    assert all(_chains.apply(*fact) != value for fact, value in confusions.items())
    total = 8000
    for index in range(total):
        prompt, completion = find.demonstration(CONFIG, index)
        thought, letter = completion.split("</think>")
        right[prompt.meta["n"]] += letter == prompt.answer
        right["all"] += letter == prompt.answer
        length["all"] += len(thought)
        for mark, value, facts, _ in steps_of(thought):
            for op, digit, result in facts:
                fact = (value, op, int(digit))
                kind = "confusable" if fact in confusions else "plain"
                counts = wrong["again" if mark == "r" else "first"]
                counts[kind] += 1
                counts[kind + " wrong"] += int(result) != _chains.apply(*fact)
                value = int(result)
    rate = {
        k: {t: c[t + " wrong"] / c[t] for t in ("confusable", "plain")} for k, c in wrong.items()
    }
    slip = 0.02 * 6 / 7
    assert rate["first"]["confusable"] == pytest.approx(0.6 + 0.4 * slip, abs=0.015)
    assert rate["again"]["confusable"] == pytest.approx(0.2 + 0.8 * slip, abs=0.015)
    assert rate["first"]["plain"] == pytest.approx(slip, abs=0.003)
    assert rate["again"]["plain"] == pytest.approx(slip, abs=0.003)
    assert right["all"] / total == pytest.approx(0.755, abs=0.025)
    assert length["all"] / total == pytest.approx(89, abs=4)
    assert right[2] > right[4] > right[6]


def test_settings_change_the_demonstrations():
    clean = find.Config(confusable=0, slip=0, recheck=0, go_on=0, again_unsolved=0, again_solved=0)
    for index in range(200):
        prompt, completion = find.demonstration(clean, index)
        thought, letter = completion.split("</think>")
        assert letter == prompt.answer
        assert thought.endswith("=0!")
        assert len(thought) == 11 * (prompt.meta["hit"] + 1)


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"candidates": (3, 2)}, "candidates"),
        ({"candidates": (2, 9)}, "candidates"),
        ({"ops": (0, 1)}, "ops"),
        ({"recheck": 1.5}, "recheck"),
        ({"candidate": (2, 3)}, "candidate"),
    ],
)
def test_wrong_settings_are_named(settings_, says):
    with pytest.raises(ValueError, match=says):
        find.Config(**settings_)


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'validation'"):
        find.prompt(CONFIG, "validation", 0)


def test_too_few_problems_for_a_split_are_refused_not_searched_for_ever(monkeypatch):
    monkeypatch.setattr(_chains, "held_out", lambda text: False)
    with pytest.raises(ValueError, match=r"candidates \[2, 6\] with ops.* test split"):
        find.prompt(CONFIG, "test", 0)


# tokenizer and base model

MARKERS = ["<pad>", "<eos>", "<think>", "</think>", "<b1>", "<b2>", "<b3>", "<b4>"]
TABLE = {t: i for i, t in enumerate([*MARKERS, *"0123456789+-*=ABCDEFGH.!rwT;?:~"])}


def by_hand(text: str) -> list[int]:
    return [TABLE[token] for token in re.findall(r"<[^>]+>|.", text)]


def tokenizers(tmp_path: Path):
    from transformers import AutoTokenizer

    built = tiny.tokenizer()
    built.save_pretrained(tmp_path)
    yield built
    yield AutoTokenizer.from_pretrained(tmp_path)
    yield AutoTokenizer.from_pretrained(BASE / "find")
    yield AutoTokenizer.from_pretrained(BASE / "fresh")


def test_encoding_is_the_table_and_decoding_its_inverse(tmp_path):
    for tokenizer in tokenizers(tmp_path):
        assert len(tokenizer) == 39
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
        for index in range(30):
            prompt, completion = find.demonstration(CONFIG, index)
            text = f"{text_of(prompt)}<think>{completion}<eos>"
            ids = tokenizer(text).input_ids
            assert ids == by_hand(text)
            assert tokenizer.decode(ids) == text
            # what rewards see: the markers stay, the end of the text goes
            assert tokenizer.decode(ids, skip_special_tokens=True) == text.removesuffix("<eos>")


def test_characters_outside_the_alphabet_are_refused_not_dropped():
    with pytest.raises(Exception, match="UNK"):
        tiny.tokenizer()("x")


def test_the_template_opens_the_thought(tmp_path):
    talk = [{"role": "user", "content": "A6+4-6B3+4+3C0-0+0?"}]
    answer = {"role": "assistant", "content": "A6+4=3-6=4.</think>C"}
    for tokenizer in tokenizers(tmp_path):
        rendered = tokenizer.apply_chat_template(talk, add_generation_prompt=True)["input_ids"]
        assert rendered == by_hand("A6+4-6B3+4+3C0-0+0?<think>")
        whole = tokenizer.apply_chat_template([*talk, answer])["input_ids"]
        assert whole == rendered + by_hand("A6+4=3-6=4.</think>C<eos>")


def test_the_shipped_folders_are_the_builders(tmp_path):
    import json

    built = tiny.build(tmp_path)
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "tokenizer_config.json"):
        for shipped in ("fresh", "find", "zeros", "modes", "told"):
            ours, theirs = (built / name).read_text(), (BASE / shipped / name).read_text()
            if name.endswith(".json"):
                ours, theirs = (
                    {**json.loads(t), "transformers_version": ""} for t in (ours, theirs)
                )
            assert ours == theirs, name


def test_fresh_weights_are_those_of_the_seed(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    state = torch.random.get_rng_state()
    folders = [
        with_weights(BASE / "fresh", tmp_path / f"{i}", seed=s) for i, s in enumerate((7, 7, 8))
    ]
    assert torch.equal(state, torch.random.get_rng_state())
    one, again, other = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in folders)
    assert all(torch.equal(v, again[k]) for k, v in one.items())
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])
    assert one["model.embed_tokens.weight"].std().item() == pytest.approx(0.05, rel=0.05)
    assert sum(v.numel() for k, v in one.items() if k != "lm_head.weight") == 299_520
    assert len(AutoTokenizer.from_pretrained(folders[0])) == 39
    assert not list((BASE / "fresh").glob("*.safetensors"))
    assert with_weights(BASE / "find", tmp_path / "no", seed=0) == BASE / "find"
    assert not (tmp_path / "no").exists()


def test_the_shipped_base_is_sloppy_and_thinks_too_much():
    """Far better than guessing (0.29), far from perfect, and three times as long as needed."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(BASE / "find").eval()
    tokenizer = AutoTokenizer.from_pretrained(BASE / "find", padding_side="left")
    prompts = list(islice((find.prompt(CONFIG, "test", i) for i in range(10_000)), 192))
    texts = [f"{text_of(p)}<think>" for p in prompts]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        out = model.generate(**batch, do_sample=True, top_k=0, max_new_tokens=300)
    torch.set_num_threads(threads)
    outputs = tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    parts = [text.partition("</think>") for text in outputs]
    right = np.mean([part[2] == p.answer for part, p in zip(parts, prompts, strict=True)])
    formed = np.mean([bool(re.fullmatch(r"[A-H]", part[2])) for part in parts])
    thinking = np.mean([len(part[0]) for part in parts])
    assert 0.55 < right < 0.85
    assert formed > 0.97
    assert 75 < thinking < 105
