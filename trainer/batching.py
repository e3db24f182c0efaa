"""Rows become micro-batches whose token weights are normalised once per optimiser step.

Shape suffixes: T tokens of a row, B rows of a micro-batch, N scored tokens, R rows of an
optimiser step, F fed tokens of all rows one after another. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.layout import Laid, lay
from trainer.losses import Aggregation, LossConfig, importance_weights
from trainer.types import Batch, Floats, Ints, MicroBatch, TrainSequence

Index = NDArray[np.intp]


def pack(
    sequences: Sequence[TrainSequence],
    loss: LossConfig | None,
    *,
    tokens_per_micro_batch: int,
    ranks: int = 1,
    updates: int = 1,
    packed: bool = False,
) -> Batch:
    """Split rows into optimiser steps (by whole groups), ranks and micro-batches.

    Deterministic. What no trained token follows is not computed, nor, where the loss has no other
    term, tokens of advantage 0; all stay in the denominators they belong to.

    Args:
        loss: None only scores: every row with a mask is computed and weights are 0.
        tokens_per_micro_batch: padded tokens; a longer row gets a micro-batch of its own.
        ranks: data-parallel ranks; each gets the same number of micro-batches of like cost.
        updates: optimiser steps; fewer where there are fewer groups, none without rows.
        packed: rows one after another in one [1, T] row with restarting positions, for
            attention kernels that take sequence lengths. Rows with branches are refused.

    Raises:
        ValueError: packed rows with branches.
    """
    steps, rows, tokens = [], 0, 0
    for members_R in _split(np.array([s.group for s in sequences], dtype=np.int64), updates):
        laid, weight_R = _laid([sequences[i] for i in members_R], loss)
        length_R = np.array([len(row) for row in laid])
        plan = _plan(length_R, np.flatnonzero(length_R), tokens_per_micro_batch, packed)
        plan = _even(plan, length_R, ranks, packed)
        built = [
            _micro_batch([laid[r] for r in chosen], members_R[chosen], weight_R[chosen], packed)
            for chosen in plan
        ]
        steps.append(_deal(built, ranks))
        rows += int((length_R > 0).sum())
        tokens += int(length_R.sum())
    return Batch(tuple(steps), rows, tokens)


def without_idle(batch: Batch) -> Batch:
    """The batch less the optimiser steps in which no token has a gradient: taken all the same,
    they would move weights by the optimiser's momentum."""
    idle = [all((m.rows_B < 0).all() for hand in step for m in hand) for step in batch.updates]
    kept = tuple(step for step, nothing in zip(batch.updates, idle, strict=True) if not nothing)
    return replace(batch, updates=kept)


def by_group(
    sequences: Sequence[TrainSequence],
    loss: LossConfig,
    *,
    tokens_per_micro_batch: int,
    ranks: int = 1,
    packed: bool = False,
) -> list[list[list[MicroBatch]]]:
    """Per rank its groups, and of each the micro-batches that hold its rows and no other's.

    All are one optimiser step, whose denominators the weights hold. Groups that have no gradient
    are left out. Ranks get about as many tokens, not as many groups.
    """
    laid, weight_R = _laid(sequences, loss)
    length_R = np.array([len(row) for row in laid], dtype=np.intp)
    groups = _split(np.array([s.group for s in sequences], dtype=np.int64), len(sequences))
    groups = sorted(groups, key=lambda members_R: -int(length_R[members_R].sum()))
    hands: list[list[list[MicroBatch]]] = [[] for _ in range(ranks)]
    load = np.zeros(ranks, dtype=np.int64)
    for members_R in groups:
        computed = members_R[length_R[members_R] > 0]
        plan = _plan(length_R, computed, tokens_per_micro_batch, packed)
        if not plan:
            continue
        rank = int(load.argmin())
        load[rank] += length_R[members_R].sum()
        hands[rank].append(
            [_micro_batch([laid[r] for r in rows], rows, weight_R[rows], packed) for rows in plan]
        )
    return hands


