"""hbpo: a right answer within its budget earns what the budget is worth, a longer one ever less.

With f2(b) = beta cos(pi b / 2 L) and f1(n, b) = beta cos(pi n / 2 L) - alpha |n - b|, a right
answer of n tokens under budget b earns f2(b) up to b, f1(n, b) up to L and 0 beyond; a wrong one
0. HBPO, Lyu et al. 2025, "Hierarchical Budget Policy Optimization" (code: ZJU-REAL/HBPO). `code`
is what was released: min(f1, f2) at every length, and -1 where no answer can be read.

Close to L a right answer earns less than 0, so less than a wrong one: `gate: correct` mends it.
The algorithm of that name compares rewards with f2, and asks for its own beta and max_tokens here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from rewards.shaping import base
from rewards.shaping.base import Bools, Floats
from samplers.facts import TARGET
from samplers.types import Group

MALFORMED = ("no_answer", "unparseable")


class Config(base.Measured, base.Capped, base.Gated):
    count_forced: bool = True
    """The announced budget opens the response and counts, as in the paper."""
    beta: float = Field(4.0, gt=0)
    """What a right answer of no length earns."""
    alpha: float | None = Field(None, ge=0)
    """Loss per token beyond the budget; None: 1 / longest response (the paper's 1 / 4096)."""
    form: Literal["paper", "code"] = "paper"
    """The formula of the paper, or that of the released code."""


def scale(beta: float, max_tokens: int | None) -> str:
    """The fact that this reward is there, with this scale."""
    return f"shaping hbpo with beta={beta:g} and max_tokens={max_tokens}"


def provides(config: Config) -> set[str]:
    return {scale(config.beta, config.max_tokens)}


def requires(config: Config) -> Mapping[str, str]:
    needs = base.requires(config)
    return {**needs, TARGET: "it compares lengths with the budget that was announced"}


def shape(groups: Sequence[Group], config: Config, state: Any) -> tuple[list[Floats], Any]:
    """One [G, C, A] array per group: the reward minus `correct`."""
    return [_group(group, config) for group in groups], state


def _group(group: Group, config: Config) -> Floats:
    lengths_GCA, right_GCA = base.measured(group, config), base.right(group)
    settings = (base.targets(group), base.caps(group, config), config.beta, config.alpha)
    if config.form == "paper":
        reward_GCA = paper(lengths_GCA, right_GCA, *settings)
    else:
        status = [[[v.status in MALFORMED for v in c] for c in r] for r in group.verdicts]
        reward_GCA = code(lengths_GCA, right_GCA, *settings, malformed=np.array(status))
    return base.replaced(group, reward_GCA, config.gate)


def worth(lengths: Floats, longest: Floats | float, beta: float = 4.0) -> Floats:
    """f2: beta at length 0, 0 at the longest."""
    return beta * np.cos(np.pi * lengths / (2.0 * longest))


def paper(
    lengths: Floats,
    right: Bools,
    budgets: Floats,
    longest: Floats | float,
    beta: float = 4.0,
    alpha: Floats | float | None = None,
) -> Floats:
    """Equations 1-3. A budget of NaN is none: f2 of the length itself."""
    alpha = 1.0 / longest if alpha is None else alpha
    beyond = worth(lengths, longest, beta) - alpha * np.abs(lengths - budgets)
    value = np.where(lengths <= budgets, worth(budgets, longest, beta), beyond)
    value = np.where(np.isnan(budgets), worth(lengths, longest, beta), value)
    return np.where(right & (lengths <= longest), value, 0.0)


def code(
    lengths: Floats,
    right: Bools,
    budgets: Floats,
    longest: Floats | float,
    beta: float = 4.0,
    alpha: Floats | float | None = None,
    malformed: Bools | None = None,
) -> Floats:
    """The released function: the smaller of f1 and f2; without a budget f2, in whole cents."""
    alpha = 1.0 / longest if alpha is None else alpha
    own = worth(lengths, longest, beta)
    value = np.minimum(own - alpha * np.abs(lengths - budgets), worth(budgets, longest, beta))
    value = np.where(np.isnan(budgets), np.round(own, 2), value)
    value = np.where(right & (lengths <= longest), value, 0.0)
    return value if malformed is None else np.where(malformed, -1.0, value)
