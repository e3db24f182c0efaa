"""What budget policies have in common: how a prompt is asked, amounts, shares, policies in others.

`{budget}` in a text of a policy that announces a budget stands for its number of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Annotated, Any

import numpy as np
from pydantic import Field, PlainValidator, ValidationError

from samplers import seam, seeds
from samplers.seam import Component
from samplers.types import Plan, Prompt

BUDGET = "{budget}"
CLOSES = (
    "a thought that reaches its budget is closed by force; set thinking: {start, end}, or "
    "budget=unlimited"
)
_TEXTS = {"system": None, "suffix": "", "prefill": ""}
"""Fields that may announce a budget, and what they are when they say nothing."""


class Asking(Component):
    """How a prompt is asked and a thought is closed."""

    max_tokens: int | None = Field(None, ge=1)
    """Cap of the whole response; a recipe's rollout.max_tokens unless set here."""
    answer: int | None = Field(None, ge=1)
    """Cap of the answer; None leaves it what the response cap leaves."""
    close: str = ""
    """Text that closes a cut thought (with the end marker in it); empty: the marker alone."""
    after_close: str = ""
    """Text forced after every end marker, before the answer."""
    template: dict[str, Any] = Field(default_factory=dict)
    """Chat-template arguments (`enable_thinking`, `reasoning_effort`, ...)."""
    system: str | None = None
    """System message of every prompt."""
    suffix: str = ""
    """Text after the last user message."""
    prefill: str = ""
    """Forced start of every response."""


def plan(config: Asking, **settings: Any) -> Plan:
    """The plan that asks as `config` says, with `settings` of its own.

    Raises:
        ValueError: no response cap.
    """
    asked = {name: getattr(config, name) for name in Asking.model_fields} | settings
    if asked["max_tokens"] is None:
        raise ValueError("budget.max_tokens: not set; give the cap of a whole response in tokens")
    return Plan(**asked)


def fit(
    think: int, answer: int | None, max_tokens: int | None, what: str = "think", where: str = ""
) -> None:
    """Raise ValueError unless thought, end marker and answer fit under the response cap."""
    need = think + 1 + (answer or 1)
    if max_tokens is not None and need > max_tokens:
        raise ValueError(
            f"{where}{what}={think}, the end marker and answer={answer or 1} need {need} tokens, "
            f"more than max_tokens={max_tokens}; lower {what} or raise the cap (rollout.max_tokens)"
        )


def ascending(budgets: Sequence[int]) -> None:
    """Raise ValueError unless each budget is above the one before."""
    if budgets[0] < 1 or any(a >= b for a, b in pairwise(budgets)):
        raise ValueError(f"budgets={list(budgets)} must ascend from 1 or more")


# Announced budgets


def told(config: Asking, hard: bool = False) -> None:
    """Raise ValueError unless something says {budget}, or the budget is enforced."""
    said = [getattr(config, name) for name in _TEXTS] + list(config.template.values())
    if not hard and not any(isinstance(text, str) and BUDGET in text for text in said):
        raise ValueError(
            f"no text says {BUDGET}, so the model cannot know it; put it into suffix, prefill, "
            "system or template, or set hard=true"
        )


def below(
    budget: int, answer: int | None, cap: int | None, hard: bool, what: str, where: str = ""
) -> None:
    """Raise ValueError unless the budget is one that a response of at most `cap` can use."""
    if hard:
        fit(budget, answer, cap, what, where)
    elif cap is not None and budget > cap:
        raise ValueError(
            f"{where}{what}={budget} is above the response cap of {cap} tokens "
            "(rollout.max_tokens); lower it or raise the cap"
        )


def announce(config: Asking, budget: int | None, hard: bool = False, subgroup: str = "") -> Plan:
    """The plan that announces `budget`; None: without the texts that would.

    A template argument that is '{budget}' alone becomes the number itself.
    """
    settings: dict[str, Any] = {}
    for name, nothing in _TEXTS.items():
        text = getattr(config, name)
        if text and BUDGET in text:
            settings[name] = nothing if budget is None else text.replace(BUDGET, str(budget))
    settings["template"] = {
        name: _filled(value, budget)
        for name, value in config.template.items()
        if budget is not None or not (isinstance(value, str) and BUDGET in value)
    }
    think = budget if hard else None
    return plan(config, target=budget, think=think, subgroup=subgroup, **settings)


def _filled(value: Any, budget: int | None) -> Any:
    if value == BUDGET:
        return budget
    return value.replace(BUDGET, str(budget)) if isinstance(value, str) else value


# Amounts and shares


