"""Every pair of components of two kinds, made concrete on the tiny model.

A pair runs if some choice of the rest lets it: BRPO needs nested cuts, so BRPO with a length reward
is tried with a budget that has them. `table` is what the README prints of the pairs that cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations, product
from typing import Any, get_args

from samplers import seam
from trainer.components import COMPONENTS
from trainer.config import Recipe, resolve
from trainer.losses import Name

KINDS = ("budget", "allocation", "algorithm", "shaping", "loss")
Component = tuple[str, str]
"""(kind, name)"""
Pair = tuple[Component, Component]
Settings = dict[str, Any]

_INNER: list[Settings] = [
    {"name": "fixed", "think": 16, "answer": 4},
    {"name": "prompted", "budget": 16, "suffix": "~{budget}"},
    {"name": "hierarchical", "budgets": [8, 16], "prefill": "{budget}~"},
    {"name": "modes", "modes": {"high": {}, "low": {"suffix": "~", "think": 8, "answer": 4}}},
    {"name": "anytime", "think": 24, "samples": 3, "answer": 4, "answers_per_cut": 1},
]
_VARIED = ("think", "budget", "budgets.1", "modes.low.think", "think")
"""What a curriculum changes of each of them."""
SETTINGS: dict[str, list[Settings]] = {
    **{inner["name"]: [{k: v for k, v in inner.items() if k != "name"}] for inner in _INNER},
    "elastic": [{"think": [8, 16], "answer": 4}],
    "tiered": [{"easy": 16, "hard": 32}],
    "curriculum": [
        {"of": inner, "fields": {field: [[0, 20], [1, 12]]}}
        for inner, field in zip(_INNER, _VARIED, strict=True)
    ],
    "chunked": [{"chunk": 24, "of": inner} for inner in _INNER],
    "soft_overlong": [{"cache": 8}],
    "memory": [{"explore_min_keys": 0}],
    "dynamic": [{"surplus": "train", "max_rounds": 2}],
    "gvm": [{"every": 2, "pilot": 2}],
    "oversample": [{"samples": 8}],
    "reinforce_ada": [{"rounds": 2, "per_round": 4}],
}
"""Settings for the tiny model; several are tried one after the other. Else the defaults hold."""
OPEN: dict[str, Sequence[str | None]] = {
    "budget": ("unlimited", "anytime", "hierarchical", "modes", "prompted"),
    "allocation": ("uniform",),
    "algorithm": ("grpo", "brpo"),
    "loss": ("ppo_clip", "ce"),
    "shaping": (None, "hbpo", "repetition_dense"),
}
"""What is tried, in this order, where a pair leaves it open (shaping: beside the pair's own)."""
FIXED: Settings = {
    "name": "pair",
    "steps": 2,
    "model": {"path": "base/find"},
    "data": {"task": "find", "limit": 16},
    "prompts_per_step": 2,
    "rollouts_per_prompt": 4,
    "tokens_per_micro_batch": 2048,
    "rollout": {"max_tokens": 48},
    "optim": {"lr": 1e-5},
    "grader": {"processes": 0},
    "guard": {"truncated": 1.0},
    "tracking": {"samples": 0},
}


def names(kind: str) -> list[str]:
    """Components of a kind that ship."""
    return list(get_args(Name)) if kind == "loss" else seam.names(COMPONENTS[kind])


def pairs() -> Iterator[Pair]:
    """All of them, kinds in the order of `KINDS`."""
    for one, other in combinations(KINDS, 2):
        for a, b in product(names(one), names(other)):
            yield (one, a), (other, b)


@cache
def outcome(pair: Pair) -> Recipe | str:
    """A recipe in which both are, or why there is none."""
    reasons: list[str] = []
    for chosen in _choices(dict(pair)):
        try:
            return resolve(FIXED | chosen)
        except ValueError as error:
            reasons.append(str(error))
    mine = [r for r in reasons if all(name in r for _, name in pair)]
    return (mine or reasons)[0]


def _choices(pair: dict[str, str]) -> Iterator[Settings]:
    """Recipes that hold the pair, the plainest first."""
    kinds = [
        (pair[kind],) if kind in pair else OPEN[kind]
        for kind in ("budget", "allocation", "algorithm", "loss")
    ]
    own = pair.get("shaping")
    besides = [other for other in OPEN["shaping"] if other is None or other != own]
    for budget, allocation, algorithm, loss, beside in product(*kinds, besides):
        for settings in SETTINGS.get(str(budget), [{}]):
            shaping = [{"name": s, **SETTINGS.get(s, [{}])[0]} for s in (own, beside) if s]
            yield {
                "budget": {"name": budget, **settings},
                "allocation": {"name": allocation, **SETTINGS.get(str(allocation), [{}])[0]},
                "algorithm": algorithm,
                "loss": {"name": loss, "kl": "k2"},
                "shaping": shaping,
                "max_staleness": 2 if budget == "chunked" else 0,
            }


def table() -> str:
    """Markdown: the pairs that are refused, by reason."""
    refused: dict[str, list[Pair]] = {}
    total = 0
    for pair in pairs():
        found, total = outcome(pair), total + 1
        if isinstance(found, str):
            refused.setdefault(found, []).append(pair)
    rows = [f"| {_both(these)} | {why} |" for why, these in refused.items()]
    count = sum(map(len, refused.values()))
    head = f"{total} pairs, of which {total - count} run and {count} are refused:"
    return "\n".join([head, "", "| pair | why not |", "|---|---|", *rows])


def _both(these: Sequence[Pair]) -> str:
    """'brpo with unlimited, fixed': what all share, and what they share it with."""
    shared = set(these[0]).intersection(*map(set, these))
    one = next(iter(shared)) if len(these) > 1 and shared else these[0][0]
    others = [_named(other) for pair in these for other in pair if other != one]
    return f"{_named(one)} with {', '.join(others)}"


def _named(component: Component) -> str:
    """Its name, with the kind where several have it."""
    kind, name = component
    return name if sum(name in names(k) for k in KINDS) == 1 else f"{kind} {name}"
