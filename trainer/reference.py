"""The reference policy: the frozen start of the run, or a moving average of the policy."""

from __future__ import annotations

from typing import Any

import torch

from trainer import policy, zero
from trainer.logprobs import Scorer


class Reference:
    """A whole copy of the model on every rank, never trained; loaded when first needed."""

    def __init__(
        self, path: str, device: torch.device, temperature: float, head_elements: int, **load: Any
    ) -> None:
        self.model = policy.load(path, **load).to(device).eval().requires_grad_(False)
        self.scorer = Scorer(self.model, temperature, head_elements)

    @torch.no_grad()
    def follow(self, model: Any, decay: float) -> None:
        """self <- decay x self + (1 - decay) x model. Collective (ZeRO-3 weights are gathered)."""
        average = dict(self.model.named_parameters())
        for group in zero.groups(model.named_parameters(), 2**28):
            with zero.whole([parameter for _, parameter in group]):
                for name, parameter in group:
                    average[name].lerp_(parameter, 1 - decay)
