"""The first trap: gradients must not depend on how an optimiser step is cut up.

DeepSpeed's ZeRO 1 and 2 silently keep only the last micro-batch's gradient unless told where the
boundary is. Here every stage, one and two ranks, many cuts and orders are compared with the
gradient that plain autograd takes of one sequence after another.

Shape suffixes: T tokens of a row, N scored tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from tests.ranks import on_ranks
from tests.tiny import tiny_model, tiny_tokenizer
from trainer.batching import pack
from trainer.learner import Learner, LearnerConfig
from trainer.losses import LossConfig
from trainer.optim import OptimConfig
from trainer.types import TrainSequence

SCALE = 100.0
# Adam with an eps far above the gradient is plain descent: the update is -SCALE x gradient.
DESCENT = OptimConfig(lr=SCALE * 1e9, eps=1e9)


def sequences(seed: int = 0) -> list[TrainSequence]:
    """Six plain rows and one with branches, of unlike lengths."""
    rng = np.random.default_rng(seed)
    rows = []
    for group, length in enumerate((9, 31, 17, 5, 24, 12, 20)):
        parent_T = np.arange(length, dtype=np.int32) - 1
        if group == 6:  # two answers: one after 8 tokens, one after 14
            parent_T[[14, 17]] = (8, 13)
        mask_T = np.arange(length) >= 3
        rows.append(
            TrainSequence(
                ids_T=rng.integers(0, 38, length, dtype=np.int32),
                parent_T=parent_T,
                mask_T=mask_T,
                advantages_T=rng.normal(size=length).astype(np.float32),
                behaviour_T=np.where(mask_T, -1.5, np.nan).astype(np.float32),
                versions_T=np.zeros(length, np.int32),
                prompt=group,
                group=group,
                rollout=0,
            )
        )
    return rows


def reference(folder: Path, rows: list[TrainSequence]) -> dict[str, np.ndarray]:
    """Gradient of sum(-advantage x logprob) / tokens: each branch alone, in full, by autograd."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = sum(int(row.mask_T.sum()) for row in rows)
    for row in rows:
        left_T = row.mask_T.copy()
        for leaf in range(len(row) - 1, -1, -1):  # the path to a leaf covers all its ancestors
            path, at = [], leaf
            while at >= 0:
                path.append(at)
                at = int(row.parent_T[at])
            path = path[::-1]
            if not left_T[leaf]:
                continue
            ids_1T = torch.tensor(row.ids_T[path]).long()[None]
            logp_TV = model(ids_1T[:, :-1]).logits[0].log_softmax(-1)
            logp_T = logp_TV.gather(1, ids_1T[0, 1:, None])[:, 0]
            weight_T = torch.tensor(np.where(left_T, row.advantages_T, 0.0)[path[1:]] / tokens)
            (-weight_T * logp_T).sum().backward()
            left_T[path] = False
    return {n: p.grad.numpy() for n, p in model.named_parameters()}


def moves(rank: int, folder: str, ranks: int, cuts: list[int]) -> list[tuple]:
    """Per ZeRO stage and cut: how weights moved over -SCALE, gradient norm, micro-batches."""
    loss = LossConfig(name="ce")
    out = []
    for zero, tokens in itertools.product(range(4), cuts):
        config = LearnerConfig(zero=zero, ranks=ranks, clip_grad=0.0)
        learner = Learner(folder, config, DESCENT, loss, total_steps=9, rank=rank, port=0)
        before = dict(pair for bucket in learner.buckets(4000) for pair in bucket)
        rows = sequences()[:: -1 if tokens % 2 else 1]
        batch = pack(rows, loss, tokens_per_micro_batch=tokens, ranks=ranks)
        metrics = learner.step([batch.updates[0][rank]])
        after = dict(pair for bucket in learner.buckets(4000) for pair in bucket)
        moved = {n: ((before[n] - after[n]) / SCALE).numpy() for n in before}
        out.append((zero, moved, metrics["grad_norm"], len(batch.updates[0][rank])))
        learner.close()
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model(tied=True).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, np.ndarray]:
    return reference(folder, sequences())


@pytest.mark.parametrize("ranks", [1, 2])
def test_any_cut_gives_the_gradient_of_the_whole(
    folder: Path, expected: dict[str, np.ndarray], ranks: int
) -> None:
    cuts = [10_000, 40, 31]  # one micro-batch a rank; some; more, and the rows in reverse
    results = on_ranks(ranks, moves, str(folder), ranks, cuts, deadline=200)
    norm = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in expected.values()))
    largest = max(float(np.abs(g).max()) for g in expected.values())
    for zero, moved, measured, count in results[0]:
        where = f"zero={zero} ranks={ranks} micro-batches={count}"
        assert measured == pytest.approx(norm, rel=1e-6), where
        assert moved.keys() == expected.keys(), where
        for name, gradient in expected.items():
            error = float(np.abs(moved[name] - gradient).max()) / largest
            assert error < 1e-6, f"{where}: {name} is off by {error:.2g}"
    counts = [count for *_, count in results[0]]
    assert len(counts) == 12
    assert min(counts) < 3 <= max(counts)


COPIES = 64


def in_parts(rank: int, folder: str, ranks: int) -> list[tuple]:
    """Per ZeRO stage in bfloat16: how weights move for one micro-batch, and for 64ths of it.

    A power of two: each part's gradient is exactly a 64th, and only adding up can round.
    """
    loss, out = LossConfig(name="ce"), []
    for zero in (1, 2, 3):
        moved, norms = [], []
        for copies in (1, COPIES):
            config = LearnerConfig(zero=zero, ranks=ranks, clip_grad=0.0)
            learner = Learner(
                folder, config, DESCENT, loss,
                total_steps=9, rank=rank, port=0, dtype="bfloat16",
            )  # fmt: skip
            batch = pack(sequences()[:6], loss, tokens_per_micro_batch=10_000, ranks=ranks)
            (micro,) = batch.updates[0][rank]
            part = dataclasses.replace(micro, weights_N=micro.weights_N / copies)
            norms.append(learner.step([[part] * copies])["grad_norm"])
            moved.append({n: w.float().numpy() for b in learner.buckets() for n, w in b})
            learner.close()
        out.append((zero, moved, norms))
    return out


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_many_micro_batches_in_bfloat16_add_up_without_rounding(folder: Path, ranks: int) -> None:
    for zero, (whole, parts), norms in on_ranks(ranks, in_parts, str(folder), ranks)[0]:
        where = f"zero={zero} ranks={ranks}"
        assert norms[1] == pytest.approx(norms[0], rel=1e-6), where
        for name, weight in whole.items():
            # at most one rounding of the weight: to 8 significant bits
            np.testing.assert_allclose(parts[name], weight, rtol=2**-8, err_msg=where)
