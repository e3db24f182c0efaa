"""What a run took, against what it was estimated to take, and the rows that would have told it.

From metrics.jsonl alone: nothing about cost is kept with a run, its plan is made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launch import costs
from launch.costs import Estimate, Sizes, tokens
from launch.throughputs import Row, Span, told
from trainer import tracking
from trainer.config import Stage
from trainer.memory import BYTES

PHASES = ("generate", "score", "train", "sync", "evaluate")
"""That are estimated."""
BESIDE = ("step", "wait", "overlapped", "learner")
"""Times that are of no phase of their own."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Means over the steps of a stage, without the first, which warms up."""

    steps: int
    seconds: Mapping[str, float]
    """Of a phase in a step; `evaluate` of one evaluation; `step` without those of some steps."""
    beside: Mapping[str, float]
    """Of what is not estimated."""
    rollouts: float
    response: float
    """Tokens of one."""
    computed: float
    """Share of the rows that was."""
    kept: float
    """Rows that could train."""


def measured(records: Sequence[Mapping[str, Any]], first: int, stage: Stage) -> Measured | None:
    """Of the stage's steps, which follow step `first` of the run; None before its second step."""
    mine = [r for r in records if first < r["step"] <= first + stage.steps and _time(r, "step")]
    mine = mine[1:]
    if not mine:
        return None
    sampled, rollouts = _sum(mine, "tokens/sampled"), _sum(mine, "rollouts")
    evaluated = [r for r in mine if _time(r, "evaluate")]
    names = {name.removeprefix("time/") for r in mine for name in r if _phase(name)}
    each = {name: sum(_time(r, name) for r in mine) / len(mine) for name in names}
    if evaluated:
        each["evaluate"] = sum(_time(r, "evaluate") for r in evaluated) / len(evaluated)
    each["driver"] = sum(_time(r, "other_share") * _time(r, "step") for r in mine) / len(mine)
    whole = sum(_time(r, "step") - _time(r, "evaluate") - _time(r, "checkpoint") for r in mine)
    return Measured(
        len(mine),
        {name: each[name] for name in PHASES if each.get(name)} | {"step": whole / len(mine)},
        {name: each[name] for name in sorted(each) if name not in (*PHASES, *BESIDE)},
        rollouts / len(mine),
        sampled / rollouts if rollouts else 0.0,
        _sum(mine, "tokens") / max(_sum(mine, "tokens/kept") * stage.epochs, 1.0),
        _sum(mine, "rollouts_kept") / len(mine),
    )


def _phase(name: str) -> bool:
    """Metrics of the clock: no rates, shares or latencies."""
    what = name.removeprefix("time/")
    return what != name and not what.startswith("verdict_") and not what.endswith(("_s", "_share"))


def _time(record: Mapping[str, Any], name: str) -> float:
    return float(record.get(f"time/{name}") or 0.0)


def _sum(records: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(float(r.get(name) or 0.0) for r in records)


def as_it_was(sizes: Sizes, found: Measured) -> Sizes:
    """The sizes that the run had."""
    if not found.rollouts:  # supervised: batches are as they were said to be
        return sizes
    rows = found.kept * found.computed
    return Sizes(
        Span(found.rollouts, found.rollouts),
        Span(found.response, found.response),
        sizes.prompt,
        Span(rows, rows),
    )


def rows(again: Estimate, found: Measured, source: str) -> list[Row]:
    """What the run says of its hardware.

    Args:
        again: the stage's estimate with the sizes that it had.
    """
    stage, shape, units, phases, out = again.stage, again.shape, again.units, again.phases, []
    for name in ("generate", "score", "train", "sync"):
        seconds, phase = found.seconds.get(name, 0.0), phases.get(name)
        if not seconds or phase is None:
            continue
        row: dict[str, Any] = {"what": name, "hardware": phase.wanted.hardware or "UNKNOWN"}
        row["engine"] = phase.wanted.engine or "deepspeed"
        row |= {"parameters": shape.parameters, "dtype": stage.model.dtype}
        if name == "generate":
            gpus = sum(units.engines.values())
            row["tokens_per_s"] = _rounded(again.sizes.sampled.high / seconds / gpus)
            together = min(found.rollouts / again.engines, stage.rollout.engine.slots)
            row["rows"] = max(1, int(together))
        elif name == "sync":
            size = BYTES[stage.model.dtype] * shape.parameters
            row["bytes_per_s"] = _rounded(size / seconds)
        else:
            times = float(len(costs.scored(stage)))
            if name == "train":
                row["gradient_checkpointing"] = stage.learner.gradient_checkpointing
                row["lora"] = stage.model.lora is not None
                times = costs.passes(stage) / Row(**row, tokens_per_s=1, source="-").work
            trained = again.sizes.trained.high * times
            row["tokens_per_s"] = _rounded(trained / seconds / units.learners)
        out.append(Row(**row, source=source))
    return out


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


def against(folder: Path, stages: Sequence[tuple[Stage, Estimate | None]]) -> Iterator[str]:
    """Lines about the run in `folder`, whose stages were estimated beforehand.

    Raises:
        ValueError: its metrics are broken.
    """
    records, first = tracking.read(folder), 0
    for index, (stage, before) in enumerate(stages):
        found = measured(records, first, stage)
        first += stage.steps
        if before is None:
            continue
        yield ""
        if found is None:
            yield f"# Stage {index}: {folder} has no two steps of it whose time is known"
            continue
        yield f"# Stage {index}, estimated and measured (means of {found.steps} steps of {folder})"
        after = replace(before, sizes=as_it_was(before.sizes, found))
        yield from _table(before, after, found)
        yield "rows that say so, for --throughputs FILE:"
        yield told(rows(after, found, f"{folder.name}, {found.steps} steps, {_machine(folder)}"))


def _table(before: Estimate, after: Estimate, found: Measured) -> Iterator[str]:
    line = "  {:<16} {:>16} {:>20} {:>12}".format
    yield line("", "beforehand", "at these lengths", "measured").rstrip()
    if found.rollouts:
        yield line("rollouts", tokens(before.sizes.rollouts), "", f"{found.rollouts:,.0f}")
        yield line("response tokens", tokens(before.sizes.response), "", f"{found.response:,.0f}")
        share = f"{costs.TRAINED.low:.0%}-{costs.TRAINED.high:.0%}"
        yield line("rows that train", share, "", f"{found.computed:.0%}")
    for name in (*PHASES, "step"):
        if name not in found.seconds and name not in before.phases:
            continue
        cells = [one.step if name == "step" else _seconds(one, name) for one in (before, after)]
        told_of = ["-" if cell is None else str(cell) for cell in cells]
        seconds = found.seconds.get(name)
        yield line(f"{name}, s", *told_of, "-" if seconds is None else f"{seconds:.2g}")
    beside = ", ".join(f"{name} {seconds:.2g} s" for name, seconds in found.beside.items())
    if beside:
        yield f"  not estimated: {beside}, means of all steps"


def _seconds(one: Estimate, name: str) -> Span | None:
    return one.phases[name].seconds if name in one.phases else None


def _machine(folder: Path) -> str:
    """As the run's own environment.json has it."""
    try:
        found = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        return str(found["machine"])
    except (OSError, ValueError, KeyError, TypeError):
        return "an unknown machine"
