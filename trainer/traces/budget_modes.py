"""Examples of effort levels, from one's own long thoughts: cut to a share and answered anew.

Budget-Mode SFT of ThinkDial (arXiv:2508.18773): a right long thought is an example of the mode
that thinks in full. Of every other mode it becomes one when its first part (.5, .25 of its tokens),
a short connective and the end marker are answered anew, asked in that mode's way, and the answer
is right. A share of 0 is an empty thought: no-thinking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from samplers.facts import MARKERS
from samplers.render import Renderer
from samplers.seam import Component
from samplers.types import Group, Ids, Plan, Prompt, Rollout
from trainer.traces import base

Closed = Mapping[str, bool]
"""Modes whose prompt closes the thought by itself."""


class Mode(Component):
    """How a mode is asked for, and how much of a thought is left to it.

    What it leaves open is as the stage's budget policy asks when nobody sets a budget.
    """

    ratio: float = Field(ge=0, le=1)
    """Share of a long thought's tokens; in the mode whose share is 1 long thoughts are sampled."""
    template: dict[str, Any] = Field(default_factory=dict)
    """Chat-template arguments (`enable_thinking`, `reasoning_effort`, ...)."""
    system: str | None = None
    """System message."""
    suffix: str = ""
    """Text after the last user message."""

    def of(self, plan: Plan, name: str) -> Plan:
        """`plan` in this mode."""
        return replace(
            plan,
            template={**plan.template, **self.template},
            system=plan.system if self.system is None else self.system,
            suffix=self.suffix or plan.suffix,
            subgroup=name,
        )


class Config(base.Config):
    samples: int = Field(4, ge=1)
    """Long rollouts of each prompt; the first right one that closed its thought is used."""
    modes: dict[str, Mode] = Field(
        default={
            "high": Mode(ratio=1, system="Take as much time to think as you need."),
            "medium": Mode(ratio=0.5, system="Think for a sufficient time, not longer."),
            "low": Mode(ratio=0.25, system="Your time is limited: think briefly."),
        }
    )
    """Shares as in the paper, which does not tell its system prompts: these are ours."""
    connective: str = "\n\nI have thought enough; now I answer.\n"
    """Between what is left of a cut thought and the end marker (ours: not told in the paper)."""

    @model_validator(mode="after")
    def _different(self) -> Config:
        full = [name for name, mode in self.modes.items() if mode.ratio == 1]
        if len(full) != 1:
            raise ValueError(
                f"modes: {len(full)} of {', '.join(self.modes) or 'none'} have ratio 1; exactly "
                "one must: long thoughts are sampled in it"
            )
        asked: dict[str, str] = {}
        for name, mode in self.modes.items():
            other = asked.setdefault(repr((mode.template, mode.system, mode.suffix)), name)
            if other != name:
                raise ValueError(
                    f"modes: '{other}' and '{name}' are asked for in the same way, so nothing "
                    "could tell them apart; give one another template, system or suffix"
                )
        return self

    @property
    def full(self) -> str:
        return next(name for name, mode in self.modes.items() if mode.ratio == 1)


def requires(config: Config) -> dict[str, str]:
    return {MARKERS: "it cuts thoughts; set thinking: {start, end}"}


def long_trace(group: Group) -> Rollout | None:
    """The first right rollout that closed its own thought; None where there is none."""
    closed_G = np.array([rollout.closed for rollout in group.rollouts], dtype=bool)
    found = np.flatnonzero(base.right(group) & closed_G)
    return group.rollouts[found[0]] if len(found) else None


def opening(trace: Rollout, renderer: Renderer) -> int:
    """Tokens of the thought that only open it: none, unless the model writes the start marker."""
    assert renderer.thinking is not None
    starts = np.flatnonzero(trace.thought.ids_T == renderer.thinking.start_id)
    return int(starts[0]) + 1 if len(starts) and not renderer.opened(trace.prompt_ids_T) else 0


def cut(
    config: Config, plan: Plan, trace: Rollout, renderer: Renderer, closed: Closed
) -> list[tuple[Plan, Ids]]:
    """(plan, thought to answer) of every mode but the full one, by what `plan` leaves to it.

    The first floor(ratio x tokens) are left, after what opens the thought. A mode is left out where
    the response cap does not hold that, the text that closes it and an answer.
    """
    assert renderer.thinking is not None
    out = []
    for name, mode in config.modes.items():
        if name == config.full:
            continue
        first = 0 if closed[name] else opening(trace, renderer)
        left = first + int(mode.ratio * (trace.think_tokens - first) + 1e-9)
        own = replace(
            mode.of(plan, name), think=left, prefill="", target=None,
            close=config.connective + renderer.thinking.end if left > first else "",
            cuts=(), answers_per_cut=1, weights=(), probe="",
        )  # fmt: skip
        forced = len(renderer.close_ids(own)) + len(renderer.after_close_ids(own))
        if left + forced < own.max_tokens:
            out.append((own, trace.thought.ids_T[:left]))
    return out


def prompts_that_close(config: Config, plan: Plan, prompt: Prompt, renderer: Renderer) -> Closed:
    """By mode: whether its prompt closes the thought.

    Raises:
        ValueError: a mode with a share of the thought whose prompt leaves it no place.
    """
    closed = {
        name: renderer.closed(renderer.render(prompt, mode.of(plan, name)))
        for name, mode in config.modes.items()
    }
    for name, mode in config.modes.items():
        if closed[name] and mode.ratio:
            raise ValueError(
                f"supervised.traces: the prompt of mode '{name}' closes the thought, so a share of "
                f"{mode.ratio:g} has no place; set modes.{name}.ratio=0, or ask in another way"
            )
    return closed


def make(config: Config, draws: Sequence[base.Draw], sampler: base.Sampler) -> list[Rollout]:
    """Long traces, and what becomes of them in the other modes, where the answer is right."""
    name, renderer = config.full, sampler.renderer
    natural = [sampler.natural(draw) for draw in draws]
    closed = prompts_that_close(config, natural[0], draws[0][1], renderer)
    asks = [
        base.Ask(draw, [config.modes[name].of(plan, name)] * config.samples)
        for draw, plan in zip(draws, natural, strict=True)
    ]
    kept, again = [], []
    for ask, plan, group in zip(asks, natural, sampler.sample(asks), strict=True):
        trace = long_trace(group)
        if trace is None:
            continue
        kept.append(trace)
        if pairs := cut(config, plan, trace, renderer, closed):
            plans, heads = zip(*pairs, strict=True)
            again.append(base.Ask(ask.draw, plans, heads, first=config.samples))
    for group in sampler.sample(again):
        kept += [group.rollouts[i] for i in np.flatnonzero(base.right(group))]
    return kept
