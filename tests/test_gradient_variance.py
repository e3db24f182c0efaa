"""The variance of a step's gradient: against each group's gradient by autograd, in float64.

Shape suffixes: K groups, W weights.
"""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.ranks import on_ranks
from tests.test_learner import Bench, weights
from tests.test_learner_accumulation import sequences
from tests.tiny import tiny_model, tiny_tokenizer
from trainer import measure
from trainer.batching import by_group
from trainer.learner import LearnerConfig
from trainer.lora import LoraConfig
from trainer.losses import LossConfig
from trainer.measure import MeasureConfig
from trainer.rows import branches
from trainer.types import TrainSequence

CLOSE = 1e-4
CE = LossConfig(name="ce")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    KL = LossConfig(kl="k2", kl_coef=0.1, aggregation="drgrpo", norm_length=30, entropy_coef=0.01)
GSPO = LossConfig(name="gspo")


def rows(count: int = 12, groups: int = 4) -> list[TrainSequence]:
    """Rows of two rollouts and more a group; the last group has no advantage: its part is 0."""
    both = [*sequences(0), *sequences(1)][:count]
    out = []
    for r, row in enumerate(both):
        group = r % groups
        advantages_T = np.float32(0) if group == groups - 1 else row.advantages_T
        mask = row.mask_T
        out.append(
            dataclasses.replace(
                row, group=group, rollout=r, advantages_T=np.where(mask, advantages_T, 0)
            )
        )  # fmt: skip
    return out


