"""Batches: every trained token once, at its place, with a weight that no packing changes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import made
from trainer.batching import halve, pack, scatter, token_weights
from trainer.losses import LossConfig
from trainer.types import Batch, MicroBatch, TrainSequence

LOSSES = [
    LossConfig(),
    LossConfig(aggregation="seq_mean_token_mean"),
    LossConfig(aggregation="seq_mean_token_sum"),
    LossConfig(aggregation="drgrpo", norm_length=50),
    LossConfig(aggregation="drgrpo_verl", norm_length=50),
]
TREE = [-1, 0, 1, 2, 3, 1, 5, 6, 3, 8, 9]
"""Prompt 0 1, thought 2 3 4, an answer 5 6 7 after no thought, an answer 8 9 10 after 2 3."""


@st.composite
def sequence_lists(draw: st.DrawFn, trees: bool = False) -> list[TrainSequence]:
    """Rows of several groups; some train nothing, some have no advantage, some branch."""
    rows = []
    for row in range(draw(st.integers(1, 12))):
        parents = TREE if trees and draw(st.booleans()) else None
        length = len(TREE) if parents else draw(st.integers(2, 20))
        trained = draw(st.integers(0, length - 1))
        advantage = draw(st.sampled_from([-1.0, 0.0, 0.5]))
        group = draw(st.integers(0, 4))
        made_ = made.sequence(row, length, trained, advantage, parents, group, scored=True)
        rows.append(replace(made_, rollout=row))
    return rows


def micro_batches(batch: Batch) -> list[MicroBatch]:
    return [micro for update in batch.updates for rank in update for micro in rank]


def tokens(batch: Iterable[MicroBatch]) -> dict[int, tuple[float, ...]]:
    """Id of each scored token -> everything that the loss reads of it. Filler is left out."""
    out = {}
    for micro in batch:
        if (micro.rows_B < 0).all():
            continue
        assert micro.old_N is not None
        assert micro.ref_N is not None
        columns = (
            micro.weights_N,
            micro.advantages_N,
            micro.behaviour_N,
            micro.old_N,
            micro.ref_N,
            micro.rows_B[micro.row_N],
            micro.prompts_B[micro.row_N],
        )
        for n, target in enumerate(micro.targets_N.tolist()):
            assert target not in out
            out[target] = tuple(float(column[n]) for column in columns)
    return out


def expected(sequences: Sequence[TrainSequence], loss: LossConfig) -> dict[int, tuple[float, ...]]:
    """The same by loops over rows and tokens, all rows in one optimiser step."""
    trained = [int(s.mask_T.sum()) for s in sequences]
    filled = sum(n > 0 for n in trained)
    out = {}
    for row, s in enumerate(sequences):
        weight = {
            "token_mean": lambda n: 1 / sum(trained),
            "seq_mean_token_mean": lambda n: 1 / filled / n,
            "seq_mean_token_sum": lambda n: 1 / filled,
            "drgrpo": lambda n: 1 / len(trained) / 50,
            "drgrpo_verl": lambda n: 1 / 50,
        }[loss.aggregation]
        for t in np.flatnonzero(s.mask_T):
            assert s.old_T is not None
            assert s.ref_T is not None
            if s.advantages_T[t] or not loss.only_policy:
                values = (s.advantages_T, s.behaviour_T, s.old_T, s.ref_T)
                read = (weight(trained[row]), *(float(v[t]) for v in values), row, s.prompt)
                out[int(s.ids_T[t])] = read
    return out


def layout_is_sound(micro: MicroBatch, sequences: Sequence[TrainSequence]) -> None:
    """Each logit that scores a token sees the token's branch: those tokens, at those positions."""
    B, T = micro.ids_BT.shape
    packed = len(micro.lengths_B) > B
    start_B = np.cumsum(micro.lengths_B) - micro.lengths_B if packed else np.arange(B) * T
    ids, positions = micro.ids_BT.reshape(-1), micro.positions_BT.reshape(-1)
    ends = None if micro.ends_BT is None else micro.ends_BT.reshape(-1)
    for index, target, b in zip(micro.index_N, micro.targets_N, micro.row_N, strict=True):
        row = int(micro.rows_B[b])
        if row < 0:
            continue
        s, t = sequences[row], int(target) % 1000
        branch = []
        while s.parent_T[t] >= 0:
            t = int(s.parent_T[t])
            branch.append(s.ids_T[t])
        seen = np.arange(start_B[b], index + 1)
        if ends is not None:
            seen = seen[index - start_B[b] < ends[seen]]
        assert ids[seen].tolist() == branch[::-1]
        assert positions[seen].tolist() == list(range(len(seen)))


