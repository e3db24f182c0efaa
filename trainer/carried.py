"""Groups with unfinished rollouts as arrays: what a checkpoint keeps of them.

Their tokens, logprobs and spans are columns (`samplers/columns.py`); plans, texts and which prompt
a group asks are a few words of JSON, as an array of bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samplers import columns
from samplers.types import Group, Job, Plan, Prompt

Arrays = dict[str, NDArray[Any]]
_DEFAULT = Plan(max_tokens=0)


def pack(groups: Sequence[Group]) -> Arrays:
    """Arrays of `groups`, which have no verdicts yet; none for no groups."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    if not rollouts:
        return {}
    packed = columns.pack(rollouts)
    lists = {name: v for name, v in packed.items() if not isinstance(v, np.ndarray)}
    plans = [json.dumps(_settings(rollout.plan)) for rollout in rollouts]
    numbers = {plan: i for i, plan in enumerate(dict.fromkeys(plans))}  # most share theirs
    about = {
        "groups": [(group.serial, group.prompt.index, len(group)) for group in groups],
        "plans": [json.loads(plan) for plan in numbers],
        "lists": lists,
    }
    return {
        **{name: v for name, v in packed.items() if name not in lists},
        "plans": np.array([numbers[plan] for plan in plans], np.int32),
        "seeds": np.array([rollout.seed for rollout in rollouts], np.uint64),
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
    }


def unpack(arrays: Mapping[str, NDArray[Any]], prompt: Callable[[int], Prompt]) -> list[Group]:
    """The groups that were packed; `prompt` gives the prompt of an index."""
    if not arrays:
        return []
    about = json.loads(arrays["about"].tobytes())
    plans = [_plan(settings) for settings in about["plans"]]
    asked = [(prompt(index), serial) for serial, index, n in about["groups"] for _ in range(n)]
    each = zip(asked, arrays["rows"].tolist(), arrays["plans"], arrays["seeds"], strict=True)
    jobs = [
        Job(asking, plans[plan], serial, row[1], int(seed))
        for (asking, serial), row, plan, seed in each
    ]
    rollouts = iter(columns.unpack({**arrays, **about["lists"]}, jobs))
    starts = np.cumsum([0, *(n for _, _, n in about["groups"])])
    return [
        Group(asked[start][0], serial, tuple(next(rollouts) for _ in range(n)))
        for start, (serial, _, n) in zip(starts, about["groups"], strict=False)
    ]


def _settings(plan: Plan) -> dict[str, Any]:
    """What of the plan is not as by default."""
    values = {field.name: getattr(plan, field.name) for field in fields(plan)}
    return {name: v for name, v in values.items() if v != getattr(_DEFAULT, name)}


def _plan(settings: Mapping[str, Any]) -> Plan:
    tuples: dict[str, Any] = {
        n: tuple(v) if isinstance(v, list) else v for n, v in settings.items()
    }
    return Plan(**tuples)
