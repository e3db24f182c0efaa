"""The ways in which a model is told of a budget: those of its run, of its template, or by hand.

Each is a `samplers.budgets.base.Asking` of which only the texts count: system message, suffix of
the last user message, prefill of the response, arguments of the model's own chat template.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from samplers import seam
from samplers.budget import EFFORTS, Asks
from samplers.budgets import base
from samplers.budgets.base import BUDGET, Asking
from samplers.types import Plan, Prompt
from trainer.components import explain
from trainer.config import Stage

TEXTS = ("system", "suffix", "prefill", "template")
NONE = "none"


@dataclass(frozen=True, slots=True)
class Ways:
    """How a model is asked, and what its training had beside it."""

    default: Asking = field(default_factory=Asking)
    """Where the caller says nothing."""
    budget: Asking | None = None
    """Announces '{budget}' thinking tokens; None: it cannot be told a number."""
    efforts: Mapping[str, Asking] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    """Effort -> thinking tokens after which training closed a thought."""
    trained: Mapping[str, Any] = field(default_factory=dict)
    """policy, budgets and prior of the run's budget policy, as far as it has them."""
    close: str = ""
    after_close: str = ""
    answer: int | None = None
    """Most tokens of an answer in training."""

    @property
    def none(self) -> Asking:
        """No thinking: as trained where there was such a mode; the thought is closed besides."""
        return self.efforts.get(NONE, self.default)

    def plan(self, way: str, max_tokens: int, number: int | None = None) -> Plan:
        """The training plan of a way: default, none, budget or the name of an effort."""
        if way == "budget":
            assert self.budget is not None
            asking: Asking = self.budget
        else:
            found = {"default": self.default, NONE: self.none}
            asking = found.get(way) or self.efforts[way]
        return base.announce(asking.model_copy(update={"max_tokens": max_tokens}), number)


def texts(plan: Plan | Asking) -> Asking:
    """What of a plan a chat template can say."""
    return Asking(**{name: getattr(plan, name) for name in TEXTS})


def of_stage(stage: Stage) -> Ways:
    """How a stage of a run asked its model."""
    spec = stage.budget_spec
    module, config = seam.resolve("samplers.budgets", spec)
    natural, asked = base.natural(module, config), dict(base.asked(module, config))
    if stage.kind == "sft" and stage.supervised.traces is not None:
        _, made = seam.resolve("trainer.traces", stage.supervised.traces)
        modes = getattr(made, "modes", {})
        asked |= {name: mode.of(natural, name) for name, mode in modes.items()}
    numbers = {int(n): p for n, p in asked.items() if n.isdigit() and p.target == int(n)}
    modes = {name: plan for name, plan in asked.items() if not name.isdigit()}
    strange = [name for name in modes if name not in EFFORTS]
    if strange:
        warnings.warn(
            f"modes {', '.join(strange)} are none of the efforts that servers take as "
            f"reasoning_effort ({', '.join(EFFORTS)}): they are asked for by "
            "chat_template_kwargs alone; name them with --efforts, as '{low: "
            f"{strange[0]}}}'",
            stacklevel=3,
        )
    any_plan = next(iter(asked.values()), natural)
    return Ways(
        default=texts(natural),
        budget=_announced(config, numbers),
        efforts={name: texts(plan) for name, plan in modes.items()},
        limits={name: plan.think for name, plan in modes.items() if plan.think is not None},
        trained=_trained(spec, module, config, sorted(numbers)),
        close=natural.close or any_plan.close,
        after_close=natural.after_close,
        answer=natural.answer or any_plan.answer,
    )


def _announced(config: Any, plans: Mapping[int, Plan]) -> Asking | None:
    """The asking that announces all of these numbers as training did."""
    if not plans:
        return None
    largest = max(plans)
    own = texts(config) if isinstance(config, Asking) else _generalised(plans[largest], largest)
    for number, plan in plans.items():
        filled = base.announce(own.model_copy(update={"max_tokens": plan.max_tokens}), number)
        if texts(filled) != texts(plan):
            raise ValueError(
                f"--ask: the run's budget policy announces {largest} and {number} in sentences "
                f"that differ in more than the number; write one by hand, with {BUDGET} in it"
            )
    return own


def _generalised(plan: Plan, number: int) -> Asking:
    """The texts of a plan with its number taken out."""

    def out(value: Any) -> Any:
        if type(value) is int and value == number:
            return BUDGET
        return value.replace(str(number), BUDGET) if isinstance(value, str) else value

    own = {name: out(getattr(plan, name)) for name in TEXTS if name != "template"}
    return Asking(**own, template={name: out(value) for name, value in plan.template.items()})