def _amount(value: Any) -> int | tuple[int, int] | str:
    if isinstance(value, str) and value.startswith("meta:") and value != "meta:":
        return value
    pair = [value, value] if isinstance(value, int) else value
    whole = isinstance(pair, list | tuple) and all(type(end) is int for end in pair)
    if not whole or len(pair) != 2 or not 1 <= pair[0] <= pair[1]:
        raise ValueError(
            f"{value!r} is no budget; give a number of tokens (1 or more), a range [low, high], or "
            "'meta:COLUMN', a column of the data"
        )
    return value if isinstance(value, int) else (pair[0], pair[1])


Amount = Annotated[int | tuple[int, int] | str, PlainValidator(_amount)]
"""Tokens: a number, a range [low, high] to draw from, or 'meta:COLUMN' of each prompt."""


def largest(amount: int | tuple[int, int] | str) -> int:
    """The most tokens it can be; 1 where every prompt says its own."""
    return 1 if isinstance(amount, str) else amount[1] if isinstance(amount, tuple) else amount


def tokens(amount: int | tuple[int, int] | str, prompt: Prompt, u: float) -> int:
    """What `amount` is for this prompt; `u` in (0, 1) picks from a range, all equally likely.

    Raises:
        ValueError: the prompt's column does not hold a positive whole number.
    """
    if isinstance(amount, str):
        column = amount.removeprefix("meta:")
        value = prompt.meta.get(column)
        if type(value) is not int or value < 1:
            raise ValueError(
                f"budget: '{amount}' of prompt '{prompt.id}' is {value!r}; every row needs a "
                f"column '{column}' that holds a number of tokens, 1 or more"
            )
        return value
    if isinstance(amount, int):
        return amount
    low, high = amount
    return min(low + int(u * (high - low + 1)), high)


def uniform(*parts: int) -> float:
    """One number in (0, 1) of a key."""
    keys_N = np.array([seeds.key(*parts)], np.uint64)
    return float(seeds.uniforms(keys_N, np.zeros(1, np.uint64))[0])


def split(n: int, shares: Sequence[float], u: float) -> list[int]:
    """`n` rollouts over `shares`: each count within 1 of its share, exact where that is whole.

    What does not divide falls by `u` in (0, 1) on any of them, so that on average none is favoured.

    Raises:
        ValueError: more subgroups than rollouts.
    """
    if n < len(shares):
        raise ValueError(
            f"budget: {len(shares)} subgroups of the rollouts of a prompt, and there are {n} of "
            f"these; set rollouts_per_prompt={len(shares)} or more, or name fewer"
        )
    ends = np.round(n * np.cumsum(shares) / np.sum(shares), 9)
    whole = np.floor(ends)
    upto = (whole + (ends - whole + u >= 1)).astype(int)
    return np.diff(upto, prepend=0).tolist()


# Policies around others


def inner(of: str | Mapping[str, Any], max_tokens: int | None) -> tuple[ModuleType, Any]:
    """Module and config of the policy inside a wrapper, with the response cap passed on.

    Raises:
        ValueError: no such policy, or settings that it refuses, as one line.
    """
    if not isinstance(of, str | Mapping):
        raise ValueError(f"of: {of!r} is no policy; give its name, or a mapping with a 'name'")
    name, settings = seam.split(of)
    try:
        module = seam.find("samplers.budgets", name)
    except ValueError as error:
        raise ValueError(str(error).replace("budget:", "of:", 1)) from None
    if not callable(getattr(module, "plans", None)):
        raise ValueError(f"of: module '{name}' has no plans; name a budget policy")
    takes = getattr(module, "Config", Component).model_fields
    cap = {"max_tokens": max_tokens} if "max_tokens" in takes and max_tokens is not None else {}
    try:
        return seam.resolve("samplers.budgets", {"name": name, **cap, **settings})
    except ValidationError as error:
        raise ValueError(seam.mistakes(error, takes, "of")) from None


def natural(module: ModuleType, config: Any) -> Plan:
    """The plan of a prompt for which nobody sets a budget."""
    if hasattr(module, "natural"):
        found: Plan = module.natural(config)
        return found
    nobody = Prompt(0, "", (), "", "", "")
    first: Plan = module.plans(config, nobody, 1, 0, {}, 0)[0]
    return first


def asked(module: ModuleType, config: Any) -> dict[str, Plan]:
    """Name -> how a prompt is asked for that mode or number of tokens, for evaluation; most
    policies ask in one way only and name none."""
    found: dict[str, Plan] = getattr(module, "asked", lambda _: {})(config)
    return found


def said(what: str, module: ModuleType, config: Any) -> Any:
    """What a policy provides, requires or refuses (`samplers/facts.py`), if anything."""
    return getattr(module, what, lambda _: {})(config)


def changes(module: ModuleType, config: Any) -> list[int]:
    """Steps at which a policy's settings are others than before, the first included."""
    found: list[int] = getattr(module, "changes", lambda _: [0])(config)
    return found


def last_step(module: ModuleType, config: Any) -> int:
    """The first step from which a policy changes no more."""
    return int(getattr(module, "last_step", lambda _: 0)(config))
