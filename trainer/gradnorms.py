"""Norm of the gradient of each row's log likelihood: what GVM-RAFT weighs prompts by
(Yao et al. 2025, arXiv:2505.02391).

All rows of a micro-batch take one forward pass and at most one backward pass together: the head is
done in closed form, chunk by chunk of the vocabulary, and all else by `trainer/captured.py`.

Shape suffixes: B rows, T tokens of a row, S most scored tokens of a row, N scored tokens, H hidden
size, V vocabulary, C words of a chunk of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from trainer import policy, zero
from trainer.batching import halve
from trainer.captured import Captured, Rows, joined, segments
from trainer.logprobs import LogitRule
from trainer.types import Floats, MicroBatch

if TYPE_CHECKING:
    from trainer.learner import Learner

Scope = Literal["embedding", "last_layer", "full"]
"""With respect to what: the input-embedding matrix (GVM's released code; where the head is tied to
it, all of that matrix's gradient), the head's matrix (no backward pass), or all that is trained
(with LoRA: the adapters)."""


def norms(learner: Learner, micro: MicroBatch, scope: Scope) -> Floats:
    """[B]: per row the L2 norm of the gradient of the sum of its scored tokens' logprobs, at the
    training temperature.

    Collective under ZeRO-3. `.grad` of no weight is touched. `full` keeps all activations, with
    gradient checkpointing or without, and the other two do not; a micro-batch that does not fit
    is halved. Weights of modules that are neither linear, an embedding, nor elementwise in their
    vectors (as norms are) cost a backward pass a row.

    Raises:
        ValueError: such weights where that is no way: under ZeRO-3, or in the embedding itself.
    """
    assert scope in get_args(Scope), scope
    try:
        return _norms(learner, micro, scope)
    except RuntimeError as error:  # under ZeRO-3 the ranks talk in the middle of it
        if not zero.out_of_memory(error) or learner.config.zero == 3:
            raise
    # Out of the handler: its traceback held on to the tensors that did not fit.
    return np.concatenate([norms(learner, half, scope) for half in halve(micro)])


def _norms(learner: Learner, micro: MicroBatch, scope: Scope) -> Floats:
    model, scorer, device = learner.model, learner.scorer, learner.device
    head, elements = model.get_output_embeddings(), learner.config.head_elements
    weight, tied = head.weight, head.weight is model.get_input_embeddings().weight
    wants = {
        "embedding": {"weight"} if tied else set(),
        "last_layer": {"weight"},
        "full": {name for name, p in _own(head).items() if p.requires_grad},
    }[scope]
    at_head = Head(micro, scorer.rule, elements, device, wants, hidden=scope != "last_layer")
    inputs = policy.inputs(micro, model, device)
    index_N = policy.tensor(micro.index_N, device).long()
    if scope == "last_layer":
        with torch.no_grad():
            scorer.run(model, index_N, at_head, **inputs)
        return _root(at_head.squares_B)
    captured = Captured(Rows.of(micro, device), elements, device)
    with captured.watch(_watched(model, scope)), _activations_kept(model, scope):
        value_N = scorer.run(model, index_N, at_head, **inputs)
        if rest := captured.missing(_measured(model, scope)):
            _refuse(learner, rest)
            captured.alone(value_N, at_head.row_N, list(rest.values()))
        captured.backward(value_N.sum())
    zero.release(learner.engine)
    squares_B = captured.squares_B + at_head.squares_B
    if tied and id(weight) in captured.tables:
        with torch.no_grad(), zero.whole(list(_own(head).values())):
            lookups = joined(captured.tables[id(weight)])
            squares_B += 2 * at_head.products(weight, getattr(head, "bias", None), *lookups)
    return _root(squares_B)


class Head:
    """Stands in for the model's head: the gradient of the logprobs there, in closed form.

    With p = softmax(logits), d log p_y / d l_j = [j = y] - p_j per logit, so the head's weight has
    the gradient sum_n z_n h_n^T, where z_n is that through `rule` and h_n the hidden state.

    Args:
        elements: the largest tensor made, in numbers (one word of the vocabulary at least).
        wants: those of the head's parameters (weight, bias) that count in `squares_B`.
        hidden: return a value of which the gradient at the hidden states is that of the logprobs.
    """

    def __init__(
        self,
        micro: MicroBatch,
        rule: LogitRule,
        elements: int,
        device: torch.device,
        wants: set[str],
        hidden: bool,
    ) -> None:
        self.rule, self.elements, self.wants, self.hidden = rule, elements, wants, hidden
        self.targets_N = policy.tensor(micro.targets_N, device).long()
        self.row_N = policy.tensor(micro.row_N, device).long()
        rows = len(micro.lengths_B)
        self.index_BS, self.real_BS = segments(np.bincount(micro.row_N, minlength=rows), device)
        self.squares_B = torch.zeros(rows, dtype=torch.float64, device=device)

    def __call__(self, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
        """[N, 1]."""
        with torch.no_grad():
            down_NH = self._measure(hidden_NH.detach(), weight_VH, bias_V)
        return (hidden_NH * down_NH.to(hidden_NH.dtype)).sum(-1, keepdim=True)

    def _measure(self, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
        """Adds to `squares_B`; [N, H]: the gradient at the hidden states, 0 if not wanted."""
        (rows, most), width = self.index_BS.shape, hidden_NH.shape[-1]
        inner = most < width  # S x S inner products cost less than C x H gradients
        chunk = max(1, self.elements // (rows * (most if inner else max(most, width))))
        words = torch.arange(len(weight_VH), device=hidden_NH.device).split(chunk)
        biases = [None] * len(words) if bias_V is None else bias_V.split(chunk)
        chunks = list(zip(weight_VH.split(chunk), biases, words, strict=True))
        self._hidden_NH = hidden_NH
        self._lse_N = torch.full_like(hidden_NH[:, 0], -torch.inf, dtype=torch.float32)
        for weight_CH, bias_C, _ in chunks:
            logits_NC = self.rule.logits(hidden_NH, weight_CH, bias_C)
            self._lse_N = self._lse_N.logaddexp(logits_NC.logsumexp(-1))
        h_BSH = self._padded(hidden_NH.float()) if "weight" in self.wants else None
        products_BSS = torch.zeros(1, device=hidden_NH.device)
        down_NH = torch.zeros_like(hidden_NH, dtype=torch.float32)
        for weight_CH, bias_C, word_C in chunks:
            z_NC = self._grad_z(weight_CH, bias_C, word_C)
            if self.hidden:
                down_NH += z_NC.to(weight_CH.dtype) @ weight_CH
            z_BSC = self._padded(z_NC) if self.wants else z_NC
            if "bias" in self.wants:
                self.squares_B += z_BSC.sum(1).square_().sum(1)
            if h_BSH is not None and inner:
                products_BSS = products_BSS + z_BSC @ z_BSC.mT
            elif h_BSH is not None:
                self.squares_B += (z_BSC.mT @ h_BSH).square_().sum((1, 2))
        if h_BSH is not None and inner:
            self.squares_B += (products_BSS * (h_BSH @ h_BSH.mT)).sum((1, 2))
        return down_NH

    def products(
        self, weight_VH: Tensor, bias_V: Tensor | None, ids_BT: Tensor, grad_BTH: Tensor
    ) -> Tensor:
        """[B]: inner product of the head weight's gradient with that of the embedding it is tied
        to, sum_t sum_n z_n[id_t] (h_n . g_t): of the head only the words of the row are needed."""
        out_B = torch.zeros_like(self.squares_B)
        for row, (ids_T, grad_TH) in enumerate(zip(ids_BT, grad_BTH, strict=True)):
            weight_TH, bias_T = weight_VH[ids_T], None if bias_V is None else bias_V[ids_T]
            mine_S = self.index_BS[row, self.real_BS[row]]
            for some in mine_S.split(max(1, self.elements // len(ids_T))):
                z_ST = self._grad_z(weight_TH, bias_T, ids_T, some)
                out_B[row] += (z_ST * (self._hidden_NH[some].float() @ grad_TH.mT)).sum()
        return out_B

    def _grad_z(
        self,
        weight_CH: Tensor,
        bias_C: Tensor | None,
        word_C: Tensor,
        tokens: Tensor | slice = slice(None),
    ) -> Tensor:
        """[N, C]: gradient of the logprobs of `tokens` at the head's outputs for these words."""
        logits_NC = self.rule.logits(self._hidden_NH[tokens], weight_CH, bias_C)
        grad_NC = (logits_NC - self._lse_N[tokens, None]).exp_().neg_()
        grad_NC += self.targets_N[tokens, None] == word_C
        return self.rule.backward_(grad_NC, logits_NC)

    def _padded(self, x_NF: Tensor) -> Tensor:
        """[B, S, F]: zeros behind the scored tokens of a row."""
        return x_NF[self.index_BS] * self.real_BS[..., None]


def _own(module: nn.Module) -> dict[str, Parameter]:
    return dict(module.named_parameters(recurse=False))


def _watched(model: Any, scope: Scope) -> dict[nn.Module, dict[str, Parameter]]:
    """The modules that backward has to tell of, with those of their parameters that count."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if scope == "embedding":
        return {embedding: _own(embedding)}
    trained = {
        module: {name: p for name, p in _own(module).items() if p.requires_grad}
        for module in model.modules()
        if module is not head
    }
    return {module: own for module, own in trained.items() if own or module is embedding}


def _measured(model: Any, scope: Scope) -> dict[str, Parameter]:
    """The parameters that are to count, less those that only the head has."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    alone = {id(p) for p in _own(head).values()} - {id(embedding.weight)}
    return {
        name: p
        for name, p in model.named_parameters()
        if (p is embedding.weight if scope == "embedding" else p.requires_grad)
        and id(p) not in alone
    }


def _refuse(learner: Learner, rest: dict[str, Parameter]) -> None:
    """Raise ValueError where a backward pass a row cannot measure what modules do not tell."""
    weight = learner.model.get_input_embeddings().weight
    if learner.config.zero == 3 or any(p is weight for p in rest.values()):
        names = ", ".join(list(rest)[:3])
        raise ValueError(
            f"grad_norm: model '{learner.model.config.model_type}' uses {names} in a way that its "
            "gradient cannot be told by rows; take the scope last_layer, or for weights other "
            "than the embedding's set learner.zero to 0, 1 or 2"
        )


@contextmanager
def _activations_kept(model: Any, scope: Scope) -> Iterator[None]:
    """No gradient checkpointing: modules inside would be seen twice. The embedding is outside."""
    on = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    on = on if scope == "full" else []
    try:
        for module in on:
            module.gradient_checkpointing = False
        yield
    finally:
        for module in on:
            module.gradient_checkpointing = True


def _root(squares_B: Tensor) -> Floats:
    """Rounding may leave a norm of 0 a little below it."""
    return squares_B.clamp(min=0).sqrt().float().cpu().numpy()