# -- one denominator ------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.aggregation)
@settings(deadline=None, max_examples=40)
@given(
    sequences=sequence_lists(),
    budget=st.integers(1, 100),
    ranks=st.integers(1, 4),
    packed=st.booleans(),
)
def test_no_packing_changes_what_the_loss_reads(
    loss: LossConfig, sequences: list[TrainSequence], budget: int, ranks: int, packed: bool
) -> None:
    batch = pack(sequences, loss, tokens_per_micro_batch=budget, ranks=ranks, packed=packed)
    got, want = tokens(micro_batches(batch)), expected(sequences, loss)
    assert set(got) == set(want)
    for token, values in want.items():
        assert got[token] == pytest.approx(values, rel=1e-6)
    for micro in micro_batches(batch):
        layout_is_sound(micro, sequences)


@settings(deadline=None, max_examples=40)
@given(sequences=sequence_lists(trees=True), budget=st.integers(1, 100), seed=st.integers(0, 99))
def test_neither_order_nor_branches_change_what_the_loss_reads(
    sequences: list[TrainSequence], budget: int, seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(len(sequences))
    shuffled = [sequences[i] for i in order]
    loss = LossConfig(entropy_coef=0.1)
    batch = pack(shuffled, loss, tokens_per_micro_batch=budget)
    got, want = tokens(micro_batches(batch)), expected(sequences, loss)
    assert set(got) == set(want)
    for token, (*values, _, prompt) in want.items():  # the row index is another
        assert got[token][:-2] == pytest.approx(tuple(values), rel=1e-6)
        assert got[token][-1] == prompt
    for micro in micro_batches(batch):
        layout_is_sound(micro, shuffled)


@settings(deadline=None, max_examples=40)
@given(sequences=sequence_lists(), updates=st.integers(1, 4), ranks=st.integers(1, 3))
def test_updates_are_whole_groups_each_with_its_own_denominator(
    sequences: list[TrainSequence], updates: int, ranks: int
) -> None:
    loss = LossConfig(entropy_coef=0.1)
    batch = pack(sequences, loss, tokens_per_micro_batch=30, ranks=ranks, updates=updates)
    groups = list(dict.fromkeys(s.group for s in sequences))
    assert len(batch.updates) == min(updates, len(groups))
    seen: list[int] = []
    for update in batch.updates:
        rows = {int(r) for rank in update for micro in rank for r in micro.rows_B if r >= 0}
        mine = {sequences[r].group for r in rows}
        assert not mine & set(seen)
        seen += mine
        weights = np.concatenate([micro.weights_N for rank in update for micro in rank])
        assert weights.sum() == pytest.approx(1.0 if rows else 0.0, rel=1e-5)


def test_weights_of_two_rows_by_hand() -> None:
    trained_R = np.array([4, 0, 1])
    assert token_weights("token_mean", trained_R)[[0, 2]] == pytest.approx([1 / 5, 1 / 5])
    assert token_weights("seq_mean_token_mean", trained_R)[[0, 2]] == pytest.approx([1 / 8, 1 / 2])
    assert token_weights("seq_mean_token_sum", trained_R)[[0, 2]] == pytest.approx([1 / 2, 1 / 2])
    assert token_weights("drgrpo", trained_R, 10)[[0, 2]] == pytest.approx([1 / 30, 1 / 30])
    assert token_weights("drgrpo_verl", trained_R, 10)[[0, 2]] == pytest.approx([1 / 10, 1 / 10])


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.aggregation)
def test_nothing_to_train_on_is_a_step_of_zero_weight(loss: LossConfig) -> None:
    with np.errstate(all="raise"):
        assert not token_weights(loss.aggregation, np.zeros(3, int), loss.norm_length).any()
    masked = [made.sequence(row, 5, trained=0) for row in range(3)]
    useless = [made.sequence(row, 5, advantage=0.0) for row in range(3)]
    for sequences in (masked, useless):
        batch = pack(sequences, loss, tokens_per_micro_batch=50, ranks=2)
        assert [len(rank) for rank in batch.updates[0]] == [1, 1]
        assert all(not m.weights_N.any() for m in micro_batches(batch))
        assert (batch.rows, batch.tokens) == (0, 0)
    assert pack([], loss, tokens_per_micro_batch=50).updates == ()


