"""The KV cache of the torch engine: one slot a row, and the attention that reads it.

Shape suffixes: S slots, N live rows, T new tokens a row, H key/value heads, Q query heads, C
capacity, L longest live row, P padded prompt length, D head size, V value head size, I slots of
one copy.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "laconic_slots"
KV = tuple[torch.Tensor, torch.Tensor]
_FEW = 64
"""New tokens a row from which on the matrix of all scores is not worth its memory."""


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of a few new tokens per row, without repeating KV heads; anything else is sdpa's.

    query [N, Q, T, D], key [N, H, L, D], value [N, H, L, V], additive mask [N, 1, T, L];
    returns [N, T, Q, V]. The query heads of one KV head become rows of one matrix product.
    """
    plain = attention_mask is not None and attention_mask.is_floating_point()
    few = query.shape[2] == 1 or query.shape[2] < min(_FEW, key.shape[2])
    if not (few and plain) or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    assert attention_mask is not None
    (rows, heads, new, size), (groups, longest) = query.shape, key.shape[1:3]
    query = query * (size**-0.5 if scaling is None else scaling)
    query = query.reshape(rows * groups, heads // groups * new, size)
    scores = torch.bmm(query, key.flatten(0, 1).transpose(1, 2)).view(rows, heads, new, longest)
    scores += attention_mask.view(rows, 1, new, longest)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    out = torch.bmm(weights.view(rows * groups, -1, longest), value.flatten(0, 1))
    return out.view(rows, heads, new, -1).transpose(1, 2), None


AttentionInterface.register(ATTENTION, slot_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class _SlotLayer(CacheLayerMixin):
    """Keys [S, H, C, D] and values [S, H, C, V] of one layer."""

    is_sliding = False

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        size = (self.cache.slots, key_states.shape[1], self.cache.capacity)
        # Zeros: a mask hides numbers, but a NaN of fresh memory would show through it.
        self.keys = key_states.new_zeros(*size, key_states.shape[-1])
        self.values = value_states.new_zeros(*size, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> KV:
        """Write one token a row at its own length; return what the rows may look at."""
        assert self.keys is not None
        assert self.values is not None
        index = self.cache.index(self.keys.shape[1])
        for states, new in ((self.keys, key_states), (self.values, value_states)):
            states.view(-1, states.shape[-1]).index_copy_(0, index, new.flatten(0, 2))
        rows, longest = self.cache.live, self.cache.longest
        return self.keys[:rows, :, :longest], self.values[:rows, :, :longest]

    def resize(self, slots: int, capacity: int) -> None:
        if not self.is_initialized:
            return
        assert self.keys is not None
        assert self.values is not None
        for name, old in (("keys", self.keys), ("values", self.values)):
            s, h, c, d = old.shape
            new = old.new_zeros(slots, h, capacity, d)
            new[:s, :, :c] = old
            setattr(self, name, new)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.longest, 0

    def get_seq_length(self) -> int:
        return self.cache.longest - 1

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):
    """Rows of different lengths side by side; a row's KV is its slot's first `length` entries."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[_SlotLayer(self) for _ in range(layers)])
        self.slots = self.capacity = self.live = self.longest = 0
        self._flat: dict[int, torch.Tensor] = {}

    def reserve(self, slots: int, capacity: int, most: tuple[int, int]) -> None:
        """Room for that many rows of that length; grows by half at least, never shrinks.

        `most` are the slots and the capacity that can come to be needed: no growth goes beyond.
        """
        if slots <= self.slots and capacity <= self.capacity:
            return
        if slots > self.slots:
            slots = max(slots, min(self.slots * 3 // 2, most[0]))
        if capacity > self.capacity:
            spare = -(-max(capacity, self.capacity * 3 // 2) // 32) * 32
            capacity = max(capacity, min(spare, most[1]))
        self.slots, self.capacity = max(slots, self.slots), max(capacity, self.capacity)
        for layer in self.layers:
            layer.resize(self.slots, self.capacity)

    def clear(self) -> None:
        """Give the memory back."""
        self.slots = self.capacity = 0
        self.layers = [_SlotLayer(self) for _ in range(len(self))]

    def begin(self, lengths_N: torch.Tensor, longest: int) -> None:
        """Declare a step: rows 0..N-1 write at their lengths and see at most `longest` tokens."""
        self.live, self.longest = len(lengths_N), longest
        self._lengths_N = lengths_N
        self._flat.clear()

    def index(self, heads: int) -> torch.Tensor:
        """Flat positions [N * H] that the step writes; equal for all layers with H heads."""
        if heads not in self._flat:
            step = torch.arange(self.live * heads, device=self._lengths_N.device) * self.capacity
            self._flat[heads] = step + self._lengths_N.repeat_interleave(heads)
        return self._flat[heads]

    def store(self, slots_I: Sequence[int], source: Cache, row: int, length: int) -> None:
        """Copy the last `length` positions of one row of a left-padded prefill into slots."""
        for layer, new in zip(self.layers, source.layers, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(new.keys, new.values)
            layer.keys[slots_I, :, :length] = new.keys[row, :, -length:]
            layer.values[slots_I, :, :length] = new.values[row, :, -length:]

    def move(self, source_I: Sequence[int], target_I: Sequence[int], longest: int) -> None:
        """Compaction: slots of finished rows take over the last live ones."""
        for layer in self.layers:
            layer.keys[target_I, :, :longest] = layer.keys[source_I, :, :longest]
            layer.values[target_I, :, :longest] = layer.values[source_I, :, :longest]

    def save(self, slot: int, length: int) -> list[KV]:
        """A copy of a row's KV, ([H, length, D], [H, length, V]) per layer."""
        return [
            (layer.keys[slot, :, :length].clone(), layer.values[slot, :, :length].clone())
            for layer in self.layers
        ]

    def restore(self, slot: int, saved: list[KV], length: int) -> None:
        """The first `length` tokens of a saved row become a slot's."""
        for layer, (keys, values) in zip(self.layers, saved, strict=True):
            layer.keys[slot, :, :length] = keys[:, :length]
            layer.values[slot, :, :length] = values[:, :length]


def check_supported(model: Any) -> None:
    """Refuse models whose state is not one full KV cache addressed by position.

    Raises:
        ValueError: names the model type and what stands in the way.
    """
    config = model.config.get_text_config(decoder=True)
    why = ""
    rope = getattr(config, "rope_parameters", None) or {}
    if getattr(model.config, "is_encoder_decoder", False):
        why = "it is an encoder-decoder model"
    elif getattr(model, "_is_stateful", False):
        why = "it keeps a recurrent state instead of a KV cache"
    elif "position_ids" not in inspect.signature(model.forward).parameters or getattr(
        config, "alibi", False
    ):
        why = "its positions do not come from position_ids"
    elif rope.get("rope_type") in ("dynamic", "longrope"):
        why = f"its '{rope['rope_type']}' rotary embedding depends on the longest row of a batch"
    else:
        kinds = {type(x).__name__ for x in DynamicCache(config=config).layers}
        kinds -= {DynamicLayer.__name__}
        if kinds:
            why = f"its cache has other layers than full attention ({', '.join(sorted(kinds))})"
    if why:
        raise ValueError(
            f"engine.name: 'torch' cannot run model type '{model.config.model_type}': {why}; "
            "allowed are decoder-only models with full attention; use engine.name: vllm instead"
        )
