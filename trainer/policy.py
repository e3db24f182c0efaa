"""A transformers causal LM as the learner sees it: loaded, and scored one micro-batch at a time.

Shape suffixes: B rows, T tokens of a row, Q and K tokens as queries and keys, N scored tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer import lora as adapters
from trainer.logprobs import Scorer
from trainer.lora import LoraConfig
from trainer.types import MicroBatch


def load(
    path: str,
    *,
    dtype: str,
    attention: str,
    trust_remote_code: bool = False,
    zero3: dict[str, Any] | None = None,
    lora: LoraConfig | None = None,
    seed: int = 0,
) -> Any:
    """The model in training shape: no dropout (both sides must give the same numbers), no cache.

    With `zero3` (DeepSpeed's configuration) each weight is partitioned as soon as it is read: no
    device ever holds the model whole. With `lora` only adapters, drawn from `seed`, are trainable.
    """
    from transformers import AutoModelForCausalLM

    keep_alive = None
    if zero3 is not None:
        from transformers.integrations import deepspeed as integration

        keep_alive = integration.HfDeepSpeedConfig(zero3)
    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=getattr(torch, dtype),
                attn_implementation=attention,
                trust_remote_code=trust_remote_code,
            )
    finally:
        if keep_alive is not None:
            integration.unset_hf_deepspeed_config()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    if zero3 is not None:
        _exact_rotary(model)
    if lora is not None:
        adapters.adapt(model, lora, seed)
    return model


def _exact_rotary(model: Any) -> None:
    """Rotary frequencies in float32, as a load without ZeRO-3 makes them.

    Read partitioned in bfloat16, they come out rounded: angles would be off by whole turns at long
    positions, and engines, which keep them in float32, would disagree.
    """
    for module in model.modules():
        if hasattr(module, "inv_freq") and hasattr(module, "config"):
            for name, buffer in type(module)(module.config).named_buffers():
                module._buffers[name] = buffer


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers: ours are on screen."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def score(
    scorer: Scorer, module: Any, micro: MicroBatch, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Logprob and entropy [N] of a micro-batch's scored tokens, with their graphs."""
    return scorer(
        module,
        tensor(micro.index_N, device).long(),
        tensor(micro.targets_N, device).long(),
        **inputs(micro, scorer.model, device),
    )


def inputs(micro: MicroBatch, model: Any, device: torch.device) -> dict[str, Tensor]:
    """What the model is called with.

    Plain rows: ids alone; they are padded on the right and attention is causal, so that a mask
    would change nothing and cost the fast kernels. Packed rows (positions restart): positions,
    from which transformers keeps the sequences apart. Rows with branches: each token sees its
    ancestors.
    """
    out = {"input_ids": tensor(micro.ids_BT, device).long()}
    if micro.ends_BT is not None:
        out["position_ids"] = tensor(micro.positions_BT, device).long()
        out["attention_mask"] = _tree_mask(micro, model, device)
    elif packed(micro):
        out["position_ids"] = tensor(micro.positions_BT, device).long()
    return out


def packed(micro: MicroBatch) -> bool:
    """Some row holds several sequences: its positions do not simply count up."""
    if len(micro.lengths_B) != len(micro.ids_BT):
        return True
    count_T = np.arange(micro.ids_BT.shape[1])
    real_BT = count_T < micro.lengths_B[:, None]
    return bool(((micro.positions_BT != count_T) & real_BT).any())


def _tree_mask(micro: MicroBatch, model: Any, device: torch.device) -> Tensor:
    """[B, 1, Q, K] additive: 0 where the query may look, the lowest number elsewhere."""
    assert micro.ends_BT is not None
    config = model.config.get_text_config()
    if config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"model.attention={config._attn_implementation}: rows with branches (nested budgets) "
            "need a mask of their own; set model.attention to sdpa or eager"
        )
    window = getattr(config, "sliding_window", None)
    if window is not None and micro.ids_BT.shape[1] > window:
        raise ValueError(
            f"model: rows with branches of {micro.ids_BT.shape[1]} tokens do not fit the model's "
            f"attention window of {window}; lower rollout.max_tokens or use another model"
        )
    ends_BK = tensor(micro.ends_BT, device)
    count = torch.arange(ends_BK.shape[1], device=device)
    seen_BQK = count[:, None] < ends_BK[:, None]
    seen_BQK &= count <= count[:, None]
    dtype = model.get_input_embeddings().weight.dtype
    mask_BQK = torch.full(seen_BQK.shape, torch.finfo(dtype).min, dtype=dtype, device=device)
    return mask_BQK.masked_fill_(seen_BQK, 0.0)[:, None]


def tensor(array: Any, device: torch.device) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(array)).to(device, non_blocking=True)
