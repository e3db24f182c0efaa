"""Forks of kept prefixes that go on side by side, without a copy of the prefix for each.

One forward feeds all forks of all trees: a fork sees the first tokens of its trunk and what it has
been fed itself, by the mask. Short answers begin and end here; a long one moves on to a slot.

Shape suffixes: B trees, N forks, L longest trunk, W columns of the cache (trunks on the left, then
what was fed), R columns fed so far, T tokens fed to a tree at once (padded), M tokens fed to all,
K groups fed the same, V vocabulary, H key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import Cache, CacheLayerMixin

from samplers.engines._forward import FORWARD_LOGITS, additive_mask
from samplers.engines._rows import FORWARD_TOKENS, Row, chunks
from samplers.engines._slots import KV
from samplers.types import Finish, Floats, Ids

Ints = NDArray[np.int64]
Draw = Callable[[torch.Tensor, NDArray[Any]], tuple[Ints, Floats, NDArray[np.bool_]]]


class _TreeLayer(CacheLayerMixin):
    """Keys [B, H, W, D] and values of one layer; `width` columns are in use."""

    is_sliding = False
    is_initialized = True

    def __init__(self, trunks: Sequence[KV], longest: int, room: int) -> None:
        self.width = longest
        whole = []
        for of in zip(*trunks, strict=True):  # keys, then values
            heads, _, size = of[0].shape
            new = of[0].new_zeros(len(trunks), heads, longest + room, size)
            for row, one in zip(new, of, strict=True):
                row[:, : min(one.shape[1], longest)] = one[:, :longest]
            whole.append(new)
        self.keys, self.values = whole

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        pass

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> KV:
        assert self.keys is not None
        assert self.values is not None
        start, self.width = self.width, self.width + key_states.shape[2]
        self.keys[:, :, start : self.width] = key_states
        self.values[:, :, start : self.width] = value_states
        return self.keys[:, :, : self.width], self.values[:, :, : self.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.width + query_length, 0

    def get_seq_length(self) -> int:
        return self.width

    def get_max_length(self) -> int:
        return -1


def batches(rows: Sequence[Row], rounds: int, vocab: int) -> Iterator[list[Row]]:
    """Forks that one forward can feed, those of one prefix together."""
    trunks: dict[int, list[Row]] = {}
    for row in rows:
        trunks.setdefault(id(row.kept), []).append(row)
    trees = list(trunks.values())
    for batch in chunks(trees, [_columns(tree, rounds, vocab) for tree in trees]):
        yield [row for tree in batch for row in tree]


def _columns(rows: Sequence[Row], rounds: int, vocab: int) -> int:
    """What a tree counts in a forward, in tokens; its logits may be more of a burden than these."""
    assert rows[0].kept is not None
    fed = sum(len(row.context) - _seen(row) + len(_begun(row)) + rounds for row in rows)
    return max(rows[0].kept.length + fed, fed * vocab * FORWARD_TOKENS // FORWARD_LOGITS)


def _seen(row: Row) -> int:
    """Tokens of its prefix whose KV a fork takes over: all but the last token of its context."""
    assert row.kept is not None
    assert row.request.prefix is not None
    return min(row.request.prefix[1], row.kept.length, len(row.context) - 1)


def _begun(row: Row) -> Ids:
    """What comes after its context before anything is sampled."""
    given = row.request.given
    return row.ids if given is None else given[:-1]


class Trees:
    """Forks of kept prefixes; those of one prefix (a tree) stand beside each other.

    Args:
        rounds: at most so many tokens are sampled of each.
    """

    def __init__(self, model: Any, rows: Sequence[Row], rounds: int) -> None:
        self.model, self._rows, self._rounds, self.fed = model, rows, rounds, 0
        kept = list({id(row.kept): row.kept for row in rows}.values())
        numbers = {id(trunk): tree for tree, trunk in enumerate(kept)}
        self._trees = len(kept)
        self._tree_N = np.array([numbers[id(row.kept)] for row in rows])
        self._seen_N = np.array([_seen(row) for row in rows])
        self._tails = [
            np.concatenate([row.context[seen:], _begun(row)])
            for row, seen in zip(rows, self._seen_N.tolist(), strict=True)
        ]
        self.length_N = self._seen_N.copy()
        """Tokens of each fork whose KV is here."""
        self._longest = self._width = int(self._seen_N.max())
        # Each feeding is as wide as its widest tree, which need not be the same one.
        fed_B = np.bincount(self._tree_N, [len(tail) for tail in self._tails])
        most = int(fed_B.max()) + rounds * int(np.bincount(self._tree_N).max())
        kv = [trunk.kv for trunk in kept if trunk is not None and trunk.kv is not None]
        self._layers = [_TreeLayer(of, self._longest, most) for of in zip(*kv, strict=True)]
        self._cache = Cache(layers=list(self._layers))
        self._sees_NR = np.zeros((len(rows), most), bool)  # which fed columns are its own

    def shoot(self, state: NDArray[Any], draw: Draw, slots: int) -> dict[int, Finish]:
        """Sample of every row into it, until all have ended or `rounds` are over.

        It is over earlier where few go on and there are `slots` for them. Given tokens are scored.

        Args:
            state: STATE of each row; its counts go on.
            draw: (logits [n, V], state [n]) -> tokens, logprobs and which of them stop.

        Returns: rows that ended, and how.
        """
        first_N, rows = state["count"].copy(), len(self._rows)
        ids_NS = np.zeros((rows, self._rounds), np.int32)
        logprobs_NS = np.zeros((rows, self._rounds), np.float32)
        live, logits_NV = self._begin()
        ended: dict[int, Finish] = dict.fromkeys(
            np.setdiff1d(np.arange(rows), live).tolist(), "stop"
        )
        for shot in range(self._rounds if len(live) else 0):
            if shot:
                last = ids_NS[live, shot - 1][:, None]
                logits_NV = self._feed(list(live[:, None]), list(last), [1] * len(live))
            tokens, logprobs, stopped = draw(logits_NV, state[live])
            ids_NS[live, shot], logprobs_NS[live, shot] = tokens, logprobs
            state["count"][live] += 1
            over = stopped | (state["count"] >= state["limit"])[live]
            for n, stop in zip(live[over].tolist(), stopped[over].tolist(), strict=True):
                ended[n] = "stop" if stop else "length"
            live = live[~over]
            if 4 * len(live) < rows and len(live) <= slots:
                break
        sizes = (state["count"] - first_N).tolist()
        for row, size, ids, logprobs in zip(self._rows, sizes, ids_NS, logprobs_NS, strict=True):
            if size:
                row.ids = np.concatenate([row.ids, ids[:size]])
                row.logprobs = np.concatenate([row.logprobs, logprobs[:size]])
        return ended

    def _begin(self) -> tuple[Ints, torch.Tensor]:
        """Feed what the prefixes lack, once where it is the same; score what is given.

        Returns: the rows to which nothing is given, and the logits [n, V] after each.
        """
        groups: dict[tuple[int, int, bytes], list[int]] = {}
        heads = zip(self._tree_N.tolist(), self._seen_N.tolist(), self._tails, strict=True)
        for n, (tree, seen, tail) in enumerate(heads):
            groups.setdefault((tree, seen, tail.tobytes()), []).append(n)
        members = list(groups.values())
        size_N = [1 if r.request.given is None else len(r.request.given) for r in self._rows]
        wanted = [max(size_N[n] for n in group) for group in members]
        logits_WV = self._feed(members, [self._tails[group[0]] for group in members], wanted)
        last_N = np.zeros(len(self._rows), np.int64)
        for group, end in zip(members, np.cumsum(wanted).tolist(), strict=True):
            last_N[group] = end - 1
        given = [n for n, row in enumerate(self._rows) if row.request.given is not None]
        if given:
            wide = [np.arange(last_N[n] + 1 - size_N[n], last_N[n] + 1) for n in given]
            _weigh([self._rows[n] for n in given], logits_WV[np.concatenate(wide)])
        free = np.setdiff1d(np.arange(len(self._rows)), given)
        return free, logits_WV[last_N[free]]

    def _feed(self, groups: Sequence[Any], ids: Sequence[Any], wanted: Sequence[int]) -> Any:
        """Feed ids once to all forks of a group, which have had the same so far.

        Args:
            groups: forks of one tree each, in the order of the trees.
            wanted: after how many of its tokens, the last ones, the logits of a group are wanted.

        Returns: these logits [sum of wanted, V], group by group.
        """
        size_K, wanted_K = np.array([len(tokens) for tokens in ids]), np.asarray(wanted)
        reader_K = np.array([group[0] for group in groups])
        tree_K, used = self._tree_N[reader_K], self._width - self._longest
        before_K = np.cumsum(size_K) - size_K
        first_K = before_K - before_K[np.searchsorted(tree_K, tree_K)]
        item_M, offset_M = _ragged(size_K)
        row_M, column_M = tree_K[item_M], first_K[item_M] + offset_M

        fork_P = np.array([fork for group in groups for fork in group])
        item_P = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        pair_X, offset_X = _ragged(size_K[item_P])
        self._sees_NR[fork_P[pair_X], used + first_K[item_P][pair_X] + offset_X] = True

        ids_BT = np.zeros((self._trees, int(column_M.max()) + 1), np.int64)
        positions_BT, reader_BT = np.zeros_like(ids_BT), np.zeros_like(ids_BT)
        ids_BT[row_M, column_M] = np.concatenate(ids)
        positions_BT[row_M, column_M] = self.length_N[reader_K][item_M] + offset_M
        reader_BT[row_M, column_M] = reader_K[item_M]
        self.length_N[fork_P] += size_K[item_P]
        logits_BTV = self._forward(ids_BT, positions_BT, reader_BT)
        wanted_M = offset_M >= (size_K - wanted_K)[item_M]
        return logits_BTV[row_M[wanted_M], column_M[wanted_M]]

    def _forward(self, ids_BT: Ints, positions_BT: Ints, reader_BT: Ints) -> torch.Tensor:
        device, (_, size) = self.model.device, ids_BT.shape
        used = self._width - self._longest
        own_BTR = self._sees_NR[reader_BT, : used + size]
        own_BTR[..., used:] &= np.tri(size, dtype=bool)
        trunk_BTL = np.arange(self._longest) < self._seen_N[reader_BT][..., None]
        seen = torch.from_numpy(np.concatenate([trunk_BTL, own_BTR], -1)).to(device)
        logits_BTV = self.model(
            input_ids=torch.from_numpy(ids_BT).to(device),
            position_ids=torch.from_numpy(positions_BT).to(device),
            attention_mask=additive_mask(~seen[:, None], self.model.dtype),
            past_key_values=self._cache,
            use_cache=True,
        ).logits
        self._width += size
        self.fed += 1
        return logits_BTV

    def cut(self, fork: int) -> list[KV]:
        """A copy of a fork's KV, its part of the prefix included."""
        fed = self._longest + np.flatnonzero(self._sees_NR[fork])
        columns = torch.from_numpy(np.concatenate([np.arange(self._seen_N[fork]), fed]))
        columns, tree = columns.to(self.model.device), self._tree_N[fork]
        return [
            (layer.keys[tree].index_select(1, columns), layer.values[tree].index_select(1, columns))
            for layer in self._layers
        ]