def test_rows_without_advantage_are_computed_where_another_term_needs_them() -> None:
    sequences = [made.sequence(0, 5), made.sequence(1, 5, advantage=0.0)]
    for fields in ({"kl": "k2", "kl_coef": 0.1}, {"entropy_coef": 0.1}):
        assert pack(sequences, LossConfig(**fields), tokens_per_micro_batch=50).rows == 2
    assert pack(sequences, LossConfig(), tokens_per_micro_batch=50).rows == 1


def test_scoring_computes_every_row_that_has_tokens() -> None:
    sequences = [made.sequence(0, 5, advantage=0.0), made.sequence(1, 5, trained=0)]
    batch = pack(sequences, None, tokens_per_micro_batch=50)
    assert batch.rows == 1
    assert not micro_batches(batch)[0].weights_N.any()


# -- sizes ----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    sequences=sequence_lists(),
    budget=st.integers(1, 100),
    ranks=st.integers(1, 4),
    packed=st.booleans(),
)
def test_micro_batches_fit_their_budget_and_ranks_keep_step(
    sequences: list[TrainSequence], budget: int, ranks: int, packed: bool
) -> None:
    batch = pack(sequences, None, tokens_per_micro_batch=budget, ranks=ranks, packed=packed)
    again = pack(sequences, None, tokens_per_micro_batch=budget, ranks=ranks, packed=packed)
    assert repr(batch) == repr(again)
    for update in batch.updates:
        assert len(update) == ranks
        assert len({len(rank) for rank in update}) == 1
        costs = [[m.ids_BT.size for m in rank] for rank in update]
        largest = max(max(rank) for rank in costs)
        assert max(map(sum, costs)) - min(map(sum, costs)) <= largest
    for micro in micro_batches(batch):
        assert len(micro.lengths_B) == 1 or micro.ids_BT.size <= budget
    real = [m.lengths_B[m.rows_B >= 0].sum() for m in micro_batches(batch)]
    assert batch.tokens == sum(real)


def test_idle_ranks_get_halves_before_they_get_filler() -> None:
    sequences = [made.sequence(row, 6) for row in range(8)]
    batch = pack(sequences, LossConfig(), tokens_per_micro_batch=1000, ranks=4)
    (update,) = batch.updates
    assert [[len(m.rows_B) for m in rank] for rank in update] == [[2]] * 4
    (update,) = pack(sequences[:3], LossConfig(), tokens_per_micro_batch=1000, ranks=4).updates
    assert sorted(int(rank[0].rows_B.max()) for rank in update) == [-1, 0, 1, 2]


def test_updates_follow_the_order_of_the_groups() -> None:
    sequences = [made.sequence(row, 5, group=group) for row, group in enumerate([3, 1, 3, 2, 1])]
    batch = pack(sequences, LossConfig(), tokens_per_micro_batch=100, updates=3)
    rows = [sorted(int(r) for r in update[0][0].rows_B) for update in batch.updates]
    assert rows == [[0, 2], [1, 4], [3]]