def _laid(
    step: Sequence[TrainSequence], loss: LossConfig | None
) -> tuple[list[Laid], NDArray[np.float64]]:
    """The rows of an optimiser step as they are fed, and the weight of each one's tokens."""
    weight_R = np.zeros(len(step))
    scored = [s.mask_T for s in step]
    if loss is not None:
        weight_R = _weights(step, loss)
        if loss.importance != "none" and loss.importance_normalize:
            step = _with_importance(step, loss)
        if loss.only_policy:
            scored = [_with_advantage(s, loss) for s in step]
    return [lay(s, scored_T) for s, scored_T in zip(step, scored, strict=True)], weight_R


def _weights(step: Sequence[TrainSequence], loss: LossConfig) -> NDArray[np.float64]:
    """Weight of each trained token of each row: denominators count rollouts, however many rows."""
    units: dict[tuple[int, int], int] = {}
    unit_R = [
        units.setdefault((s.group, s.rollout) if s.rollout >= 0 else (-1, r), len(units))
        for r, s in enumerate(step)
    ]
    trained_U = np.bincount(unit_R, [s.mask_T.sum() for s in step]).astype(np.int64)
    return token_weights(loss.aggregation, trained_U, loss.norm_length)[unit_R]


def _with_advantage(s: TrainSequence, loss: LossConfig) -> NDArray[np.bool_]:
    """[T]: trained tokens that have a gradient; all or none where the loss sees whole sequences."""
    any_T = s.mask_T & (s.advantages_T != 0)
    if loss.name == "gspo" or loss.importance == "sequence":
        return s.mask_T & any_T.any()
    return any_T


def token_weights(
    aggregation: Aggregation, trained_R: NDArray[np.integer], norm_length: int | None = None
) -> NDArray[np.float64]:
    """Weight of each trained token of a rollout, so that the loss is a plain sum over tokens.

    token_mean: 1 / all trained tokens. seq_mean_*: mean over the rollouts that train any token, of
    the rollout's mean or sum. drgrpo: 1 / (rollouts x norm_length), all counted (TRL). drgrpo_verl:
    1 / norm_length. With nothing to train on: 0, never a division by 0.

    Args:
        trained_R: trained tokens of each rollout of the optimiser step, all ranks together.
    """
    filled = int(np.count_nonzero(trained_R))
    constant = norm_length or 0
    assert constant or not aggregation.startswith("drgrpo"), "LossConfig requires norm_length"
    divisor_R = {
        "token_mean": trained_R.sum(),
        "seq_mean_token_mean": filled * trained_R,
        "seq_mean_token_sum": filled,
        "drgrpo": len(trained_R) * constant,
        "drgrpo_verl": constant,
    }[aggregation]
    return np.where(trained_R > 0, 1.0 / np.maximum(divisor_R, 1), 0.0)


def halve(micro_batch: MicroBatch) -> tuple[MicroBatch, MicroBatch]:
    """Two micro-batches of half the rows each, the same weights: for a retry in less memory.

    Raises:
        ValueError: it has only one row.
    """
    count = len(micro_batch.lengths_B)
    if count < 2:
        raise ValueError(
            f"one row of {micro_batch.lengths_B.sum()} tokens does not fit into memory; "
            "shorten rollout.max_tokens, turn on gradient checkpointing or use more ranks"
        )
    middle = (count + 1) // 2
    return _slice(micro_batch, 0, middle), _slice(micro_batch, middle, count)


def scatter(
    micro_batches: Iterable[MicroBatch],
    values: Iterable[Floats],
    sequences: Sequence[TrainSequence],
) -> list[Floats]:
    """Undo `pack` for one value per scored token: [T] per sequence, NaN where not scored."""
    out = [np.full(len(s), np.nan, np.float32) for s in sequences]
    for micro_batch, values_N in zip(micro_batches, values, strict=True):
        ends_B = np.cumsum(np.bincount(micro_batch.row_N, minlength=len(micro_batch.rows_B)))
        for row, values_T in zip(micro_batch.rows_B, np.split(values_N, ends_B[:-1]), strict=True):
            if row >= 0:
                out[row][sequences[row].mask_T] = values_T
    return out


