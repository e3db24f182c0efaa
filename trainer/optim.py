"""Optimisers and schedules: AdamW, or Muon for matrices with AdamW for the rest.

Muon: Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/), DeepSpeed's own, which
knows that ZeRO 1 and 2 cut matrices apart.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

from pydantic import Field, model_validator

from samplers.seam import Component


class OptimConfig(Component):
    """How weights move. `lr` is AdamW's; Muon has its own."""

    name: Literal["adamw", "muon"] = "adamw"
    """muon: hidden matrices by Muon; embeddings, head, norms and biases by AdamW."""
    lr: float = Field(1e-6, gt=0)
    """Peak learning rate of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled; on matrices only, never on norms and biases."""
    muon_lr: float = Field(0.02, gt=0)
    """Peak learning rate of Muon."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Of Muon (Nesterov)."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    """Optimiser steps of linear warm-up from 0."""
    decay_from: float = Field(0.0, ge=0, lt=1)
    """Share of the stage's optimiser steps at the peak before linear or cosine decay begins."""
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
    """Where the decay ends, as a share of the peak."""

    @model_validator(mode="after")
    def _combine(self) -> OptimConfig:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas={self.betas}: each lies in [0, 1); e.g. [0.9, 0.999]")
        idle: dict[str, str] = {}
        if self.name != "muon":
            idle |= dict.fromkeys(("muon_lr", "momentum"), f"name '{self.name}'")
        if self.schedule == "constant":
            idle |= dict.fromkeys(("decay_from", "min_lr_ratio"), "schedule 'constant'")
        for field, why in idle.items():
            value = getattr(self, field)
            if value != type(self).model_fields[field].default:
                warnings.warn(f"optim.{field}: {value} has no effect with {why}", stacklevel=2)
        return self

    def factor(self, step: int, total_steps: int) -> float:
        """Share of the peak learning rate at optimiser step `step` (0 is the first).

        Warm-up first, then the peak, then decay to `min_lr_ratio` at `total_steps`.
        """
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        start = max(self.warmup_steps, self.decay_from * total_steps)
        if self.schedule == "constant" or step <= start:
            return 1.0
        done = min(1.0, (step - start) / max(1.0, total_steps - start))
        left = 1 - done if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return self.min_lr_ratio + (1 - self.min_lr_ratio) * left


def check(config: OptimConfig, zero: int, clip_grad: float) -> None:
    """Refuse combinations that DeepSpeed would run, wrongly.

    Raises:
        ValueError: Muon at ZeRO-3, or Muon with clipping at ZeRO 1 and 2.
    """
    if config.name != "muon":
        return
    if zero == 3:
        raise ValueError(
            "optim.name=muon does not work with learner.zero=3: Muon needs whole matrices and "
            "ZeRO-3 cuts them; set learner.zero to 0, 1 or 2, or optim.name to adamw"
        )
    if zero and clip_grad:
        # In DeepSpeed's source the norm is taken after orthogonalising: it would clip the update.
        raise ValueError(
            f"learner.clip_grad={clip_grad} with optim.name=muon at learner.zero={zero} would clip "
            "Muon's orthogonalised update instead of the gradient; set learner.clip_grad to 0 "
            "(Muon's step has a fixed size anyway) or learner.zero to 0"
        )


def parameter_groups(config: OptimConfig, model: Any) -> list[dict[str, Any]]:
    """Trainable parameters: matrices decay, vectors (norms, biases) do not."""
    matrices: list[Any] = []
    vectors: list[Any] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            # under ZeRO-3 a parameter's own shape is that of its placeholder
            shape = getattr(parameter, "ds_shape", parameter.shape)
            (matrices if len(shape) >= 2 else vectors).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if not config.weight_decay:  # one group: fewer, larger buffers
        groups = [{"params": matrices + vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def adamw(config: OptimConfig, model: Any) -> Any:
    """torch's AdamW. Never DeepSpeedCPUAdam: it compiles for a minute and resumes inexactly."""
    import torch

    return torch.optim.AdamW(
        parameter_groups(config, model),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=torch.cuda.is_available(),
    )


def deepspeed_section(config: OptimConfig) -> dict[str, Any]:
    """DeepSpeed's `optimizer` entry for Muon; nothing for AdamW, which we build ourselves."""
    if config.name != "muon":
        return {}
    parameters = {
        "lr": config.lr,
        "adam_lr": config.lr,
        "muon_lr": config.muon_lr,
        "momentum": config.momentum,
        "betas": list(config.betas),
        "eps": config.eps,
        "weight_decay": config.weight_decay,
        "torch_adam": True,
    }
    return {"optimizer": {"type": "Muon", "params": parameters}}


def set_rates(config: OptimConfig, optimizer: Any, step: int, total_steps: int) -> float:
    """Set every group's learning rate for `step`; returns AdamW's."""
    factor = config.factor(step, total_steps)
    for group in optimizer.param_groups:
        peak = config.muon_lr if group.get("use_muon") else config.lr
        group["lr"] = peak * factor
    return config.lr * factor
