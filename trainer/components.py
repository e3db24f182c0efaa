"""The components that a stage names, checked by their own files; and what pydantic says, told
in our words: one line per mistake.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from samplers import seam

COMPONENTS = {
    "verifier": "rewards.verifiers",
    "shaping": "rewards.shaping",
    "budget": "samplers.budgets",
    "allocation": "samplers.allocation",
    "algorithm": "trainer.algorithms",
}
ENTRIES = {
    "verifier": ("grade",),
    "shaping": ("shape", "shape_tokens"),
    "budget": ("plans",),
    "allocation": ("Allocator",),
    "algorithm": ("sequences",),
}
"""What a module of each kind must hold: one of these."""


def check(kind: str, package: str, spec: str | dict[str, Any]) -> None:
    """Find and validate one component; its mistakes are told under the field's name."""
    try:
        name, settings = seam.split(spec)
    except ValueError as error:
        raise ValueError(f"{kind}: {error}") from None
    if kind in ("verifier", "shaping") and ":" in name:
        _function(kind, name, settings)
        return
    try:
        module, _ = seam.resolve(package, spec)
    except ValidationError as error:
        raise ValueError(explain(error, seam.find(package, name).Config, kind)) from None
    if not any(callable(getattr(module, entry, None)) for entry in ENTRIES[kind]):
        raise ValueError(
            f"{kind}: module '{name}' has no {' or '.join(ENTRIES[kind])}; write one as in "
            f"{package.replace('.', '/')}, or name another module"
        )


def _function(kind: str, path: str, settings: Mapping[str, Any]) -> None:
    """A user's function by import path: it is there, and its settings are known ones."""
    from rewards import custom

    try:
        seam.function(path)
        if kind == "verifier":
            custom.Config(**settings)
    except ValidationError as error:
        raise ValueError(explain(error, custom.Config, kind)) from None
    except ValueError as error:
        raise ValueError(f"{kind}: {error}") from None


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """pydantic's report about a `model` as one line per mistake, with the nearest known field."""
    lines, found = [], error.errors()
    within = {item["loc"][:depth] for item in found for depth in range(len(item["loc"]))}
    for item in found:
        if item["type"] == "too_short" and item["loc"] in within:
            continue  # those that are wrong were not counted
        loc = [p for part in item["loc"] if not set("-[") & set(p := str(part))]  # no unions' tags
        where = [prefix, *loc]
        if where[1:2] == ["stages"]:  # the stage number only matters where there are several
            where = where[3:] if where[2:3] == ["0"] else where
        field = ".".join(filter(None, where))
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            known = _fields_at(model, item["loc"][:-1])
            near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
            message = f"unknown field; known here: {', '.join(sorted(known)) or 'none'}"
            if near:
                message = f"unknown field; did you mean '{near[0]}'?"
            if near == [item["loc"][-1]]:
                message = "belongs to the run, not to a stage; write it beside 'stages'"
        elif item["type"] == "missing":
            message = "is required and has no default"
        elif item["type"] != "value_error":
            message = f"{message}; got {item['input']!r}"
        # a rule about several fields stands at no field, and names them itself
        lines.append(f"{field}: {message}" if field else message)
    return "\n".join(lines)


def _fields_at(model: Any, loc: Sequence[Any]) -> list[str]:
    """Field names of the model that a pydantic location inside `model` points into."""
    for part in loc:
        fields = getattr(model, "model_fields", {})
        if part in fields:
            model = _model_in(fields[part].annotation)
    names = list(getattr(model, "model_fields", {}))
    return names + list(getattr(model, "known_beside", ()))


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for a in get_args(annotation) if (m := _model_in(a)) is not None), None)