def _split(groups_R: NDArray[np.int64], updates: int) -> list[Index]:
    """Row indices of each optimiser step: whole groups in order of appearance, equal shares."""
    if not len(groups_R):
        return []
    _, first, inverse_R = np.unique(groups_R, return_index=True, return_inverse=True)
    order_R = np.argsort(np.argsort(first))[inverse_R]
    shares = np.array_split(np.arange(len(first)), min(updates, len(first)))
    return [np.flatnonzero(np.isin(order_R, share)) for share in shares]


def _with_importance(step: Sequence[TrainSequence], loss: LossConfig) -> list[TrainSequence]:
    """Multiply advantages by importance weights whose mean over the optimiser step is 1.

    Every policy loss is homogeneous in the advantage, so this is the weight of the loss.
    """
    import torch

    assert all(s.old_T is not None for s in step), "annotate: see losses.needs"
    ratios = [(s.old_T - s.behaviour_T)[s.mask_T] for s in step]  # type: ignore[operator]
    counts_R = [len(ratio) for ratio in ratios]
    row_N = torch.from_numpy(np.repeat(np.arange(len(step)), counts_R))
    ratio_N = torch.from_numpy(np.concatenate(ratios).astype(np.float64))
    weights_N = importance_weights(loss, ratio_N, row_N, len(step)).numpy()
    out = []
    for s, weights in zip(step, np.split(weights_N, np.cumsum(counts_R)[:-1]), strict=True):
        advantages_T = s.advantages_T.copy()
        advantages_T[s.mask_T] *= weights
        out.append(replace(s, advantages_T=advantages_T))
    return out


def _cost(length_B: Index, packed: bool) -> int:
    return int(length_B.sum() if packed else len(length_B) * length_B.max())


def _plan(length_R: Index, computed: Index, budget: int, packed: bool) -> list[Index]:
    """Rows by falling length, cut where the next would not fit: little padding, largest first."""
    ordered = computed[np.argsort(-length_R[computed], kind="stable")]
    cuts, start = [], 0
    for end in range(1, len(ordered)):
        if _cost(length_R[ordered[start : end + 1]], packed) > budget:
            cuts.append(end)
            start = end
    return np.split(ordered, cuts) if len(ordered) else []


def _even(plan: list[Index], length_R: Index, ranks: int, packed: bool) -> list[Index]:
    """Halve the dearest micro-batches until every rank can have as many; then dearest first."""

    def cost(chosen: Index) -> int:
        return _cost(length_R[chosen], packed)

    plan = sorted(plan, key=cost, reverse=True)
    while len(plan) % ranks and any(len(chosen) > 1 for chosen in plan):
        dearest = next(i for i, chosen in enumerate(plan) if len(chosen) > 1)
        chosen = plan.pop(dearest)
        plan += [chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]]
        plan.sort(key=cost, reverse=True)
    return plan


