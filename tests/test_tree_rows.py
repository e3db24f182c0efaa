"""Tree rows and rows of single answers: the same gradients as every branch alone, in full.

Shape suffixes: T tokens of a row, P of them that the model is fed.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.types import Answer, Group, Plan, Rollout, Tokens
from tests import made
from tests.ranks import on_ranks
from tests.test_brpo import scored_group
from tests.test_learner_accumulation import reference
from tests.tiny import tiny_model, tiny_tokenizer
from trainer.algorithms import brpo
from trainer.batching import pack
from trainer.layout import lay
from trainer.learner import Learner, LearnerConfig
from trainer.losses import LossConfig
from trainer.optim import OptimConfig
from trainer.rows import branches
from trainer.types import TrainSequence

NORM: dict[str, Any] = {"norm_length": 30}
LOSSES = {
    "token_mean": LossConfig(),
    "seq_mean_token_mean": LossConfig(aggregation="seq_mean_token_mean"),
    "seq_mean_token_sum": LossConfig(aggregation="seq_mean_token_sum"),
    "drgrpo": LossConfig(aggregation="drgrpo", **NORM),
    "drgrpo_verl": LossConfig(aggregation="drgrpo_verl", **NORM),
    "with other terms": LossConfig(kl="k2", kl_coef=0.1, entropy_coef=0.01),
    "corrected": LossConfig(importance="token"),
}


# -- what is fed ----------------------------------------------------------------------------------


@st.composite
def trees(draw: st.DrawFn) -> TrainSequence:
    """Any tree over three ids, so that branches often begin alike."""
    length = draw(st.integers(2, 14))
    parents = [-1, *(draw(st.integers(0, t - 1)) for t in range(1, length))]
    row = made.sequence(0, length, parents=parents)
    ids = np.array([draw(st.integers(0, 2)) for _ in range(length)], np.int32)
    mask_T = np.array([False, *(draw(st.booleans()) for _ in range(length - 1))])
    return replace(row, ids_T=ids, mask_T=mask_T)


def branch(row: TrainSequence, t: int) -> tuple[int, ...]:
    """Ids that token t follows, first to last."""
    path = []
    while row.parent_T[t] >= 0:
        t = int(row.parent_T[t])
        path.append(int(row.ids_T[t]))
    return tuple(path[::-1])


@settings(deadline=None, max_examples=200)
@given(row=trees())
def test_what_is_fed_is_what_scored_tokens_follow_once(row: TrainSequence) -> None:
    laid = lay(row, row.mask_T)
    wanted = [branch(row, int(t)) for t in np.flatnonzero(row.mask_T)]
    prefixes = {path[:n] for path in wanted for n in range(1, len(path) + 1)}
    assert len(laid) == len(prefixes)
    for place, path in zip(laid.at_N.tolist(), wanted, strict=True):
        seen = [u for u in range(place + 1) if place < laid.ends_P[u]]
        assert tuple(row.ids_T[laid.order_P[seen]].tolist()) == path
        assert laid.depth_P[seen].tolist() == list(range(len(path)))


@settings(deadline=None, max_examples=100)
@given(row=trees())
def test_branches_train_each_token_once(row: TrainSequence) -> None:
    tree = [(branch(row, int(t)), int(row.ids_T[t])) for t in np.flatnonzero(row.mask_T)]
    rows = branches(row)
    found = [
        (tuple(one.ids_T[:t].tolist()), int(one.ids_T[t]))
        for one in rows
        for t in np.flatnonzero(one.mask_T)
    ]
    assert sorted(found) == sorted(tree)
    assert all(one.plain for one in rows)
    assert all(one.mask_T.any() for one in rows[1:])


def nested(index: int, length: int, cuts: tuple[int, ...], per_cut: int, ids: Any) -> Rollout:
    """As the rollout code makes one: forced ids 5 6 after a cut, 5 after the end; two sampled."""
    answers = []
    for cut in cuts:
        forced = [5, 6] if cut < length else [5]
        runs = [_run([*forced, *ids(2)], len(forced)) for _ in range(per_cut)]
        answers.append([Answer(min(cut, length), run, "x") for run in runs])
    plan = Plan(64, think=cuts[-1], cuts=cuts, answers_per_cut=per_cut)
    rollout = made.rollout(index, (), answers, prompt_ids=ids(4))
    return replace(rollout, thought=_run(ids(length), 0), plan=plan)


def _run(ids: Any, forced: int) -> Tokens:
    logprobs_T = np.full(len(ids), -1.5, np.float32)
    logprobs_T[:forced] = np.nan
    return replace(made.run(ids, forced), logprobs_T=logprobs_T)


def test_a_cut_costs_its_forced_text_once_and_its_answers_without_their_end() -> None:
    alike = nested(0, 4, (2, 4), 2, lambda n: np.arange(10, 10 + n))
    count = itertools.count(10)
    unlike = nested(0, 4, (2, 4), 2, lambda n: [next(count) for _ in range(n)])
    assert _fed(alike, summary="none") == 4 + 3  # the thought's last token is only a target
    assert _fed(alike) == 4 + 4 + (2 + 1) + (1 + 1)
    assert _fed(unlike) == 4 + 4 + (2 + 2) + (1 + 2)


def _fed(rollout: Rollout, **settings: Any) -> int:
    shape = (1, len(rollout.answers), len(rollout.answers[0]))
    (row,) = brpo.sequences([scored_group([rollout], np.ones(shape))], brpo.Config(**settings))
    return len(lay(row, row.mask_T))


# -- gradients ------------------------------------------------------------------------------------


def groups() -> list[Group]:
    """Two groups of three rollouts: unlike cuts, early ends, unknown answers, one not kept."""
    rng = np.random.default_rng(0)

    def ids(n: int) -> np.ndarray:
        return rng.integers(0, 38, n)

    out = []
    for serial in range(2):
        rollouts = [
            nested(g, length, cuts, 2, ids)
            for g, length, cuts in ((0, 9, (2, 5, 9)), (1, 4, (3, 6, 9)), (2, 8, (1, 4, 8)))
        ]
        scores = rng.integers(0, 2, (3, 3, 2)).astype(float)
        scores[0, 1, 0] = np.nan
        group = scored_group(rollouts, scores, serial)
        out.append(replace(group, kept_G=np.array([True, True, serial == 0])))
    return out


def rows_of(form: Any) -> list[TrainSequence]:
    return brpo.sequences(groups(), brpo.Config(rows=form, answer_weight=0.5))


def moved(rank: int, folder: str, cases: list[tuple]) -> list[dict[str, np.ndarray]]:
    """Per case how the weights moved: one large step of plain descent, or several smaller ones."""
    out = []
    for form, name, attention, tokens, updates, ranks in cases:
        loss, scale = LOSSES[name], 100.0 if updates == 1 else 1.0
        descent = OptimConfig(lr=scale * 1e9, eps=1e9)  # Adam with so large an eps
        learner = Learner(
            folder, LearnerConfig(clip_grad=0, ranks=ranks), descent, loss,
            total_steps=9, rank=rank, port=0, attention=attention,
        )  # fmt: skip
        before = dict(pair for bucket in learner.buckets() for pair in bucket)
        packing: dict[str, Any] = {"tokens_per_micro_batch": tokens, "ranks": ranks}
        batch = pack(rows_of(form), loss, updates=updates, **packing)
        learner.step(batch.share(rank), epochs=updates)
        after = dict(pair for bucket in learner.buckets() for pair in bucket)
        out.append({n: ((before[n] - after[n]) / scale).numpy() for n in before})
        learner.close()
    return out


def largest_error(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> float:
    """Relative to the largest move. In float32 each way is off by 1e-6 from one in float64."""
    scale = max(float(np.abs(move).max()) for move in two.values())
    return max(float(np.abs(one[n] - two[n]).max()) for n in two) / scale


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model(tied=True).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


WAYS = [
    *((name, "sdpa", 1) for name in LOSSES),
    ("token_mean", "eager", 1),
    ("token_mean", "sdpa", 2),  # needs old logprobs
    ("drgrpo", "eager", 2),
]


def both_forms(folder: Path, name: str, attention: str, updates: int, ranks: int) -> None:
    ways = (("tree", 10_000), ("multi", 70))
    cases = [(form, name, attention, tokens, updates, ranks) for form, tokens in ways]
    tree, multi = on_ranks(ranks, moved, str(folder), cases)[0]
    assert largest_error(tree, multi) < (5e-6 if updates == 1 else 1e-5)


@pytest.mark.parametrize(("name", "attention", "updates"), WAYS)
def test_both_forms_give_the_same_gradients(
    folder: Path, name: str, attention: str, updates: int
) -> None:
    both_forms(folder, name, attention, updates, ranks=1)


@pytest.mark.slow
def test_both_forms_give_the_same_gradients_on_two_ranks(folder: Path) -> None:
    for way in WAYS:
        both_forms(folder, *way, ranks=2)


@pytest.mark.parametrize("name", [name for name in LOSSES if "_" in name or name == "drgrpo"])
def test_trees_give_the_gradient_of_each_branch_alone(folder: Path, name: str) -> None:
    """Denominators by loops over rollouts, gradients by autograd over one branch at a time."""
    trees, loss = rows_of("tree"), LOSSES[name]
    counts = [int(tree.mask_T.sum()) for tree in trees]
    weights = {
        "token_mean": [1 / sum(counts) for _ in counts],
        "seq_mean_token_mean": [1 / len(counts) / count for count in counts],
        "seq_mean_token_sum": [1 / len(counts) for _ in counts],
        "drgrpo": [1 / len(counts) / 30 for _ in counts],
        "drgrpo_verl": [1 / 30 for _ in counts],
    }[loss.aggregation]
    scaled = [  # the reference divides by all trained tokens
        replace(tree, advantages_T=tree.advantages_T * weight * sum(counts))
        for tree, weight in zip(trees, weights, strict=True)
    ]
    (found,) = on_ranks(1, moved, str(folder), [("tree", name, "sdpa", 10_000, 1, 1)])[0]
    assert largest_error(found, reference(folder, scaled)) < 5e-6