def _weigh(rows: Sequence[Row], logits_MV: torch.Tensor) -> None:
    """Give rows their given tokens and the logprobs of these, from the logits before each."""
    given = [np.asarray(row.request.given, np.int32) for row in rows]
    sizes = [len(ids) for ids in given]
    divisor_M = np.repeat([row.request.temperature or 1.0 for row in rows], sizes)
    device = logits_MV.device
    divisor_M1 = torch.from_numpy(divisor_M.astype(np.float32)).to(device)[:, None]
    ids_M1 = torch.from_numpy(np.concatenate(given).astype(np.int64)).to(device)[:, None]
    logprobs_MV = (logits_MV.float() / divisor_M1).log_softmax(-1)
    logprobs_M = logprobs_MV.gather(-1, ids_M1)[:, 0].cpu().numpy()
    pieces = np.split(logprobs_M, np.cumsum(sizes)[:-1])
    for row, ids, logprobs in zip(rows, given, pieces, strict=True):
        row.ids, row.logprobs = ids, logprobs


def _ragged(sizes_K: Ints) -> tuple[Ints, Ints]:
    """Of runs laid end to end: to which each element belongs, and which one of it it is."""
    run_M = np.repeat(np.arange(len(sizes_K)), sizes_K)
    return run_M, np.arange(len(run_M)) - np.repeat(np.cumsum(sizes_K) - sizes_K, sizes_K)