def brute(folder: Path, given: list[TrainSequence]) -> tuple[float, float]:
    """(variance, squared norm) for loss `ce` with token_mean: all gradients of groups in full."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    tokens = sum(int(row.mask_T.sum()) for row in given)
    parts = []
    for group in sorted({row.group for row in given}):
        total = torch.zeros((), dtype=torch.float64)
        for one in (one for row in given if row.group == group for one in branches(row)):
            ids_1T = torch.tensor(one.ids_T).long()[None]
            logp_TV = model(ids_1T[:, :-1]).logits[0].log_softmax(-1)
            logp_T = logp_TV.gather(1, ids_1T[0, 1:, None])[:, 0]
            weight_T = torch.tensor(np.where(one.mask_T, one.advantages_T, 0)[1:]) / tokens
            total = total - (weight_T * logp_T).sum()
        grads = torch.autograd.grad(total, list(model.parameters()))
        parts.append(torch.cat([g.flatten() for g in grads]).numpy())
    parts_KW = np.stack(parts)
    count = len(parts)
    away_KW = parts_KW - parts_KW.mean(0)
    variance = count / (count - 1) * float((away_KW**2).sum())
    assert variance == pytest.approx(count * float(parts_KW.var(0, ddof=1).sum()))
    return variance, float((parts_KW.sum(0) ** 2).sum())


def _figures(
    learner: Any, rank: int, ranks: int, given: list, loss: LossConfig, tokens: int, packed: bool
) -> dict[str, float]:
    """As the stage asks for them; this rank's share goes to this rank's learner."""
    stage = SimpleNamespace(
        loss=loss,
        tokens_per_micro_batch=tokens,
        learner=SimpleNamespace(ranks=ranks),
        model=SimpleNamespace(attention="flash_attention_2" if packed else "sdpa"),
    )
    world = SimpleNamespace(variance=lambda shares: learner.variance(shares[rank]))
    return measure.variance(world, given, stage)  # type: ignore[arg-type]


def _measure(rank: int, folder: str, ranks: int) -> dict[str, dict[str, float]]:
    bench, out = Bench(rank, folder, ranks), {}
    plain = [row for row in rows() if row.plain]
    ways: dict[str, tuple[dict[str, Any], list, int, bool, LossConfig]] = {
        f"ce, zero={zero}": ({"zero": zero}, rows(), 40, False, CE) for zero in range(3)
    }
    ways |= {
        "ce, one micro-batch a group": ({}, rows(), 1000, False, CE),
        "ce, one row each": ({}, rows(), 1, False, CE),
        "ce, reversed": ({}, rows()[::-1], 40, False, CE),
        "ce, checkpointing": ({"gradient_checkpointing": True}, rows(), 40, False, CE),
        "plain": ({}, plain, 40, False, CE),
        "plain, packed": ({}, plain, 1000, True, CE),
        "kl": ({}, rows(), 40, False, KL),
        "kl, whole": ({"zero": 2}, rows(), 1000, False, KL),
        "gspo": ({}, rows(), 40, False, GSPO),
        "gspo, whole": ({"zero": 1}, rows(), 1000, False, GSPO),
        "lora": ({"lora": LoraConfig(rank=4)}, rows(), 40, False, CE),
        "lora, whole": ({"lora": LoraConfig(rank=4), "zero": 2}, rows(), 1000, False, CE),
        "alike": ({}, _alike(rows(8, 2)[0]), 40, False, CE),
        "one group": ({}, [row for row in rows() if row.group == 0], 40, False, CE),
    }
    for name, (settings, given, tokens, packed, loss) in ways.items():
        learner = bench.learner(loss=loss, **settings)
        out[name] = _figures(learner, rank, ranks, given, loss, tokens, packed)
        learner.close()
    return out


def _alike(row: TrainSequence) -> list[TrainSequence]:
    return [dataclasses.replace(row, group=k, rollout=k) for k in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model(tied=True).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def by_ranks(folder: Path) -> dict[int, dict[str, dict[str, float]]]:
    out = {}
    for ranks in (1, 2):
        found = on_ranks(ranks, _measure, str(folder), ranks, deadline=280)
        assert all(found[0] == other for other in found), "the same on every rank"
        out[ranks] = found[0]
    return out


@pytest.mark.parametrize("ranks", [1, 2])
def test_it_is_that_of_the_groups_gradients(
    folder: Path, by_ranks: dict[int, Any], ranks: int
) -> None:
    for kind, given in {"ce": rows(), "plain": [row for row in rows() if row.plain]}.items():
        variance, norm2 = brute(folder, given)
        cases = {n: f for n, f in by_ranks[ranks].items() if n.split(",")[0] == kind}
        assert len(cases) > 1
        for name, figures in cases.items():
            assert figures["gradient/variance"] == pytest.approx(variance, rel=CLOSE), name
            assert figures["gradient/norm2"] == pytest.approx(norm2, rel=CLOSE), name
            snr = max(0.0, norm2 - variance) / variance
            assert figures["gradient/snr"] == pytest.approx(snr, rel=CLOSE, abs=CLOSE), name


def test_micro_batches_and_ranks_do_not_matter(by_ranks: dict[int, Any]) -> None:
    for kind in ("kl", "gspo", "lora"):
        reference = by_ranks[1][kind]
        assert reference["gradient/variance"] > 0
        for figures in by_ranks.values():
            for name in (kind, f"{kind}, whole"):
                assert figures[name] == pytest.approx(reference, rel=CLOSE, abs=1e-9), name


def test_the_norm_is_that_of_the_step(folder: Path, by_ranks: dict[int, Any]) -> None:
    """`grad_norm` of an optimiser step on the same rows."""
    norm = on_ranks(1, _grad_norm, str(folder))[0]
    assert by_ranks[1]["ce, zero=0"]["gradient/norm2"] == pytest.approx(norm**2, rel=CLOSE)


def _grad_norm(rank: int, folder: str) -> float:
    from trainer.batching import pack

    learner = Bench(rank, folder, 1).learner()
    batch = pack(rows(), CE, tokens_per_micro_batch=40)
    norm = learner.step(batch.share(0))["grad_norm"]
    learner.close()
    return float(norm)


def test_groups_that_are_alike_have_no_variance(by_ranks: dict[int, Any]) -> None:
    for figures in by_ranks.values():
        alike = figures["alike"]
        assert alike["gradient/norm2"] > 1e-3
        assert alike["gradient/variance"] < 1e-5 * alike["gradient/norm2"]
        assert figures["one group"] == {}


def _undisturbed(rank: int, folder: str, ranks: int) -> list[tuple[str, bool]]:
    bench, out = Bench(rank, folder, ranks), []
    for zero in range(3):
        for dtype in ("float32", "bfloat16"):
            ends, clean = [], True
            for measured in (False, True):
                learner = bench.learner(zero, dtype=dtype)
                for seed in (1, 2):
                    if measured:
                        figures = _figures(learner, rank, ranks, rows(), CE, 40, False)
                        clean &= figures["gradient/variance"] > 0
                        clean &= all(p.grad is None for p in learner.model.parameters())
                    learner.step(bench.updates(seed=seed))
                ends.append(weights(learner))
                learner.close()
            clean &= all((ends[0][n] == w).all() for n, w in ends[1].items())
            out.append((f"zero={zero} {dtype}", clean))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_training_goes_on_as_if_nothing_had_been_measured(folder: Path, ranks: int) -> None:
    for way, clean in on_ranks(ranks, _undisturbed, str(folder), ranks, deadline=280)[0]:
        assert clean, way


def test_groups_are_dealt_whole_and_once() -> None:
    given = rows(14, 7)
    for ranks in (1, 2, 3):
        hands = by_group(given, CE, tokens_per_micro_batch=20, ranks=ranks)
        found = []
        for hand in hands:
            for group in hand:
                members = sorted(int(r) for micro in group for r in micro.rows_B)
                assert len({given[r].group for r in members}) == 1
                found += members
        assert sorted(found) == [r for r, row in enumerate(given) if row.group != 6]
        tokens = [sum(int(m.lengths_B.sum()) for g in hand for m in g) for hand in hands]
        assert max(tokens) - min(tokens) <= 60, "a group's tokens at most"


def test_zero_3_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gradient_variance=5 with learner\.zero=3: .*; set"):
        MeasureConfig(gradient_variance=5).suits(LearnerConfig(zero=3))
    MeasureConfig(gradient_variance=5).suits(LearnerConfig(zero=2))
    MeasureConfig().suits(LearnerConfig(zero=3))
