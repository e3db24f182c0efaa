"""The embedded engine: continuous batching over a transformers module and a slot cache.

Live rows fill slots 0..N-1 of one KV cache. Each step feeds one token a row, whatever the row's
length; a finished row's slot is taken over by the last live one, so no step computes for the
dead; waiting requests join between steps. State of rows is arrays, so the cost of a step in
Python does not grow with the rows.

Shape suffixes: N live rows, U distinct prompts of a prefill, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samplers import ring
from samplers.engines._forward import additive_mask, last_logits, prefill, sample, score, widen_head
from samplers.engines._requests import Stepped, check_scored, check_weight, whole_prompt
from samplers.engines._rows import STATE, Kept, Row, Table, biased, chunks, started
from samplers.engines._slots import ATTENTION, KV, SlotCache, check_supported
from samplers.engines._trees import Trees, batches
from samplers.engines.base import Config
from samplers.types import Completion, Finish, Floats, Ids, Request

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
_SHOTS = 4
"""Tokens that a fork samples before it needs a slot."""
_PATIENCE = 16
"""Steps that forks wait for others, where they are fewer than two for each live row."""


class TorchEngine(Stepped):
    """See `samplers.engines.base.Engine`. The engine owns `model` and may change its settings.

    Args:
        model: a transformers causal LM, or the folder or hub name of one.
        config: slots, dtype, device and threads.

    Raises:
        ValueError: the model keeps other state than a full KV cache (named).
    """

    def __init__(self, model: Any, config: Config | None = None, trust_remote_code: bool = False):
        self.config = config = config or Config()
        if config.threads:
            torch.set_num_threads(config.threads)
        dtype = getattr(torch, config.dtype)
        if not isinstance(model, torch.nn.Module):
            from transformers import AutoModelForCausalLM

            model = AutoModelForCausalLM.from_pretrained(
                model, dtype=dtype, trust_remote_code=trust_remote_code
            )
        check_supported(model)
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(auto if config.device == "auto" else config.device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        for parameter in model.parameters():  # not buffers: rotary frequencies stay fp32
            parameter.data = parameter.data.to(dtype)
        if dtype != torch.float32:
            widen_head(model)
        self.version, self.receivers, self.ramps, self._asleep = 0, 1, True, False
        self.counters = {"steps": 0, "sampled": 0, "prefilled": 0, "forked": 0}
        text = model.config.get_text_config(decoder=True)
        self.context: int | None = getattr(text, "max_position_embeddings", None)
        self._vocab = int(text.vocab_size)
        if model._supports_attention_backend and text._attn_implementation == "sdpa":
            model.set_attn_implementation(ATTENTION)
        self._cache = SlotCache(text.num_hidden_layers)
        self._reach = 0  # longest that a row in the cache can become
        self._waited = 0  # steps since forks were fed
        self._state = np.zeros(config.slots, STATE)
        self._ids = np.zeros((config.slots, 64), np.int32)
        self._logprobs = np.zeros((config.slots, 64), np.float32)
        self._rows: list[Row] = []
        self._forks: deque[Row] = deque()
        self._fresh: deque[Row] = deque()
        self._done: list[Completion] = []
        self._kept: dict[int, Kept] = {}
        self._handles = 0
        self._stops = Table(torch.zeros(self._vocab, dtype=torch.bool))
        self._biases = Table(torch.zeros(self._vocab, device=self.device))

    @property
    def pending(self) -> int:
        return len(self._rows) + len(self._forks) + len(self._fresh) + len(self._done)

    # Requests

    def add(self, requests: Sequence[Request]) -> None:
        self._awake("add")
        for row in [self._row(request) for request in requests]:  # all are fine, or none enters
            if row.kept is not None:
                row.kept.forks += 1
            self._queue(row).append(row)

    def _queue(self, row: Row) -> deque[Row]:
        return self._fresh if row.kept is None and row.request.given is None else self._forks

    def _row(self, request: Request) -> Row:
        kept = None if request.prefix is None else self._kept.get(request.prefix[0])
        ids = whole_prompt(request, kept.ids if kept else None, self._vocab, self.context)
        return Row(request, ids, kept if kept and kept.kv is not None else None)

    def step(self) -> list[Completion]:
        self._awake("step")
        with torch.inference_mode():
            self._admit()
            if self._rows:
                self._decode()
        done, self._done = self._done, []
        return done

    def abort(self, ids: Iterable[int]) -> None:
        ids = set(ids)
        for queue in (self._forks, self._fresh):
            for row in [r for r in queue if r.request.id in ids]:
                queue.remove(row)
                row.leave()
                self._done.append(self._completion(row, row.ids, row.logprobs, "abort"))
        live = [s for s, row in enumerate(self._rows) if row.request.id in ids]
        with torch.inference_mode():
            self._evict(dict.fromkeys(live, "abort"))

    def release(self, handles: Iterable[int]) -> None:
        for kept in [self._kept.pop(h) for h in handles if h in self._kept]:
            kept.released = True
            if not kept.forks:
                kept.kv = None

    # Admission

    def _admit(self) -> None:
        if self._forks:
            self._branch()
        else:
            self._waited = 0
        waiting = len(self._fresh)
        late = sum(len(row.ids) > 0 for row in self._forks) if waiting else 0  # these go first
        free = self.config.slots - len(self._rows) - late
        # A prefill costs a forward: it waits until an eighth of the slots can share one.
        if not waiting or free < min(waiting, -(-self.config.slots // 8)):
            return
        rows = [self._fresh.popleft() for _ in range(min(waiting, free))]
        start = len(self._rows)
        for row in rows:
            self._enter(row, len(row.context) + len(row.ids))
        self._commit(self._prefill(rows, start), start)

    def _branch(self) -> None:
        """Forks go on from what was kept, and given tokens are scored; few of them need a slot.

        That costs forwards of its own: it waits for company, but not for long.
        """
        self._waited += 1
        if self._waited < _PATIENCE and len(self._forks) < 2 * len(self._rows):
            return
        self._waited, free = 0, self.config.slots - len(self._rows)
        ready: list[Row] = []
        waiting, self._forks = self._forks, deque()
        for row in waiting:
            if row.kept is None:
                self._weigh(row)
            elif len(row.ids) and free < 1:
                self._forks.append(row)
            else:
                free -= len(row.ids) > 0
                ready.append(row)
        for rows in batches(ready, _SHOTS, self._vocab):
            self._grow(rows)

    def _weigh(self, row: Row) -> None:
        """Score given tokens of which no prefix is kept."""
        given = np.asarray(row.request.given, np.int32)
        whole = np.concatenate([row.context, given])
        (scores,) = score(self.model, [whole], row.request.temperature or 1.0, self._vocab)
        self.counters["prefilled"] += len(whole) - 1
        self._done.append(self._completion(row, given, scores[-len(given) :], "stop"))

    def _grow(self, rows: list[Row]) -> None:
        """Feed forks what their prefixes lack, and sample: to their end, if that is near.

        What goes on then takes a slot. Where there is none it waits, and is fed again.
        """
        trees = Trees(self.model, rows, _SHOTS)
        self.counters["forked"] += int(trees.length_N.sum())
        state = np.array([self._begin(row) for row in rows], STATE)
        ended = trees.shoot(state, self._draw, self.config.slots - len(self._rows))
        self.counters["steps"] += trees.fed
        for n, row in enumerate(rows):
            self._settle(row, ended.get(n), trees, n)

    def _settle(self, row: Row, finish: Finish | None, trees: Trees, n: int) -> None:
        """A fork has ended, or gets a slot, or waits for one."""
        length = int(trees.length_N[n])
        if finish is not None:
            keeps = row.request.keep and row.request.given is None
            kept = (trees.cut(n), length) if keeps else None
            self._done.append(self._completion(row, row.ids, row.logprobs, finish, kept))
        elif len(self._rows) < self.config.slots:
            slot = self._enter(row, length)
            self._state[slot]["token"] = row.ids[-1]
            self._cache.restore(slot, trees.cut(n), length)
        else:
            self._forks.append(row)
            return
        row.leave()

    def _begin(self, row: Row) -> tuple[Any, ...]:
        """Its state before anything is in the cache."""
        if not row.spans or row.spans[-1][1] != self.version:
            row.spans.append((len(row.ids), self.version))
        return started(row.request, len(row.ids), self._stops, self._biases)

    def _enter(self, row: Row, length: int) -> int:
        """Give `row` the next slot."""
        slot = len(self._rows)
        self._state[slot] = self._begin(row)
        self._state[slot]["length"] = length
        self._rows.append(row)
        self._ids[slot, : len(row.ids)] = row.ids
        self._logprobs[slot, : len(row.ids)] = row.logprobs
        self._reach = max(self._reach, len(row.context) + row.request.max_tokens)
        self._cache.reserve(slot + 1, length + 1, (self.config.slots, self._reach))
        return slot

    def _prefill(self, rows: list[Row], start: int) -> torch.Tensor:
        """KV of whole contexts into slots from `start`; logits after each [N, V].

        Equal contexts are computed once: a group of rollouts shares its prompt.
        """
        users: dict[bytes, list[int]] = {}
        contexts = [np.concatenate([row.context, row.ids]) for row in rows]
        for i, ids in enumerate(contexts):
            users.setdefault(ids.tobytes(), []).append(i)
        logits_V: list[torch.Tensor] = [torch.empty(0)] * len(rows)
        for group in chunks(list(users.values()), [len(contexts[i[0]]) for i in users.values()]):
            unique = [contexts[members[0]] for members in group]
            logits_UV, cache = prefill(self.model, unique)
            for u, members in enumerate(group):
                slots = [start + i for i in members]
                self._cache.store(slots, cache, u, len(unique[u]))
                for i in members:
                    logits_V[i] = logits_UV[u]
            self.counters["prefilled"] += sum(map(len, unique))
        return torch.stack(logits_V)

    # Decoding

    def _decode(self) -> None:
        state = self._state[: len(self._rows)]
        longest = int(state["length"].max()) + 1
        self._cache.reserve(len(state), longest, (self.config.slots, self._reach))
        lengths_N = torch.from_numpy(state["length"].copy()).to(self.device)
        self._cache.begin(lengths_N, longest)
        hidden = torch.arange(longest, device=self.device) > lengths_N[:, None]
        logits_NV = last_logits(
            self.model,
            input_ids=torch.from_numpy(state["token"].copy()).to(self.device)[:, None],
            position_ids=lengths_N[:, None],
            attention_mask=additive_mask(hidden[:, None, None], self.model.dtype),
            past_key_values=self._cache,
        )
        state["length"] += 1
        self.counters["steps"] += 1
        self._commit(logits_NV, 0)

    def _commit(self, logits_NV: torch.Tensor, start: int) -> None:
        """Sample for the rows from `start` on."""
        state = self._state[start : len(self._rows)]
        tokens, logprobs, stopped = self._draw(logits_NV, state)
        counts, slots = state["count"], np.arange(start, start + len(state))
        if counts.max() >= self._ids.shape[1]:
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)], 1)
            self._logprobs = np.concatenate([self._logprobs, np.zeros_like(self._logprobs)], 1)
        self._ids[slots, counts], self._logprobs[slots, counts] = tokens, logprobs
        state["token"] = tokens
        state["count"] += 1
        last = np.flatnonzero(stopped | (state["count"] >= state["limit"])).tolist()
        self._evict({start + i: "stop" if stopped[i] else "length" for i in last})

    def _draw(self, logits_NV: torch.Tensor, state: NDArray[Any]) -> tuple[Ints, Floats, Bools]:
        """Next tokens, their logprobs, and which of them stop their row."""
        logits_NV = biased(logits_NV, state, self._biases)
        position_N = state["count"] + state["drawn"]
        heat, cuts = (state["temperature"], state["seed"]), (state["top_p"], state["top_k"])
        tokens, logprobs = sample(logits_NV, *heat, position_N, *cuts)
        self.counters["sampled"] += len(tokens)
        return tokens, logprobs, self._stops.values.numpy()[state["stops"], tokens]

    def _evict(self, ended: dict[int, Finish]) -> None:
        """Complete rows and let the last live rows take over their slots."""
        if not ended:
            return
        for slot, finish in ended.items():
            row, count = self._rows[slot], int(self._state["count"][slot])
            ids, logprobs = self._ids[slot, :count].copy(), self._logprobs[slot, :count].copy()
            kept = None
            if row.request.keep and finish != "abort":
                length = int(self._state["length"][slot])
                kept = self._cache.save(slot, length), length
            self._done.append(self._completion(row, ids, logprobs, finish, kept))
        live = len(self._rows) - len(ended)
        holes = sorted(slot for slot in ended if slot < live)
        movers = [slot for slot in range(live, len(self._rows)) if slot not in ended]
        if holes:
            self._cache.move(movers, holes, int(self._state["length"][movers].max()))
            for array in (self._state, self._ids, self._logprobs):
                array[holes] = array[movers]
            for hole, mover in zip(holes, movers, strict=True):
                self._rows[hole] = self._rows[mover]
        del self._rows[live:]

    def _completion(
        self,
        row: Row,
        ids: Ids,
        logprobs: Floats,
        finish: Finish,
        kept: tuple[list[KV], int] | None = None,
    ) -> Completion:
        """`kept`: KV to keep under a handle, and of how many tokens it is."""
        handle = None
        if kept is not None:
            handle, self._handles = self._handles, self._handles + 1
            self._kept[handle] = Kept(np.concatenate([row.context, ids]), *kept)
        spans = tuple(row.spans) or ((0, self.version),)
        return Completion(row.request.id, ids, logprobs, finish, spans, handle)

    # Scoring and weights

    @torch.inference_mode()
    def score(self, ids: Sequence[Ids], temperature: float = 1.0) -> list[Floats]:
        self._awake("score")
        check_scored(ids, self._vocab, self.context)
        return score(self.model, ids, temperature or 1.0, self._vocab)

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Any]], version: int | None = None) -> None:
        self._awake("load weights")
        state = self.model.state_dict()
        shapes = {name: tensor.shape for name, tensor in state.items()}
        for name, value in weights:
            check_weight(name, value.shape, shapes)
            # Arrays of Ray's object store are read-only, which torch would share with a warning.
            tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
            state[name].copy_(tensor)
        self.version = self.version + 1 if version is None else version
        self._forget()

    def receive(self, source: ring.Source, version: int) -> None:
        with ring.read(source) as weights:
            self.load_weights(weights, version)

    def sleep(self) -> None:
        self._forget()
        self._asleep = True
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def wake(self) -> None:
        self._asleep = False

    def _awake(self, what: str) -> None:
        if self._asleep:
            raise ValueError(f"engine: cannot {what} while asleep; call wake() first")

    def _forget(self) -> None:
        """Drop all KV: live rows and waiting forks go back to the queue, in order, as prompts."""
        for kept in self._kept.values():
            kept.kv = None
        again: list[Row] = []
        for slot, row in enumerate(self._rows):
            count = int(self._state["count"][slot])
            row.ids = self._ids[slot, :count].copy()
            row.logprobs = self._logprobs[slot, :count].copy()
            row.spans = [s for s in row.spans if s[0] < count]
            again.append(row)
        for row in self._forks:
            row.leave()
            again.append(row)
        self._forks.clear()
        for row in reversed(again):
            self._queue(row).appendleft(row)
        self._rows.clear()
        self._cache.clear()
        self._reach = 0
