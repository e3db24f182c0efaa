"""Two recipes, and two sets of facts, compared: what changed, what it means, and what to do."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.changes.rules import FACTS, RUN, STAGE, At, Case, Rule, Verdict, rule
from trainer.config import Recipe, Stage
from trainer.settings import NAMED

LEFT_OUT = "(default)"
"""Stands for a setting of a component that its recipe does not write out."""
_SPECS = (*NAMED, "engine", "traces")
_VERSIONS = {one.field for one in FACTS if "." not in one.field} - {"grader", "examples"}
"""Facts that are looked for together: one that is missing was not installed."""
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Change:
    field: str
    """As it is set on the command line; of facts their name."""
    old: Any
    new: Any
    means: str
    verdict: Verdict
    bits: bool = True
    """Told, and the rest of the run is no longer bit for bit that of one recipe."""
    fact: bool = False
    """Found, not asked for."""

    def __str__(self) -> str:
        return f"{self.field}: {_shown(self.old)} -> {_shown(self.new)}: {self.means}"


def compare(
    before: Recipe, now: Recipe, at: At, was: Mapping[str, str], are: Mapping[str, str]
) -> list[Change]:
    """What differs, refusals first.

    Args:
        was: the facts at the checkpoint; what is not among them is not compared.
        are: those of now.
    """
    found = [*_of_run(before, now, at), *_of_stages(before, now, at, was, are)]
    found += _of_facts(before, now, at, was, are, {change.field for change in found})
    order: list[Verdict] = ["refused", "told", "free"]
    return sorted(found, key=lambda change: order.index(change.verdict))


def _of_run(before: Recipe, now: Recipe, at: At) -> Iterator[Change]:
    old, new = _plain(before), _plain(now)
    had, has = len(old.pop("stages")), len(new.pop("stages"))
    for path, a, b in _walk(old, new):
        yield _change(rule(RUN, Case(path, a, b, at)), path, a, b)
    if had == has:
        return
    gone = has <= at.stage
    means = "stages that have not begun: none of what is trained changes"
    if gone:
        means = f"stage {at.stage} is trained, at least in part"
    yield Change("stages", had, has, means, "refused" if gone else "told", bits=False)


def _of_stages(
    before: Recipe, now: Recipe, at: At, was: Mapping[str, str], are: Mapping[str, str]
) -> Iterator[Change]:
    for index, (old, new) in enumerate(zip(before.stages, now.stages, strict=False)):
        data = f"stages.{index}.dataset.train"
        same = data in was and was[data] == are.get(data)
        over = _over(before, now, at, index)
        for path, a, b in _walk(_plain(old), _plain(new)):
            case = Case(path, a, b, at, old, new, same)
            name = _name(f"stages.{index}.{path}", now)
            yield _change(over or _later(at, index) or rule(STAGE, case), name, a, b)


def _over(before: Recipe, now: Recipe, at: At, index: int) -> Rule | None:
    """For a stage whose steps are all trained. The last one may be given more."""
    last = index == len(before.stages) - 1
    more = last and now.stages[index].steps > at.step
    done = index == at.stage and at.step >= before.stages[index].steps and not more
    if index < at.stage or done:
        return Rule("", "refused", f"stage {index} is over, and cannot be trained again")
    return None


def _later(at: At, index: int) -> Rule | None:
    means = f"stage {index} has not begun: it will be as it says now"
    return Rule("", "told", means, bits=False) if index > at.stage else None


def _of_facts(
    before: Recipe,
    now: Recipe,
    at: At,
    was: Mapping[str, str],
    are: Mapping[str, str],
    changed: set[str],
) -> Iterator[Change]:
    for name in dict.fromkeys([*are, *(n for n in was if n in _VERSIONS)]):
        known = name in was or (name in _VERSIONS and "python" in was)
        if not known or was.get(name) == are.get(name):
            continue
        index, field = _place(name)
        if index is not None and index < at.stage:
            continue
        if _asked_for(field, index, now, changed):  # it follows from a setting, which is told
            continue
        stages = (before.stages, now.stages)
        i = at.stage if index is None else index
        old, new = (s[i] if i < len(s) else None for s in stages)
        case = Case(field, was.get(name), are.get(name), at, old, new)
        decides = (_later(at, index) if index is not None else None) or rule(FACTS, case)
        a, b = was.get(name, "none"), are.get(name, "none")
        if field == "code":
            a, b = (_revised(side, code) for side, code in ((was, a), (are, b)))
        yield Change(
            _name(name, now), a, b, decides.means, decides.verdict, decides.bits, fact=True
        )


def _asked_for(field: str, index: int | None, now: Recipe, changed: set[str]) -> bool:
    section = {"dataset.train": "data", "dataset.test": "data", "grader": "verifier"}.get(field)
    if section is None:
        return False
    name = _name(f"stages.{index}.{section}", now)
    return any(one == name or one.startswith(f"{name}.") for one in changed)


def _revised(facts: Mapping[str, str], code: str) -> str:
    return f"{facts['revision']} ({code})" if "revision" in facts else code


def _change(decides: Rule, name: str, old: Any, new: Any) -> Change:
    return Change(name, old, new, decides.means, decides.verdict, decides.bits)


def _plain(of: Recipe | Stage) -> dict[str, Any]:
    return of.model_dump(mode="json")


def _walk(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    name = path.rpartition(".")[2]
    if name in _SPECS:
        old, new = _spelled(old), _spelled(new)
    if name == "shaping":
        old, new = _by_name(old), _by_name(new)
    if isinstance(old, dict) and isinstance(new, dict):
        keys = {**old, **new}
        pairs = [(key, old.get(key, LEFT_OUT), new.get(key, LEFT_OUT)) for key in keys]
    elif path == "stages" and len(old) == len(new):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        if old != new:
            yield path, old, new
        return
    for key, a, b in pairs:
        yield from _walk(a, b, f"{path}.{key}" if path else str(key))


def _spelled(spec: Any) -> Any:
    return {"name": spec} if isinstance(spec, str) and spec != LEFT_OUT else spec


def _by_name(specs: Any) -> Any:
    """Shapers by their names; as they are, where that would lose something."""
    if not isinstance(specs, list):
        return specs
    named = [_spelled(one) for one in specs]
    return {one["name"].rpartition(".")[2].rpartition(":")[2]: one for one in named}


def _place(name: str) -> tuple[int | None, str]:
    """(stage, name in it) of a fact; None: of the run."""
    if not name.startswith("stages."):
        return None, name
    _, index, field = name.split(".", 2)
    return int(index), field


def _name(path: str, recipe: Recipe) -> str:
    """As it is set: the only stage of a run needs no number."""
    return path.removeprefix("stages.0.") if len(recipe.stages) == 1 else path


def _shown(value: Any) -> str:
    bare = isinstance(value, str) and value and value == value.strip()
    text = value if bare else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def weigh(changes: Sequence[Change], folder: Path, recipe: Recipe) -> None:
    """Nothing, if a run may go on with them.

    Raises:
        ValueError: a line per change, those that are refused first, and how to start a new run.
    """
    refused = [change for change in changes if change.verdict == "refused"]
    if not refused:
        return
    lines = [
        f"{change}; {'restore it' if change.fact else 'leave it as it was'}, or start a new run"
        for change in refused
    ]
    raise ValueError("\n".join([*lines, *told(changes), _anew(folder, recipe)]))


def told(changes: Sequence[Change]) -> list[str]:
    """Lines for people of what may be."""
    return [str(change) for change in changes if change.verdict == "told"]


def same_bits(changes: Sequence[Change], recipe: Recipe) -> bool:
    """Whether the run stays bit for bit that of one recipe, if that was promised."""
    return not recipe.deterministic or not any(c.bits for c in changes if c.verdict == "told")


def _anew(folder: Path, recipe: Recipe) -> str:
    """How a new run begins with what this one has trained."""
    if len(recipe.stages) > 1:
        return (
            f"a new run: a recipe of the stages that are left, with model.path={folder} in its "
            "first one"
        )
    words = [f"{folder}/config.yaml", f"name={recipe.name}-2", f"stages.0.model.path={folder}"]
    return f"a new run with what is trained: laconic train {shlex.join(words)}"
