"""A recipe's fields as they are written: layers of mappings, laid over each other.

What the fields mean is `trainer/config.py`'s; here are only the few names whose settings belong
to what they name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

NAMED = ("verifier", "budget", "allocation", "algorithm", "task", "loss")
"""Fields that name something and give it settings: another name takes none of the old ones."""
SOURCES = ("task", "path", "hub")
"""Where data come from: one replaces the others."""


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings merge; anything else is replaced.

    Another component replaces the old one with its settings; settings alone are for the one that
    is there (`algorithm.std=none` keeps `algorithm: grpo`). Another source of data likewise.
    """
    out = dict(below)
    for key, value in above.items():
        old = out.get(key)
        out[key] = value
        if not isinstance(value, Mapping):
            continue
        if isinstance(old, str) and key in NAMED:
            old = {"name": old}
        if isinstance(old, Mapping) and not _another(key, old, value):
            out[key] = merge(_without_other_sources(old, value) if key == "data" else old, value)
    return out


def _another(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return key in NAMED and "name" in old and new.get("name", old["name"]) != old["name"]


def _without_other_sources(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    chosen = any(new.get(source) for source in SOURCES)
    return {k: v for k, v in old.items() if not chosen or k not in SOURCES or k in new}


def override(raw: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Apply `a.b=c` settings (values are YAML); `stages.0.steps=5` reaches into one stage.

    Raises:
        ValueError: not of that form, or every stage sets the field itself.
    """
    for text in assignments:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise ValueError(f"'{text}': settings are written key=value, e.g. optim.lr=1e-3")
        keys = path.split(".")
        try:
            parsed = _number(yaml.safe_load(value))
        except yaml.YAMLError:
            raise ValueError(f"'{text}': '{value}' is not a YAML value; quote it?") from None
        if keys[0] == "stages" and len(keys) > 2 and keys[1].isdigit():
            stages = raw.get("stages") or [{}]
            if int(keys[1]) >= len(stages):
                raise ValueError(f"'{text}': the recipe has {len(stages)} stages, counted from 0")
            stages[int(keys[1])] = merge(stages[int(keys[1])], _nest(keys[2:], parsed))
            raw["stages"] = stages
            continue
        for i, stage in enumerate(raw.get("stages") or []):
            if keys[0] in stage and _has(stage, keys):
                raise ValueError(
                    f"'{path}' is set by stage {i} itself; write stages.{i}.{path}={value}"
                )
        raw = merge(raw, _nest(keys, parsed))
    return raw


def _nest(keys: Sequence[str], value: Any) -> dict[str, Any]:
    return {keys[0]: _nest(keys[1:], value) if len(keys) > 1 else value}


def _has(tree: Any, keys: Sequence[str]) -> bool:
    """Whether `tree` sets what `keys` reach, or something whole that it is a part of."""
    for key in keys:
        if not isinstance(tree, Mapping):
            return True
        if key not in tree:
            return False
        tree = tree[key]
    return True


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as a string; people mean a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
