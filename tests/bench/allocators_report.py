"""Tables and the figure of `tests/bench/allocators.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.bench.allocators import REGIMES, Curve, arms, rollouts, tokens
from tests.bench.bernoulli import Regime
from trainer.eval import statistics
from trainer.eval.statistics import Estimate
from trainer.report import style

Floats = NDArray[np.float64]
PAID = ("rollouts", "tokens")
HEADS = (
    "allocator", "prompts a step", "effective", "success at equal rollouts", "hardest level",
    "success at equal tokens", "rollouts to uniform's", "tokens to uniform's",
)  # fmt: skip
WIDEST = 1.5
"""Right end of the figure's axes."""


class Result(NamedTuple):
    """One arm in one regime against uniform, over the seeds of both."""

    arm: str
    prompts: int
    effective: Estimate
    """Share of the rollouts paid for that trained with an advantage other than 0."""
    success: dict[str, Estimate]
    """Mean success when uniform's total of rollouts, or tokens, is paid."""
    gain: dict[str, statistics.Comparison]
    """The same less uniform's."""
    hardest: Estimate
    """Success at the hardest level that can be solved, at equal rollouts."""
    reached: dict[str, Floats]
    """[seeds] share of uniform's total that uniform's final success took; NaN: never reached."""
    ran: dict[str, Floats]
    """[seeds] share of uniform's total that was paid in all."""


def results(rows: Sequence[dict[str, Any]], name: str, sgd: bool) -> list[Result]:
    """Arms as they are listed, over the seeds that they share with uniform."""
    found: dict[str, dict[int, Curve]] = {}
    counts: dict[str, int] = {}
    for row in rows:
        if (row["regime"], row["sgd"]) == (name, sgd):
            found.setdefault(row["arm"], {})[row["seed"]] = row["curve"]
            counts[row["arm"]] = row["prompts"]
    base = found.get("uniform", {})
    out = []
    for arm in arms(REGIMES[name].rollouts):
        seeds = sorted(set(found.get(arm, {})) & set(base))
        if len(seeds) > 1:
            curves = [found[arm][s] for s in seeds]
            out.append(_result(REGIMES[name], arm, counts[arm], curves, [base[s] for s in seeds]))
    return out


def _result(
    regime: Regime, arm: str, count: int, curves: Sequence[Curve], bases: Sequence[Curve]
) -> Result:
    totals = {"rollouts": rollouts(regime), "tokens": rollouts(regime) * tokens(regime)}
    hardest = [level.name for level in regime.levels if level.rates[1] > 0][-1]
    whole = totals["rollouts"]
    ends = {k: _at(bases, k, totals[k], "all") for k in PAID}
    at = {k: _at(curves, k, totals[k], "all") for k in PAID}
    reached = {k: [_reach(c, k, e) for c, e in zip(curves, ends[k], strict=True)] for k in PAID}
    return Result(
        arm,
        count,
        statistics.mean(_at(curves, "rollouts", whole, "effective") / whole),
        {k: statistics.mean(at[k]) for k in PAID},
        {k: statistics.paired(at[k], ends[k]) for k in PAID},
        statistics.mean(_at(curves, "rollouts", whole, hardest)),
        {k: np.array(reached[k]) / totals[k] for k in PAID},
        {k: np.array([curve[k][-1] for curve in curves]) / totals[k] for k in PAID},
    )


def _at(curves: Sequence[Curve], axis: str, paid: float, name: str) -> Floats:
    return np.array([np.interp(paid, curve[axis], curve[name]) for curve in curves])


def _reach(curve: Curve, axis: str, success: float) -> float:
    """What was paid when the mean success was first as high; NaN where it never was."""
    values, paid = np.array(curve["all"]), np.array(curve[axis], dtype=np.float64)
    above = np.flatnonzero(values >= success)
    if not len(above):
        return float("nan")
    i = int(above[0])
    if i == 0 or values[i] == values[i - 1]:
        return float(paid[i])
    share = (success - values[i - 1]) / (values[i] - values[i - 1])
    return float(paid[i - 1] + share * (paid[i] - paid[i - 1]))


def reach(result: Result, axis: str) -> tuple[Estimate, bool]:
    """Mean over seeds, and whether it is only a bound: a seed that never got there counts with all
    that it paid."""
    values = result.reached[axis]
    never = np.isnan(values)
    return statistics.mean(np.where(never, result.ran[axis], values)), bool(never.any())


