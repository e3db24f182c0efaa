"""Adapters on disk: resumed bit for bit, small, exported as transformers and PEFT load them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.adapters import (
    KL,
    LORA,
    Weights,
    adapter,
    away_from_zero,
    learner,
    merged,
    updates,
)
from tests.ranks import on_ranks
from tests.tiny import tiny_model, tiny_tokenizer
from trainer.optim import OptimConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    for name in ("tied", "untied"):
        tiny_model(tied=name == "tied").save_pretrained(path / name)
        tiny_tokenizer().save_pretrained(path / name)
    return path


def resumed(rank: int, folder: str, target: str, ranks: int, cases: list[tuple]) -> list[tuple]:
    """Three steps against one, a save, a load into a fresh learner and two more."""
    out = []
    for zero, dtype in cases:
        place = Path(target) / f"{ranks}-{zero}-{dtype}"
        batches = [updates(rank, ranks, KL, seed) for seed in (1, 2, 3)]
        lora = LORA.model_copy(update={"export": "beside"})
        settings: dict[str, Any] = {"loss": KL, "dtype": dtype, "lora": lora, "clip_grad": 1.0}
        with learner(rank, folder, ranks, zero, **settings) as straight:
            straight.step(batches[0])
            straight.save(place / "learner")
            last = [straight.step(batch) for batch in batches[1:]][-1]
            end = merged(straight), adapter(straight)
            straight.export(place / "model")
        with learner(rank, folder, ranks, zero, seed=7, **settings) as after:
            after.load(place / "learner")
            again = [after.step(batch) for batch in batches[1:]][-1]
            ends = merged(after), adapter(after)
        same = all((end[i][n] == w).all() for i in (0, 1) for n, w in ends[i].items())
        same &= all(last[k] == again[k] for k in last if k not in ("seconds", "peak_memory_mb"))
        out.append((zero, dtype, same, *end, place))
    return out


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_resuming_is_exact_and_exports_are_the_model(
    folder: Path, tmp_path: Path, ranks: int
) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cases = [(0, "float32"), (3, "float32"), (1, "bfloat16")]
    if ranks == 2:
        cases = [*itertools.product(range(4), ["float32"]), (3, "bfloat16")]
    base = folder / "untied"
    ids = torch.arange(5, 25)[None]
    for zero, dtype, same, whole, _, place in on_ranks(
        ranks, resumed, str(base), str(tmp_path), ranks, cases, deadline=200
    )[0]:
        where = f"zero={zero} {dtype}"
        assert same, where
        model = AutoModelForCausalLM.from_pretrained(place / "model", dtype="auto")
        assert model.dtype == getattr(torch, dtype)
        loaded = {n: p.detach().float().numpy() for n, p in model.named_parameters()}
        assert loaded.keys() == whole.keys(), where
        assert all((loaded[n] == w).all() for n, w in whole.items()), where
        assert AutoTokenizer.from_pretrained(place / "model").chat_template
        start = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        with torch.no_grad():
            bare, whole_model = start(ids).logits, model(ids).logits
            beside = PeftModel.from_pretrained(start, place / "model" / "adapter")(ids).logits
        assert (beside - whole_model).abs().max() < (1e-4 if dtype == "float32" else 0.5), where
        assert (beside - bare).abs().max() > 1, where
        found = AutoPeftModelForCausalLM.from_pretrained(place / "model" / "adapter")
        assert found.peft_config["default"].base_model_name_or_path == str(base)


def sizes(rank: int, folder: str, target: str) -> list[tuple[int, int, int]]:
    """Per stage: bytes of the learner's checkpoint, of its adapter and of the base model."""
    out = []
    for zero in range(4):
        place = Path(target) / str(zero)
        with learner(rank, folder, 1, zero) as one:
            one.step(updates(rank, 1))
            one.save(place)
            trained = sum(w.nbytes for w in adapter(one).values())
            everything = sum(w.nbytes for w in merged(one).values())
        saved = sum(f.stat().st_size for f in place.rglob("*") if f.is_file())
        out.append((saved, trained, everything))
    return out


def test_a_checkpoint_holds_no_frozen_weights(tmp_path: Path) -> None:
    """Adapter and optimiser: four numbers a trained weight at most, however large the model."""
    tiny_model(hidden_size=256, intermediate_size=512).save_pretrained(tmp_path / "wide")
    found = on_ranks(1, sizes, str(tmp_path / "wide"), str(tmp_path))[0]
    for zero, (saved, trained, everything) in enumerate(found):
        assert everything > 20 * trained, "a model beside which the adapter is small"
        assert 3 * trained < saved < 4 * trained + 2**18 < everything / 2, f"zero={zero}"


def crept(rank: int, folder: str) -> list[tuple[str, int, Weights, Weights]]:
    """Fifty steps, each far below what bfloat16 resolves beside the adapter's weights."""
    patch, out = away_from_zero(), []
    for dtype, zero in (("float32", 0), ("bfloat16", 0), ("bfloat16", 1), ("bfloat16", 3)):
        optim = OptimConfig(lr=4e-5)
        with learner(rank, folder, 1, zero, optim, dtype=dtype, total_steps=50) as one:
            start, update = adapter(one), updates(rank, 1, tokens=10_000)
            for _ in range(50):
                one.step(update)
            out.append((dtype, zero, start, adapter(one)))
    patch.undo()
    return out


def test_small_updates_are_kept_in_bfloat16(folder: Path) -> None:
    """Adapters round with the model; DeepSpeed's float32 copies of them add up."""
    exact, *rounded = on_ranks(1, crept, str(folder / "tied"))[0]
    goal = {n: w - exact[2][n] for n, w in exact[3].items()}
    for dtype, zero, start, end in rounded:
        shares = [float(((end[n] - start[n]) * goal[n]).sum() / (goal[n] ** 2).sum()) for n in goal]
        assert np.mean(shares) == pytest.approx(1, abs=0.15), f"zero={zero} {dtype} {shares}"


def test_runs_follow_each_other(tmp_path: Path) -> None:
    """A whole run with adapters, its reference and both exports; the next begins where it ended."""
    from tests import here
    from trainer.config import load
    from trainer.modelfolder import fetch

    small = ("steps=2", "prompts_per_step=8", "rollouts_per_prompt=4", "evaluation=null")
    ours = ("model.lora={rank: 4, export: beside}", "optim.lr=1e-2", "loss.kl=k2")
    first = load("grpo/find", (*small, *ours, "name=one", f"output={tmp_path}"))
    steps = here.run(first)
    assert steps[0]["ref_kl"] == 0
    assert steps[1]["ref_kl"] > 0
    assert all(step["engine_gap"] < 1e-5 for step in steps)
    end = first.folder / "checkpoints" / "step-000002" / "model"
    start = fetch(first.stages[0].model.path)
    assert _gap(end, start) > 1e-3
    again = (f"model.path={first.folder}", "name=two", f"output={tmp_path}")
    second = load("grpo/find", (*small, *ours, *again))
    assert here.run(second)[0]["ref_kl"] == 0, "the reference is what this run began with"
    assert fetch(str(end / "adapter")) == end


def _gap(one: Path, other: Path) -> float:
    from safetensors.numpy import load_file

    pair = [load_file(folder / "model.safetensors") for folder in (one, other)]
    assert pair[0].keys() == pair[1].keys()
    return max(float(np.abs(pair[0][n] - pair[1][n]).max()) for n in pair[0])
