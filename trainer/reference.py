"""The reference policy: the frozen start of the run, or a moving average of the policy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer import policy, zero
from trainer.logprobs import Scorer


class Reference:
    """A whole copy of the model on every rank, never trained; loaded when first needed.

    With `moving` a float32 average lies beside a bfloat16 copy: added to in bfloat16, it would
    round the hundredth part of a small change away and stand still.
    """

    def __init__(
        self,
        path: str,
        device: torch.device,
        temperature: float,
        head_elements: int,
        moving: bool = False,
        **load: Any,
    ) -> None:
        self.model = policy.load(path, **load).to(device).eval().requires_grad_(False)
        self.scorer = Scorer(self.model, temperature, head_elements)
        self.average: dict[str, Tensor] = {}
        if moving:  # of a float32 copy, its very weights
            self.average = {n: p.detach().float() for n, p in self.model.named_parameters()}

    @torch.no_grad()
    def follow(self, model: Any, decay: float) -> None:
        """self <- decay x self + (1 - decay) x model. Collective (ZeRO-3 weights are gathered)."""
        for group in zero.groups(model.named_parameters(), 2**28):
            with zero.whole([parameter for _, parameter in group]):
                for name, parameter in group:
                    self.average[name].lerp_(parameter.float(), 1 - decay)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the model to the average."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.average[name])