def table(found: Sequence[Result]) -> str:
    heads = [
        "allocator",
        "prompts a step",
        "effective rollouts",
        "success, equal rollouts",
        "hardest level",
    ]
    heads += ["success, equal tokens", "rollouts to uniform's", "tokens to uniform's"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for one in found:
        cells = [one.arm, str(one.prompts), f"{one.effective.value:.0%}"]
        cells += [_success(one, "rollouts"), f"{one.hardest.value:.3f}", _success(one, "tokens")]
        cells += [_share(one, axis) for axis in PAID]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _success(one: Result, axis: str) -> str:
    value = f"{one.success[axis].value:.3f}"
    if one.arm == "uniform":
        return value
    gain = one.gain[axis].difference
    return f"{value} ({gain.value:+.3f} +- {gain.half_width:.3f})"


def _share(one: Result, axis: str) -> str:
    if one.arm == "uniform":
        return "1"
    estimate, bound = reach(one, axis)
    return f"{'> ' if bound else ''}{estimate.value:.2f} +- {estimate.half_width:.2f}"


def summary(rows: Sequence[dict[str, Any]], sgd: bool) -> str:
    """Per arm and regime: rollouts / tokens to uniform's final success, over what uniform paid."""
    shown = {name: {r.arm: r for r in results(rows, name, sgd)} for name in REGIMES}
    lines = [f"| to uniform's | {' | '.join(regime.title for regime in REGIMES.values())} |"]
    lines.append(f"|{'---|' * (1 + len(REGIMES))}")
    for arm in list(arms(8))[1:]:
        found = [shown[name].get(arm) for name in REGIMES]
        cells = [" / ".join(_share(one, k) for k in PAID) if one else "" for one in found]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(rows: Sequence[dict[str, Any]]) -> style.Figure:
    return style.Figure(
        "allocators",
        "What it costs to get where uniform allocation gets",
        "",
        lambda canvas, narrow: _draw(canvas, rows),
        wide=(10.4, 3.7),
    )


def _draw(canvas: Any, rows: Sequence[dict[str, Any]]) -> bool:
    shown = {
        name: [r for r in results(rows, name, False) if r.arm != "uniform"] for name in REGIMES
    }
    panels = canvas.subplots(1, len(shown), sharey=True)
    order = [one.arm for one in max(shown.values(), key=len)]
    for axes, (name, found) in zip(panels, shown.items(), strict=True):
        axes.axvline(1, color=style.MUTED, lw=1, linestyle=(0, (4, 2)), zorder=1)
        for one in found:
            y = len(order) - 1 - order.index(one.arm)
            for axis, shift, colour in zip(PAID, (0.16, -0.16), style.SERIES, strict=False):
                _dot(axes, y + shift, *reach(one, axis), colour, axis)
        axes.set_title(REGIMES[name].title, loc="left", color=style.INK)
        axes.set_xlim(0, WIDEST + 0.06)
        axes.set_xticks([0, 0.5, 1, 1.5])
        axes.grid(axis="x")
    panels[0].set_yticks(range(len(order)), order[::-1])
    panels[len(panels) // 2].set_xlabel(
        "paid until uniform's final success is reached, over what uniform paid (arrow: more)"
    )
    handles, labels = panels[0].get_legend_handles_labels()
    known = dict(zip(labels, handles, strict=True))
    look = {"frameon": False, "labelcolor": "linecolor", "ncols": 2}
    canvas.legend(known.values(), known.keys(), loc="outside upper right", **look)
    return True


def _dot(axes: Any, y: float, at: Estimate, bound: bool, colour: str, axis: str) -> None:
    if bound or at.value > WIDEST:
        axes.plot(WIDEST, y, marker=">", color=colour, linestyle="", label=axis, clip_on=False)
        return
    axes.hlines(y, at.low, min(at.high, WIDEST), color=colour, lw=1.4, alpha=0.8)
    axes.plot(at.value, y, marker="o", color=colour, linestyle="", label=axis)


def write(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Print every table; the figure goes to the folder."""
    for sgd in sorted({row["sgd"] for row in rows}):
        for name, regime in REGIMES.items():
            if found := results(rows, name, sgd):
                seeds = len({r["seed"] for r in rows if (r["regime"], r["sgd"]) == (name, sgd)})
                steps = "plain steps" if sgd else "Adam"
                print(f"\n### {regime.title} ({steps}, {seeds} seeds)\n\n{table(found)}")
        print(f"\n### {'plain steps' if sgd else 'Adam'}\n\n{summary(rows, sgd)}")
    style.files(figure(rows), folder)
