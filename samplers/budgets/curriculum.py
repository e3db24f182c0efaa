"""curriculum: another policy whose settings change with the step of the stage.

Train Long, Think Short, Hammoud et al. 2025 (arXiv:2508.08940): a budget in the prompt that is
tightened in a few drops. Any field of any policy may have a schedule (`samplers/schedules.py`):

    budget: {name: curriculum, of: {name: fixed, answer: 8},
             fields: {think: {kind: exponential, start: 256, factor: 0.7, interval: 150, end: 87}}}
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import ModuleType
from typing import Any

from pydantic import Field, PrivateAttr, model_validator

from samplers import seam
from samplers.budgets import base
from samplers.facts import CHUNKS
from samplers.schedules import Schedule
from samplers.seam import Component
from samplers.types import Group, Plan, Prompt

LONGEST = 100_000
"""Last step that a schedule may end at."""


class Config(Component):
    of: Any
    """The policy whose settings change: a name, or a mapping with `name` and settings."""
    fields: dict[str, Schedule] = Field(min_length=1)
    """Field of that policy -> its schedule. `modes.low.think` is a field of a field, `think.1` the
    upper end of a range."""
    max_tokens: int | None = Field(None, ge=1)
    """Cap of the whole response; a recipe's rollout.max_tokens unless set here."""
    _made: dict[str, tuple[ModuleType, Any]] = PrivateAttr(default_factory=dict)
    _changes: list[int] = PrivateAttr(default_factory=list)

    @model_validator(mode="after")
    def _holds(self) -> Config:
        if self.last_step > LONGEST:
            raise ValueError(
                f"fields: the schedules end at step {self.last_step}, later than any stage; let "
                f"them end by {LONGEST}"
            )
        known = -1
        for step in range(self.last_step + 1):
            try:
                self.at(step)
            except ValueError as error:
                raise ValueError(f"at step {step}: {error}") from None
            if len(self._made) > known:
                known = len(self._made)
                self._changes.append(step)
        if CHUNKS in base.said("provides", *self.final):
            raise ValueError("of: chunked goes outside: name=chunked, of={name: curriculum, ...}")
        return self

    @cached_property
    def last_step(self) -> int:
        """The first step from which no schedule changes anything."""
        return max(schedule.last_step for schedule in self.fields.values())

    @property
    def final(self) -> tuple[ModuleType, Any]:
        """Module and config of the inner policy when nothing changes any more."""
        return self.at(self.last_step)

    def at(self, step: int) -> tuple[ModuleType, Any]:
        """Module and config of the inner policy as it is at `step`."""
        values = {path: schedule.value(step) for path, schedule in self.fields.items()}
        key = repr(values)
        if key not in self._made:
            self._made[key] = base.inner(_with(self.of, values), self.max_tokens)
        return self._made[key]


def _with(of: str | Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The spec `of` with fields at dotted paths replaced; a path may run through a default.

    Raises:
        ValueError: a path runs through something that is not there.
    """
    name, settings = seam.split(of)
    known = getattr(seam.find("samplers.budgets", name), "Config", Component).model_fields
    settings = copy.deepcopy(settings)
    for path, value in values.items():
        head, *rest = path.split(".")
        if rest and head not in settings and head in known and not known[head].is_required():
            settings[head] = known[head].get_default(call_default_factory=True)
        settings[head] = _put(settings.get(head), rest, value, path)
    return {"name": name, **settings}


def _put(old: Any, path: Sequence[str], value: Any, whole: str) -> Any:
    """`old` with the value at `path` inside it replaced."""
    if not path:
        return value
    head, *rest = path
    if isinstance(old, list | tuple) and head.isdigit() and int(head) < len(old):
        changed = list(old)
        changed[int(head)] = _put(old[int(head)], rest, value, whole)
        return changed
    if isinstance(old, Mapping):
        return {**old, head: _put(old.get(head), rest, value, whole)}
    raise ValueError(
        f"fields.{whole}: there is no '{head}' in {old!r}; write that setting out in of"
    )


def plans(config: Config, prompt: Prompt, n: int, step: int, memory: Any, key: int) -> list[Plan]:
    """The inner policy's plans with the settings of this step.

    Raises:
        ValueError: what the inner policy raises.
    """
    module, inner = config.at(step)
    memory["step"] = step  # which settings hold when their rollouts are observed
    made: list[Plan] = module.plans(inner, prompt, n, step, memory.setdefault("of", {}), key)
    return made


def observe(config: Config, groups: Sequence[Group], memory: dict[str, Any]) -> None:
    module, inner = config.at(memory.get("step", 0))
    if hasattr(module, "observe"):
        module.observe(inner, groups, memory.setdefault("of", {}))


def natural(config: Config) -> Plan:
    """As the inner policy has it in the end."""
    return base.natural(*config.final)


def asked(config: Config) -> dict[str, Plan]:
    """What the inner policy asks for in the end."""
    return base.asked(*config.final)


def last_step(config: Config) -> int:
    """The first step from which nothing changes: a stage that ends before it never gets there."""
    return max(config.last_step, base.last_step(*config.final))


def changes(config: Config) -> list[int]:
    """The first step of every setting that there will be."""
    return list(config._changes)


def provides(config: Config) -> set[str]:
    """What is true at any step: so are needs and refusals."""
    return {fact for made in config._made.values() for fact in base.said("provides", *made)}


def requires(config: Config) -> dict[str, str]:
    return _ever(config, "requires")


def refuses(config: Config) -> dict[str, str]:
    return _ever(config, "refuses")


def _ever(config: Config, what: str) -> dict[str, str]:
    found = [dict(base.said(what, *made)) for made in config._made.values()]
    return {fact: why for reasons in found for fact, why in reasons.items()}
