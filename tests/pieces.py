"""A budget policy of chunks that writes down what it observes."""

from __future__ import annotations

from typing import Any

from samplers.seam import Component
from samplers.types import Group, Plan, Prompt


class Config(Component):
    chunk: int
    think: int | None = None
    max_tokens: int


def plans(config: Config, prompt: Prompt, n: int, step: int, memory: Any, key: int) -> list[Plan]:
    assert memory.get("steps", 0) <= step
    return [Plan(config.max_tokens, think=config.think, chunk=config.chunk)] * n


def observe(config: Config, groups: list[Group], memory: dict[str, Any]) -> None:
    assert all(len(group.verdicts) == len(group) for group in groups)
    memory["steps"] = memory.get("steps", 0) + 1
    memory["seen"] = [*memory.get("seen", []), *(group.serial for group in groups)]


def natural(config: Config) -> Plan:
    return Plan(config.max_tokens, think=config.think, chunk=config.chunk)
