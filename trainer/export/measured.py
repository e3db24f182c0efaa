"""The table of accuracy against budget that goes with an exported model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NAME = re.compile(
    r"^accuracy$|^(?:(?P<task>.+?)/)??(?:(?P<how>prompt/soft_|prompt/|effort/))?"
    r"accuracy@(?P<budget>[\w.-]+)$"
)
_ASKED = re.compile(r"^asked/(?P<budget>[^/]+)/accuracy$")
BESIDE = ("tokens", "think_tokens", "answer_tokens", "forced")
"""What is told of each accuracy, if it was measured."""
HOW = {
    "cut": "thought cut at",
    "announced": "asked for",
    "both": "asked for and cut at",
    "effort": "effort",
}


def of_folder(folder: Path) -> dict[str, Any]:
    """The table of an evaluation's folder.

    Raises:
        ValueError: no evaluation there, or none with an accuracy.
    """
    file = folder / "metrics.json"
    try:
        found = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"--eval: '{folder}' holds no metrics.json; give the folder of `laconic eval ... --out`"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: broken JSON ({error}); evaluate again") from None
    metrics = found.get("metrics", found) if isinstance(found, dict) else None
    rows = table(metrics) if isinstance(metrics, Mapping) else []
    if not rows:
        raise ValueError(f"--eval: {file} has no accuracy; give the folder of an evaluation")
    return {"rows": rows, "settings": _settings(folder)}


def _settings(folder: Path) -> dict[str, Any]:
    """What of an evaluation's settings a reader of its table needs."""
    file = folder / "eval.json"
    try:
        said = json.loads(file.read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    kept = ("mode", "samples", "temperature", "top_p", "top_k", "seed", "engine", "dtype")
    flat = {**said, **said.get("identity", {})} if isinstance(said, dict) else {}
    return {name: flat[name] for name in kept if name in flat}


def of_run(run: Path | None, step: int | None) -> dict[str, Any] | None:
    """The table of a run's last evaluation that is no later than `step`; None without any."""
    steps: dict[int, Path] = {}
    for file in (run / "eval").glob("step-*.json") if run else ():
        steps[int(file.stem.removeprefix("step-"))] = file
    known = [at for at in steps if step is None or at <= step]
    if not known:
        return None
    found = json.loads(steps[max(known)].read_text())
    rows = table(found["metrics"])
    settings = {name: value for name, value in found.items() if name not in ("metrics", "step")}
    return {"rows": rows, "settings": settings, "step": max(known)} if rows else None


def table(metrics: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each accuracy: task, how, budget, and value with interval of what is known."""
    out = []
    for name, metric in metrics.items():
        asked, plain = _ASKED.match(name), _NAME.match(name)
        if asked:
            number = asked["budget"].isdigit()
            how, task, budget = "announced" if number else "effort", "", asked["budget"]
        elif plain:
            told = {
                "prompt/soft_": "announced",
                "prompt/": "both",
                "effort/": "effort",
                None: "cut",
            }
            how, task, budget = told[plain["how"]], plain["task"] or "", plain["budget"] or "inf"
        else:
            continue
        row = {"task": task, "how": how, "budget": budget, "accuracy": _interval(metric)}
        for other in BESIDE:
            named = _sibling(name, other)
            if named not in metrics and name == "accuracy":
                named = f"{other}/mean"  # as training's evaluation calls that of whole thoughts
            if named in metrics:
                row[other] = _interval(metrics[named])
        out.append(row)
    return out


def _sibling(name: str, other: str) -> str:
    head, _, tail = name.rpartition("accuracy")
    return f"{head}{other}{tail}"


def _interval(metric: Mapping[str, Any]) -> dict[str, Any]:
    return {field: metric.get(field) for field in ("value", "low", "high", "n")}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table for people; intervals are those of the evaluation (95% over problems)."""
    tasks = any(row["task"] for row in rows)
    shown = [one for one in BESIDE if any(one in row for row in rows)]
    names = [*(["task"] if tasks else []), "budget", "accuracy", *shown]
    lines = [
        "| " + " | ".join(n.replace("_", " ") for n in names) + " |",
        "|---" * len(names) + "|",
    ]
    for row in rows:
        budget = "no limit" if row["budget"] == "inf" else f"{HOW[row['how']]} {row['budget']}"
        cells = [*([row["task"]] if tasks else []), budget, _ranged(row["accuracy"])]
        cells += [_shown(row.get(one), 3 if one == "forced" else 1) for one in shown]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _shown(metric: Mapping[str, Any] | None, digits: int) -> str:
    value = None if metric is None else metric["value"]
    return f"{value:.{digits}f}" if isinstance(value, int | float) else ""


def _ranged(metric: Mapping[str, Any]) -> str:
    ends = (metric["low"], metric["high"])
    known = all(isinstance(end, int | float) for end in ends)
    return _shown(metric, 3) + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if known else "")
