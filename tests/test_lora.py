"""LoRA: the adapter's gradient, what engines are sent, the reference, what may go wrong in a step.

Everything is held against full training, which knows no adapters: the gradient of merged weights,
a copy of the start as reference.
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.adapters import (
    CE,
    KL,
    Weights,
    adapter,
    away_from_zero,
    frozen,
    learner,
    merged,
    updates,
)
from tests.ranks import on_ranks
from tests.test_learner_accumulation import DESCENT, SCALE, reference, sequences
from tests.tiny import tiny_model, tiny_tokenizer
from trainer.batching import pack
from trainer.optim import OptimConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    for name, model in {
        "tied": tiny_model(tied=True),
        "untied": tiny_model(tied=False),
        "gpt2": tiny_model("gpt2"),
    }.items():
        model.save_pretrained(path / name)
        tiny_tokenizer().save_pretrained(path / name)
    return path


# gradients


def descended(rank: int, folder: str, ranks: int, cases: list[tuple]) -> list[tuple]:
    """Per case: the adapter before, how it moved over -SCALE, the norm, what stayed."""
    patch, out = away_from_zero(), []
    try:
        for zero, tokens, settings in cases:
            with learner(rank, folder, ranks, zero, DESCENT, **settings) as one:
                start, before = adapter(one), frozen(one)
                whole = merged(one)
                update = updates(rank, ranks, tokens=tokens)[0]
                norm = one.step([update])["grad_norm"]
                moved = {n: (start[n] - w) / SCALE for n, w in adapter(one).items()}
                same = before == frozen(one)
                out.append(((zero, tokens, settings), start, whole, moved, norm, same))
    finally:
        patch.undo()
    return out


@pytest.mark.parametrize(("ranks", "arch"), [(1, "tied"), (2, "tied"), (1, "gpt2")])
def test_gradients_are_those_of_the_merged_weights(
    folder: Path, tmp_path: Path, ranks: int, arch: str
) -> None:
    """d/dB = scale dW A^T and d/dA = scale B^T dW, for any cut, ranks and ZeRO stage."""
    import torch
    from transformers import AutoModelForCausalLM

    cuts = [40, 31] if arch == "tied" else [40]
    cases: list[tuple] = [(zero, cut, {}) for zero in range(4) for cut in cuts]
    cases += [(zero, 40, {"gradient_checkpointing": True}) for zero in (0, 3)]
    found = on_ranks(ranks, descended, str(folder / arch), ranks, cases, deadline=200)[0]
    _, start, whole, *_ = found[0]
    model = AutoModelForCausalLM.from_pretrained(folder / arch)
    saved = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert whole.keys() == saved.keys()
    model.load_state_dict({n: torch.tensor(w) for n, w in whole.items()}, strict=False)
    model.save_pretrained(tmp_path)
    dense = reference(tmp_path, sequences())
    expected, adapted = {}, 0
    for name in (n for n in start if "lora_A" in n):
        a, b = start[name], start[name.replace("lora_A", "lora_B")]
        own = name.replace("lora_A.default.", "")
        flip = np.transpose if arch == "gpt2" else np.asarray
        np.testing.assert_allclose(
            whole[own], saved[own].numpy() + flip(1.5 * b @ a), rtol=1e-5, atol=1e-6
        )
        gradient = flip(dense[own])
        expected[name] = 1.5 * b.T @ gradient
        expected[name.replace("lora_A", "lora_B")] = 1.5 * gradient @ a.T
        adapted += 1
    assert adapted == (14 if arch == "tied" else 8)
    norm = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in expected.values()))
    largest = max(float(np.abs(g).max()) for g in expected.values())
    for case, first, _, moved, measured, same in found:
        assert same, f"{case}: frozen weights moved"
        assert all((first[n] == w).all() for n, w in start.items()), f"{case}: another start"
        assert measured == pytest.approx(norm, rel=1e-5), case
        for name, gradient in expected.items():
            error = float(np.abs(moved[name] - gradient).max()) / largest
            assert error < 3e-6, f"{case}: {name} is off by {error:.2g}"


def test_the_start_depends_on_the_seed_alone(folder: Path) -> None:
    starts = [
        [
            on_ranks(ranks, _start, str(folder / "tied"), ranks, zero, seed)[0]
            for ranks, zero in ((1, 0), (2, 1), (2, 3))
        ]
        for seed in (0, 1)
    ]
    for first, *others in starts:
        assert all((w == 0).all() for n, w in first.items() if "lora_B" in n)
        for other in others:
            assert all((first[n] == w).all() for n, w in other.items())
    assert all((starts[0][0][n] != w).all() for n, w in starts[1][0].items() if "lora_A" in n)
    drawn = [w for n, w in starts[0][0].items() if "lora_A" in n]
    assert len({w.tobytes() for w in drawn}) == len(drawn), "every module draws its own"
    for a in drawn:  # uniform within 1 / sqrt(inputs)
        bound = a.shape[1] ** -0.5
        assert 0.9 * bound < np.abs(a).max() <= bound


def _start(rank: int, folder: str, ranks: int, zero: int, seed: int) -> Weights:
    with learner(rank, folder, ranks, zero, seed=seed) as one:
        return adapter(one)


# weight sync


def followed(rank: int, folder: str, kinds: list[tuple[str, str]]) -> list[tuple]:
    """Per stage, head and dtype: gaps before and after each load, and what the learner kept."""
    from samplers.engines._torch import TorchEngine
    from samplers.engines.base import Config
    from tests.test_sync import gap
    from trainer import weights

    rows = sequences()[:6]
    batch = pack(rows, CE, tokens_per_micro_batch=40, ranks=2)
    mine = batch.updates[0][rank]
    out = []
    for zero, (name, dtype) in itertools.product(range(4), kinds):
        model = f"{folder}/{name}"
        with learner(rank, model, 2, zero, OptimConfig(lr=0.05), dtype=dtype) as one:
            engine = TorchEngine(model, Config(device="cpu", dtype=dtype)) if rank == 0 else None
            gaps = [gap(one, engine, rows, mine)]
            for step in range(2):
                one.step([mine])
                gaps.append(gap(one, engine, rows, mine))
                before = frozen(one), adapter(one)
                pairs = [pair for bucket in one.buckets(4096) for pair in bucket]
                kept = before[0] == frozen(one)
                kept &= all((before[1][n] == w).all() for n, w in adapter(one).items())
                if engine is not None:
                    engine.load_weights(pairs, version=step + 1)
                gaps.append(gap(one, engine, rows, mine))
            told = [(n, d, tuple(s)) for n, d, s in weights.sizes(one.model)]
            given = [(n, t.dtype, tuple(t.shape)) for n, t in pairs]
            out.append((zero, name, dtype, gaps, kept, rank or told == given))
    return out


def test_engines_equal_the_learner_after_every_load(folder: Path) -> None:
    kinds = [("tied", "float32"), ("untied", "float32"), ("untied", "bfloat16")]
    found = on_ranks(2, followed, str(folder), kinds, deadline=240)
    for rank, cases in enumerate(found):
        assert len(cases) == 12
        for zero, name, dtype, gaps, kept, told in cases:
            where = (rank, zero, name, dtype, gaps)
            assert kept, f"{where}: a sync changed the learner"
            assert told, f"{where}: sizes are not those of the buckets"
            if rank:
                continue
            bound = 1e-5 if dtype == "float32" else 0.1
            start, stale, fresh, stale_again, fresh_again = gaps
            assert min(stale, stale_again) > 5 * bound, where
            assert max(start, fresh, fresh_again) < bound, where


# reference


def referred(rank: int, folder: str, ranks: int) -> list[tuple]:
    """Per stage: metrics of the first and second step, scores of both kinds of reference."""
    from trainer.logprobs import Scorer
    from trainer.reference import Reference

    out = []
    for zero in range(4):
        with learner(rank, folder, ranks, zero, loss=KL) as one:
            batches = [updates(rank, ranks, KL, seed) for seed in (0, 0, 1)]
            policy = one.score(batches[0][0])
            start = one.score(batches[0][0], "reference")
            metrics = [one.step(batch) for batch in batches]
            again = one.score(batches[0][0], "reference")
            assert one._reference is None, "no second model is loaded"
            copy = Reference(folder, one.device, 1.0, 2**25, dtype="float32", attention="sdpa")
            assert isinstance(copy.scorer, Scorer)
            one._reference, kept, one.lora = copy, one.lora, None
            full, one.lora = one.score(batches[0][0], "reference"), kept
            scores = [[s for s, _ in x] for x in (policy, start, again, full)]
            out.append((zero, metrics, scores))
    return out


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_reference_is_the_policy_without_its_adapter(folder: Path, ranks: int) -> None:
    """No second copy; KL is 0, exactly, until the first step, and then it is not."""
    for zero, metrics, scores in on_ranks(ranks, referred, str(folder / "tied"), ranks)[0]:
        policy, start, again, full = scores
        assert metrics[0]["ref_kl"] == 0.0, zero
        assert metrics[1]["ref_kl"] > 1e-4, zero
        for one, two, three, four in zip(policy, start, again, full, strict=True):
            assert (one == two).all(), zero
            assert (two == three).all(), zero
            np.testing.assert_allclose(two, four, rtol=1e-6, atol=1e-6)


# what may go wrong in a step


def troubled(rank: int, folder: str, ranks: int) -> dict[str, Any]:
    """A NaN on the last rank, and a clipped step, at every stage; rows that do not fit at one."""
    from tests.test_learner import _starve

    out: dict[str, Any] = {"bad": [], "clipped": [], "memory": []}
    patch = away_from_zero()
    for zero in range(4):
        with learner(rank, folder, ranks, zero) as one:
            bad, start = updates(rank, ranks)[0], adapter(one)
            if rank == ranks - 1:
                nan = bad[0].advantages_N * np.nan
                bad[0] = dataclasses.replace(bad[0], advantages_N=nan)
            skipped = one.step([bad])["skipped_steps"]
            same = all((start[n] == w).all() for n, w in adapter(one).items())
            out["bad"].append((zero, skipped, same))
        with learner(rank, folder, ranks, zero, DESCENT, clip_grad=0.01) as one:
            start = adapter(one)
            one.step(updates(rank, ranks))
            moves = [(start[n] - w) / SCALE for n, w in adapter(one).items()]
            length = np.sqrt(sum((m.astype(np.float64) ** 2).sum() for m in moves))
            out["clipped"].append((zero, float(length)))
    for where in ("", "forward") if ranks == 1 else ():
        with learner(rank, folder, 1, 0, DESCENT) as one:
            _starve(one, where, most=2)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                one.step(updates(rank, 1, tokens=125))
            out["memory"].append(adapter(one))
    patch.undo()
    return out


@pytest.mark.parametrize("ranks", [1, 2])
def test_bad_steps_clipping_and_halving_are_as_in_full_training(folder: Path, ranks: int) -> None:
    found = on_ranks(ranks, troubled, str(folder / "tied"), ranks)[0]
    for zero, skipped, same in found["bad"]:
        assert (skipped, same) == (1, True), f"zero={zero}"
    for zero, length in found["clipped"]:
        assert length == pytest.approx(0.01, rel=1e-4), f"zero={zero}"
    for halved in found["memory"][1:]:
        for name, weight in found["memory"][0].items():
            np.testing.assert_allclose(halved[name], weight, atol=2e-4 * np.abs(weight).max())