def _trained(
    spec: Mapping[str, Any], module: ModuleType, config: Any, numbers: list[int]
) -> dict[str, Any]:
    """Budgets of training: announced numbers, nested cuts, or a hard limit."""
    out: dict[str, Any] = {"policy": dict(spec), "budgets": None, "prior": None}
    nobody = Prompt(0, "", (), "", "", "")
    inner = getattr(config, "final", None) or getattr(config, "inner", None) or (module, config)
    if isinstance(amount := getattr(inner[1], "budget", None), tuple):
        return out | {"budgets": {"low": amount[0], "high": amount[1]}}
    if numbers:
        return out | {"budgets": numbers}
    try:
        plan = inner[0].plans(inner[1], nobody, 64, 0, {}, 0)[0]
    except ValueError:  # budgets of each prompt's own row
        return out
    if plan.cuts:
        prior = list(plan.weights) or [1 / len(plan.cuts)] * len(plan.cuts)
        return out | {"budgets": list(plan.cuts), "prior": prior}
    return out | {"budgets": None if plan.think is None else [plan.think]}


def with_native(ways: Ways, native: Asks) -> Ways:
    """Added: what the model's own template lets it be told, where training named nothing better.

    Args:
        native: only what has an effect (`trainer.export.probe.native`).
    """

    def on_top(asking: Asking) -> Asking:
        template = {**ways.default.template, **asking.template}
        return ways.default.model_copy(update={"template": template})

    asked = bool(ways.efforts) or ways.budget is not None
    kept = {
        name: on_top(asking)
        for name, asking in native.efforts.items()
        if name not in ways.efforts and (name == NONE or not asked)
    }
    budget = ways.budget
    if budget is None and native.budget is not None and not asked:
        budget = on_top(native.budget)
    return replace(ways, efforts={**kept, **ways.efforts}, budget=budget)


def by_hand(ways: Ways, ask: Any, efforts: Any) -> Ways:
    """Changed by what a person wrote: `--ask` and `--efforts`, as YAML gives them.

    Raises:
        ValueError: unknown efforts or fields, an --ask that says no {budget}, a reference to a mode
            or number that the model does not know.
    """
    budget = ways.budget
    if ask is not None:
        budget = _asking(ask, "--ask")
        if not _says_budget(budget):
            raise ValueError(
                f"--ask: no text says {BUDGET}, so the model cannot know it; put it into suffix, "
                "prefill, system or template, as '{suffix: \" Think for {budget} tokens.\"}'"
            )
    if efforts is None:
        return replace(ways, budget=budget)
    if not isinstance(efforts, Mapping):
        raise ValueError(f"--efforts: {efforts!r} is no mapping; write '{{low: {{suffix: <b2>}}}}'")
    told = dict(ways.efforts)
    for name, value in efforts.items():
        if name not in EFFORTS:
            raise ValueError(f"--efforts: '{name}' is no effort; allowed: {', '.join(EFFORTS)}")
        where = f"--efforts: {name}"
        if value is None:
            told.pop(name, None)
        elif isinstance(value, str):
            if value not in ways.efforts:
                known = ", ".join(ways.efforts) or "none"
                raise ValueError(f"{where}: the run has no mode '{value}'; it has {known}")
            told[name] = ways.efforts[value]
        elif type(value) is int:
            told[name] = _numbered(budget, value, where)
        else:
            told[name] = _asking(value, where)
            if _says_budget(told[name]):
                raise ValueError(f"{where}: says {BUDGET}, and an effort has no number; write one")
    return replace(ways, budget=budget, efforts=told)


def _says_budget(asking: Asking) -> bool:
    try:
        base.told(asking)
    except ValueError:
        return False
    return True


def _numbered(budget: Asking | None, number: int, where: str) -> Asking:
    if budget is None:
        raise ValueError(
            f"{where}={number}: the model cannot be told a number; write how with --ask, or the "
            "effort's texts"
        )
    if number < 1:
        raise ValueError(f"{where}={number}: give thinking tokens, 1 or more")
    return texts(base.announce(budget.model_copy(update={"max_tokens": 1}), number))


def _asking(value: Any, where: str) -> Asking:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: {value!r} is no mapping; write '{{suffix: ...}}'")
    unknown = [name for name in value if name not in TEXTS]
    if unknown:
        raise ValueError(f"{where}: '{unknown[0]}' is none of {', '.join(TEXTS)}")
    try:
        return Asking(**value)
    except ValidationError as error:
        raise ValueError(f"{where}: {explain(error, Asking)}") from None