def test_ranks_are_dealt_to_back_and_forth() -> None:
    sequences = [made.sequence(row, 9 - row) for row in range(8)]
    batch = pack(sequences, LossConfig(), tokens_per_micro_batch=1, ranks=2)
    assert [sum(m.ids_BT.size for m in rank) for rank in batch.updates[0]] == [18, 18]


def test_the_dearest_go_first_and_padding_is_little() -> None:
    sequences = [made.sequence(row, 2 + row % 50) for row in range(256)]
    batch = pack(sequences, LossConfig(), tokens_per_micro_batch=512)
    sizes = [m.ids_BT.size for m in micro_batches(batch)]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) < 1.1 * batch.tokens


# -- halves, scores, masks ------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(sequences=sequence_lists(trees=True), packed=st.booleans())
def test_halves_hold_the_same_tokens(sequences: list[TrainSequence], packed: bool) -> None:
    packed = packed and all(s.plain for s in sequences)
    loss = LossConfig(entropy_coef=0.1)
    (whole,) = micro_batches(pack(sequences, loss, tokens_per_micro_batch=10_000, packed=packed))
    if len(whole.lengths_B) < 2:
        with pytest.raises(ValueError, match="does not fit"):
            halve(whole)
        return
    halves = halve(whole)
    assert tokens(halves) == tokens([whole])
    for half in halves:
        layout_is_sound(half, sequences)
        assert half.row_N.min(initial=0) >= 0
        assert half.ids_BT.size < whole.ids_BT.size
        if half.ends_BT is not None:
            assert half.ends_BT.shape == half.ids_BT.shape


@settings(deadline=None, max_examples=40)
@given(sequences=sequence_lists(trees=True), ranks=st.integers(1, 3))
def test_scores_come_back_to_their_tokens(sequences: list[TrainSequence], ranks: int) -> None:
    found = micro_batches(pack(sequences, None, tokens_per_micro_batch=40, ranks=ranks))
    scores = scatter(found, [m.targets_N.astype(np.float32) for m in found], sequences)
    for s, score_T in zip(sequences, scores, strict=True):
        np.testing.assert_array_equal(score_T, np.where(s.mask_T, s.ids_T, np.nan))


def test_packed_rows_with_branches_are_refused() -> None:
    tree = made.sequence(0, len(TREE), parents=TREE)
    with pytest.raises(ValueError, match="set packed: false"):
        pack([tree], LossConfig(), tokens_per_micro_batch=50, packed=True)


# -- importance weights over a whole step ---------------------------------------------------------


@pytest.mark.parametrize("level", ["token", "sequence"])
@settings(deadline=None, max_examples=20)
@given(sequences=sequence_lists(), budget=st.integers(10, 100))
def test_normalised_importance_has_mean_one_over_the_step(
    level: Any, sequences: list[TrainSequence], budget: int
) -> None:
    loss = LossConfig(importance=level, importance_normalize=True, entropy_coef=0.1)
    ones = [replace(s, advantages_T=s.mask_T.astype(np.float32)) for s in sequences]
    got = tokens(micro_batches(pack(ones, loss, tokens_per_micro_batch=budget)))
    if not got:
        return
    weights = np.array([advantage for _, advantage, *_ in got.values()])
    rows = np.array([row for *_, row, _ in got.values()])
    if level == "token":
        assert weights.mean() == pytest.approx(1, rel=1e-5)
        ratios = np.exp(
            [min(old - behaviour, np.log(2)) for _, _, behaviour, old, *_ in got.values()]
        )
        assert weights == pytest.approx(ratios / ratios.mean(), rel=1e-4)
    else:
        per_row = [weights[rows == row] for row in np.unique(rows)]
        assert np.mean([w[0] for w in per_row]) == pytest.approx(1, rel=1e-5)
        assert all(np.ptp(w) < 1e-5 for w in per_row)


def test_the_plan_needs_no_torch() -> None:
    names = "trainer.losses, trainer.batching, trainer.rows, trainer.algorithms.grpo"
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
