"""What the torch engine computes: prefill, sampling and scoring, as functions of a model.

Shape suffixes: N rows, U distinct prompts, V vocabulary, P padded prompt length, B rows of a
scoring batch, T tokens.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from samplers.seeds import uniforms
from samplers.types import Floats, Ids

_SCORE_TOKENS = 16384
FORWARD_LOGITS = 2**26
"""Logits of one forward (256 MB in fp32)."""
_IMPOSSIBLE = -87.0
"""Below this logprob no uniform number of 53 bits reaches a token."""


def additive_mask(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where seen; finite elsewhere, so that a padding row, which sees nothing, is no NaN."""
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, torch.finfo(dtype).min)


@functools.cache
def _keeps_logits(kind: Any) -> bool:
    return "logits_to_keep" in inspect.signature(kind.forward).parameters


def widen_head(model: Any) -> None:
    """Make the head of a 16-bit model give float32 logits, as the learner computes them.

    Rounded to bfloat16, a logit of 20 is off by up to 0.06: more than the learner and the engine
    may differ. What the model does to its logits after the head is done in float32 then, too.
    """
    head = model.get_output_embeddings()
    if isinstance(head, torch.nn.Linear):
        head.forward = functools.partial(_wide, head)


def _wide(head: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    weight_VH, flat_NH = head.weight, hidden.flatten(0, -2)
    if weight_VH.is_cuda:  # products of 16-bit numbers, summed and kept in 32 bits
        logits_NV = torch.mm(flat_NH, weight_VH.t(), out_dtype=torch.float32)
    else:
        logits_NV = flat_NH.float() @ weight_VH.float().t()
    if head.bias is not None:
        logits_NV += head.bias
    return logits_NV.view(*hidden.shape[:-1], -1)


def last_logits(model: Any, **inputs: Any) -> torch.Tensor:
    """Logits [N, V] of the last column of a cached forward."""
    if _keeps_logits(model.__class__):
        inputs["logits_to_keep"] = 1
    return model(use_cache=True, **inputs).logits[:, -1]


def prefill(model: Any, prompts: Sequence[Ids]) -> tuple[torch.Tensor, DynamicCache]:
    """Logits after each prompt [U, V], and their KV, right-aligned.

    Padding is on the left: the last column is every row's last token, so any model that can
    return the logits of one position needs no more.
    """
    device = model.device
    lengths_U = np.array([len(ids) for ids in prompts])
    longest = int(lengths_U.max())
    ids_UP = np.zeros((len(prompts), longest), np.int64)
    for row, ids in zip(ids_UP, prompts, strict=True):
        row[longest - len(ids) :] = ids
    pads_U = torch.from_numpy(longest - lengths_U).to(device)
    columns = torch.arange(longest, device=device)
    mask = None
    if lengths_U.min() < longest:
        later = columns[None, None] > columns[None, :, None]
        padding = columns[None, None] < pads_U[:, None, None]
        mask = additive_mask((later | padding)[:, None], model.dtype)
    cache = DynamicCache()
    logits_UV = last_logits(
        model,
        input_ids=torch.from_numpy(ids_UP).to(device),
        position_ids=(columns[None] - pads_U[:, None]).clamp_(min=0),
        attention_mask=mask,
        past_key_values=cache,
    )
    return logits_UV, cache


def sample(
    logits_NV: torch.Tensor,
    temperature_N: NDArray[np.float32],
    seed_N: NDArray[np.uint64],
    position_N: NDArray[np.int64],
) -> tuple[NDArray[np.int64], Floats]:
    """Tokens and their logprobs after temperature (of temperature 1 where it is 0, greedy).

    Inverse CDF with one uniform number per token, a function of the row's seed and of how many
    tokens it has sampled: the same token in any batch. The sums are float64: float32 would lose
    every token rarer than 6e-8 behind a likely one.
    """
    device, logits_NV = logits_NV.device, logits_NV.float()
    greedy_N = temperature_N == 0
    if (temperature_N != 1).any():
        divisor_N = torch.from_numpy(np.where(greedy_N, np.float32(1), temperature_N))
        logits_NV = logits_NV / divisor_N.to(device)[:, None]
    logprobs_NV = logits_NV.log_softmax(-1)
    if greedy_N.all():
        token_N1 = logits_NV.argmax(-1, keepdim=True)
    else:
        drawn_N = uniforms(seed_N, position_N.astype(np.uint64))
        cdf_NV = logprobs_NV.exp().double().cumsum_(-1)
        # Scaled to the sum as rounded, so that a token always exists; the first to reach the
        # target, so that it is never one of probability zero.
        target_N1 = torch.from_numpy(drawn_N).to(device)[:, None] * cdf_NV[:, -1:]
        token_N1 = torch.searchsorted(cdf_NV, target_N1)
        if greedy_N.any():
            best_N1 = logits_NV.argmax(-1, keepdim=True)
            token_N1 = torch.where(
                torch.from_numpy(greedy_N).to(device)[:, None], best_N1, token_N1
            )
    token_N = token_N1[:, 0].cpu().numpy()
    logprob_N = logprobs_NV.gather(-1, token_N1)[:, 0].cpu().numpy()
    # Sums in parallel may fall by a rounding between equals, so that a search ends beside its step.
    for n in np.flatnonzero(logprob_N < _IMPOSSIBLE):
        token_N[n] = int(logprobs_NV[n].argmax())
        logprob_N[n] = float(logprobs_NV[n, token_N[n]])
    return token_N, logprob_N


def score(model: Any, ids: Sequence[Ids], temperature: float, vocab: int) -> list[Floats]:
    """Teacher-forced logprobs of ids[1:] of each sequence, batched by length."""
    out: list[Floats] = [np.zeros(0, np.float32)] * len(ids)
    order = sorted((i for i in range(len(ids)) if len(ids[i]) > 1), key=lambda i: len(ids[i]))
    while order:
        longest, batch = len(ids[order[-1]]), [order.pop()]
        while order and longest * (len(batch) + 1) <= _SCORE_TOKENS:
            batch.append(order.pop())
        flat_BT = _score_batch(model, [ids[i] for i in batch], temperature, vocab)
        for i, row in zip(batch, flat_BT, strict=True):
            out[i] = row[: len(ids[i]) - 1].copy()
    return out


def _score_batch(model: Any, ids: list[Ids], temperature: float, vocab: int) -> Floats:
    """[B, T - 1], padded on the right; in pieces over a cache where logits would be too many."""
    padded_BT = np.zeros((len(ids), len(ids[0])), np.int64)
    for row, one in zip(padded_BT, ids, strict=True):
        row[: len(one)] = one
    ids_BT = torch.from_numpy(padded_BT).to(model.device)
    total = ids_BT.shape[1] - 1
    piece = max(1, FORWARD_LOGITS // (len(ids) * vocab))
    cache = DynamicCache() if piece < total else None
    scores = []
    for start in range(0, total, piece):
        end = min(start + piece, total)
        logits = model(
            input_ids=ids_BT[:, start:end], past_key_values=cache, use_cache=cache is not None
        ).logits
        logprobs = (logits.float() / temperature).log_softmax(-1)
        scores.append(logprobs.gather(-1, ids_BT[:, start + 1 : end + 1, None])[..., 0])
    return torch.cat(scores, 1).cpu().numpy()
