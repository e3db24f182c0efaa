"""modes: named levels of effort, each asked for in its own way; every prompt is tried in all.

ThinkDial, He et al. 2025 (arXiv:2508.18773): high, medium and low, told by a system prompt. Models
with a switch in their chat template (`enable_thinking`, `reasoning_effort`) name it in `template`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from samplers.budgets import base
from samplers.facts import MARKERS, MODES, SUBGROUPS
from samplers.types import Plan, Prompt


class Mode(base.Asking):
    """One level. What it leaves out is the policy's; template arguments are merged."""

    think: int | None = Field(None, ge=0)
    """Thinking tokens before the end marker is forced; None: no limit."""
    share: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Part of the rollouts, relative to the other modes."""


class Config(base.Asking):
    modes: Mapping[str, Mode] = Field(min_length=1)
    """Name of each mode -> how the model is asked for it, and its limits."""
    per: Literal["rollout", "prompt"] = "rollout"
    """`rollout`: a prompt's rollouts are split over the modes [paper]; `prompt`: all are of one."""
    natural: str | None = None
    """The mode in which evaluation asks; None: the first."""

    @model_validator(mode="after")
    def _known(self) -> Config:
        if self.natural is not None and self.natural not in self.modes:
            raise ValueError(
                f"natural={self.natural!r} is no mode; allowed: {', '.join(self.modes)}"
            )
        for name, mode in self.modes.items():
            cap, own = self.max_tokens, mode.max_tokens
            if cap is not None and own is not None and own > cap:
                raise ValueError(
                    f"modes.{name}.max_tokens={own} is above the response cap of {cap} "
                    "(rollout.max_tokens); lower it or raise the cap"
                )
            if mode.think is not None:
                answer = mode.answer or self.answer
                base.fit(mode.think, answer, own or cap, f"modes.{name}.think")
        if self.max_tokens is not None and len(self.modes) > 1:
            asked = [replace(_plan(self, name), subgroup="") for name in self.modes]
            if any(plan in asked[:i] for i, plan in enumerate(asked)):
                warnings.warn(
                    f"budget.modes: some of {', '.join(self.modes)} ask the model in the same way; "
                    "give each its own template, system, suffix or prefill",
                    stacklevel=2,
                )
        return self


def plans(config: Config, prompt: Prompt, n: int, step: int, memory: Any, key: int) -> list[Plan]:
    """`n` plans, the modes one after the other; or all of one mode.

    Raises:
        ValueError: no response cap, or fewer rollouts than modes.
    """
    shares, u = [mode.share for mode in config.modes.values()], base.uniform(key)
    if config.per == "prompt":
        picked = int(np.searchsorted(np.cumsum(shares), u * sum(shares)))
        return [_plan(config, list(config.modes)[picked])] * n
    counts = base.split(n, shares, u)
    return [
        plan
        for name, count in zip(config.modes, counts, strict=True)
        for plan in [_plan(config, name)] * count
    ]


def _plan(config: Config, name: str) -> Plan:
    mode = config.modes[name]
    own = mode.model_dump(include=mode.model_fields_set, exclude={"share"})
    own["template"] = {**config.template, **mode.template}
    return base.plan(config, **own, subgroup=name)


def natural(config: Config) -> Plan:
    """The mode that evaluation asks in."""
    return _plan(config, config.natural or next(iter(config.modes)))


def asked(config: Config) -> dict[str, Plan]:
    """Every mode, by its name."""
    return {name: _plan(config, name) for name in config.modes}


def provides(config: Config) -> set[str]:
    return {SUBGROUPS, MODES}


def requires(config: Config) -> dict[str, str]:
    cut = [name for name, mode in config.modes.items() if mode.think is not None]
    return {MARKERS: f"mode {cut[0]} has a thinking budget"} if cut else {}
