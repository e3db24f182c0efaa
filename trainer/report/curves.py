"""One line or point of a figure: an arm, or the base, how it looks and what it measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.eval import statistics
from trainer.eval.statistics import Estimate
from trainer.report import style, tokens
from trainer.report.data import Arm, Evaluation, Run, pooled
from trainer.report.labels import FEW, Label


@dataclass(frozen=True)
class Curve:
    """One line of a figure: an arm, or the base."""

    name: str
    colour: str
    marker: str
    line: Any
    base: bool
    evaluations: Sequence[Evaluation]
    runs: Sequence[Run] = ()

    def at(self, metric: str) -> Estimate:
        """As in the table; of two seeds their range, since t with one degree of freedom fills
        any figure."""
        estimate = pooled(self.evaluations, metric)
        return _of_two([e.estimate(metric).value for e in self.evaluations]) or estimate

    def after(self, metric: str, generated: float) -> Estimate:
        """`at` when so many tokens were generated, between evaluations; NaN where a seed had ended.
        The base is what it is."""
        if self.base:
            return self.at(metric)
        values = [tokens.after(*tokens.curve(run, metric), generated) for run in self.runs]
        return _of_two(values) or statistics.mean(values)

    @property
    def look(self) -> dict[str, Any]:
        return {
            "color": self.colour,
            "linestyle": self.line,
            "marker": self.marker,
            "markeredgecolor": style.PAPER,
            "markeredgewidth": 0.8,
            "zorder": 2 if self.base else 3,
        }


def _of_two(values: Sequence[float]) -> Estimate | None:
    return Estimate(sum(values) / 2, min(values), max(values), 2) if len(values) == 2 else None


def curves(found: Sequence[Arm], base: Evaluation | None) -> list[Curve]:
    out = [Curve("base", style.MUTED, "o", (0, (4, 2)), True, [base])] if base else []
    for i, arm in enumerate(found):
        if arm.finals:
            look = (style.colour(i), style.marker(i), style.line(i))
            out.append(Curve(arm.name, *look, False, arm.finals, arm.runs))
    return out


def label(curve: Curve, x: float, y: float) -> Label:
    return Label(curve.name, curve.colour, x, y, curve.look)


def band(shown: Sequence[Curve]) -> dict[str, Any]:
    """How bands look: fainter where there are many."""
    return {"alpha": 0.13 if len(shown) <= FEW else 0.05, "lw": 0}


def point(axes: Any, x: float, estimate: Estimate, curve: Curve, many: bool = False) -> None:
    """A large marker with the bar of its interval."""
    axes.vlines(x, estimate.low, estimate.high, color=curve.colour, **bar(many))
    look = {**curve.look, "markersize": 7.5, "linestyle": "", "zorder": 4}
    axes.plot([x], [estimate.value], **look)


def bar(many: bool = False) -> dict[str, float]:
    """How intervals look."""
    return {"lw": 0.9, "alpha": 0.45} if many else {"lw": 1.4, "alpha": 0.8}