def _deal(built: list[MicroBatch], ranks: int) -> tuple[tuple[MicroBatch, ...], ...]:
    """Deal to ranks back and forth, so that each step of all ranks costs alike; fill up."""
    hands: list[list[MicroBatch]] = [[] for _ in range(ranks)]
    example = built[0] if built else None
    for start in range(0, max(len(built), 1), ranks):
        round_ = built[start : start + ranks]
        round_ += [_filler(example)] * (ranks - len(round_))
        turn = 1 if (start // ranks) % 2 == 0 else -1
        for hand, micro_batch in zip(hands[::turn], round_, strict=True):
            hand.append(micro_batch)
    return tuple(tuple(hand) for hand in hands)


def _filler(example: MicroBatch | None) -> MicroBatch:
    """A row of two tokens with weight 0: the forward that keeps a rank in step with the others."""
    zeros_T = np.zeros(2, np.float32)
    row = TrainSequence(
        ids_T=np.zeros(2, np.int32),
        parent_T=np.array([-1, 0], np.int32),
        mask_T=np.array([False, True]),
        advantages_T=zeros_T,
        behaviour_T=np.full(2, np.nan, np.float32),
        versions_T=np.full(2, -1, np.int32),
        prompt=-1,
        group=-1,
        rollout=-1,
        old_T=None if example is None or example.old_N is None else zeros_T,
        ref_T=None if example is None or example.ref_N is None else zeros_T,
    )
    return _micro_batch([lay(row, row.mask_T)], np.array([-1]), np.zeros(1), packed=False)


def _micro_batch(
    laid: Sequence[Laid], rows_B: Index, weight_B: NDArray[np.float64], packed: bool
) -> MicroBatch:
    """Rows padded on the right, or one after another."""
    sequences = [one.row for one in laid]
    length_B = np.array([len(one) for one in laid])
    base_B = _bases(length_B, packed)
    shape = (1, int(length_B.sum())) if packed else (len(laid), int(length_B.max()))
    row_F = np.repeat(np.arange(len(laid)), length_B)
    place_F = base_B[row_F] + np.arange(len(row_F)) - _bases(length_B, packed=True)[row_F]
    row_N = np.repeat(np.arange(len(laid)), [len(one.at_N) for one in laid])
    plain = all(one.plain for one in laid)
    if packed and not plain:
        raise ValueError("packed: rows with branches need an ancestor mask; set packed: false")

    def laid_out(parts: Iterable[NDArray[np.integer]], out: NDArray[np.integer]) -> Ints:
        out.reshape(-1)[place_F] = np.concatenate(list(parts))
        return out.astype(np.int32)

    def scored(parts: Iterable[Floats]) -> Floats:
        chosen = [part[one.scored_T] for part, one in zip(parts, laid, strict=True)]
        return np.concatenate(chosen).astype(np.float32)

    def optional(parts: Sequence[Floats | None], name: str) -> Floats | None:
        given = [part for part in parts if part is not None]
        assert len(given) in (0, len(parts)), f"{name}: {len(given)} of {len(parts)} rows have it"
        return scored(given) if given else None

    padding_BT = np.tile(np.arange(shape[1]) + 1, (shape[0], 1))  # it looks at itself
    return MicroBatch(
        ids_BT=laid_out((one.row.ids_T[one.order_P] for one in laid), np.zeros(shape, int)),
        positions_BT=laid_out((one.depth_P for one in laid), np.zeros(shape, int)),
        lengths_B=length_B.astype(np.int32),
        ends_BT=None if plain else laid_out((one.ends_P for one in laid), padding_BT),
        index_N=(base_B[row_N] + np.concatenate([one.at_N for one in laid])).astype(np.int32),
        targets_N=np.concatenate([one.row.ids_T[one.scored_T] for one in laid]).astype(np.int32),
        row_N=row_N.astype(np.int32),
        weights_N=weight_B[row_N].astype(np.float32),
        advantages_N=scored(s.advantages_T for s in sequences),
        behaviour_N=scored(s.behaviour_T for s in sequences),
        old_N=optional([s.old_T for s in sequences], "old"),
        ref_N=optional([s.ref_T for s in sequences], "ref"),
        prompts_B=np.array([s.prompt for s in sequences], np.int32),
        rows_B=rows_B.astype(np.int32),
    )


def _slice(whole: MicroBatch, first: int, last: int) -> MicroBatch:
    """Rows first..last of a micro-batch, laid out anew."""
    packed = whole.ids_BT.shape[0] != len(whole.lengths_B)
    length_B = whole.lengths_B[first:last]
    bases_B = _bases(whole.lengths_B, packed, whole.ids_BT.shape[1])
    start, width = (bases_B[first], length_B.sum()) if packed else (0, length_B.max())
    lines = slice(None) if packed else slice(first, last)
    cut: dict[str, Any] = {
        "_BT": np.s_[lines, start : start + width],
        "_B": np.s_[first:last],
        "_N": (whole.row_N >= first) & (whole.row_N < last),
    }
    parts: dict[str, Any] = {}
    for field in fields(whole):
        value, shape = getattr(whole, field.name), field.name[field.name.rindex("_") :]
        parts[field.name] = None if value is None else value[cut[shape]]
    row_N = parts["row_N"]
    moved_N = _bases(length_B, packed)[row_N - first] - bases_B[row_N]
    parts["index_N"] = (parts["index_N"] + moved_N).astype(np.int32)
    parts["row_N"] = row_N - np.int32(first)
    return MicroBatch(**parts)


def _bases(length_B: NDArray[np.integer], packed: bool, width: int | None = None) -> Index:
    """Flat position of each row's first token."""
    if packed:
        return np.cumsum(length_B) - length_B
    return np.arange(len(length_B)) * (width or int(length_B.max()))
