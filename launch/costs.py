"""What a stage will cost: seconds of a step and hours of GPUs, from measured throughputs.

Pure arithmetic over a stage, its placement and the table of launch/throughputs.py. What nobody
knows beforehand, how long responses get above all, is a range. Verdicts, checkpoints and the start
of processes are not estimated.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launch.fits import Fit
from launch.placement import Placement
from launch.throughputs import CPU, STEADY, Row, Span, Table, Wanted, What, count, scaled, work
from samplers import seam
from trainer import compatibility, losses, memory, staleness
from trainer.config import Stage
from trainer.memory import BYTES, Shape

SHORT = 0.25
"""Of the cap: where responses whose length nobody knows begin."""
TRAINED = Span(0.5, 1.0)
"""Of the rows: those of groups that are all right or all wrong are not computed."""
OPTIONAL = ("sync",)
"""Phases without which a step still has an estimate: short beside the others."""
HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a step handles."""

    rollouts: Span
    response: Span
    """Tokens of one, with answers at cuts."""
    prompt: float
    """Tokens of a prompt."""
    rows: Span
    """That train."""

    @property
    def sampled(self) -> Span:
        return self.rollouts * self.response

    @property
    def trained(self) -> Span:
        """Tokens of the rows that train, prompts included."""
        return self.rows * (self.response + Span(self.prompt, self.prompt))


@dataclass(frozen=True, slots=True)
class Units:
    """What works at once, and what is paid for: GPUs, or processes on cores."""

    engines: Mapping[str, int]
    """GPUs, or processes, that generate, by kind: `cpu`, or as nodes name it; "": nobody did."""
    learners: int
    kind: str
    """Of the learners' GPUs, likewise."""
    paid: float

    @property
    def name(self) -> str:
        return "core" if self.kind == CPU else "GPU"


@dataclass(frozen=True, slots=True)
class Phase:
    """Part of a step."""

    wanted: Wanted
    rows: tuple[Row, ...]
    """It is told from; more than one where engines sit on several kinds of GPUs."""
    seconds: Span | None
    """None: no row tells."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The cost of one stage, and all that it is told from."""

    stage: Stage
    shape: Shape
    units: Units
    table: Table
    sizes: Sizes
    engines: int
    assumed: bool = True
    """The length of responses is."""

    @property
    def phases(self) -> dict[str, Phase]:
        """Of a step; `evaluate` is of one evaluation."""
        rl = self.stage.kind == "rl"
        found = {"generate": self._generate()} if rl else {}
        if rl and scored(self.stage):
            found["score"] = self._score()
        found["train"] = self._train()
        if rl:
            found["sync"] = self._sync()
        if self.evaluations:
            found["evaluate"] = self._evaluate()
        return found

    @property
    def missing(self) -> list[Phase]:
        """Those without which nothing is told."""
        phases = self.phases.values()
        return [p for p in phases if p.seconds is None and p.wanted.what not in OPTIONAL]

    @property
    def overlaps(self) -> bool:
        """Engines generate while learners train."""
        return self.stage.kind == "rl" and staleness.depth(self.stage) > 0

    @property
    def step(self) -> Span | None:
        """Seconds, without evaluation; None where a row is missing."""
        if self.missing:
            return None
        none = Span(0, 0)
        told = {name: phase.seconds or none for name, phase in self.phases.items()}
        generated = told.pop("generate", none)
        rest = sum((span for name, span in told.items() if name != "evaluate"), none)
        return generated.or_more(rest) if self.overlaps else generated + rest

    @property
    def run(self) -> Span | None:
        """Seconds of all steps and evaluations."""
        step, phases = self.step, self.phases
        if step is None:
            return None
        once = (phases["evaluate"].seconds if "evaluate" in phases else None) or Span(0, 0)
        return step * self.stage.steps + once * self.evaluations

    @property
    def hours(self) -> Span | None:
        """Of all units that are paid for."""
        return None if self.run is None else self.run * (self.units.paid / HOUR)

    @property
    def evaluations(self) -> int:
        """Before the first step, every so many, and after the last."""
        config, steps = self.stage.evaluation, self.stage.steps
        if config is None or not config.every:
            return 0
        return 1 + steps // config.every + bool(steps % config.every)

    def _generate(self) -> Phase:
        return self._generated(self.sizes.rollouts.low, self.sizes.sampled)

    def _evaluate(self) -> Phase:
        """A thought of each problem, and its answers at the budgets."""
        stage, config = self.stage, self.stage.evaluation
        assert config is not None
        cap = stage.rollout.max_tokens
        budgets = config.grid(cap, stage.markers is not None)
        answers = sum(min(config.answer_tokens or cap, cap - budget) for budget in budgets)
        response = self.sizes.response if stage.kind == "rl" else Span(SHORT * cap, cap)
        thoughts = float(config.problems * config.samples)
        each = response + Span(SHORT * answers, answers)
        return self._generated(thoughts, each * thoughts)

    def _generated(self, rows: float, tokens: Span) -> Phase:
        """Fewer rows at once than were measured may be slower, in proportion at worst."""
        config, found, rate = self.stage.rollout.engine, list[Row](), Span(0, 0)
        for kind, gpus in self.units.engines.items():
            wanted = self._wanted("generate", kind, config.name)
            row = self.table.nearest(wanted)
            if row is None:
                return Phase(wanted, (), None)
            found.append(row)
            rate += scaled(row, self.shape.parameters) * gpus
        seconds = tokens.over(rate)
        together = max(1.0, min(rows / self.engines, config.slots))
        fuller = max(1.0, max(row.rows or 0 for row in found) / together)
        return Phase(wanted, tuple(found), Span(seconds.low, seconds.high * fuller))

    def _train(self) -> Phase:
        wanted = self._wanted("train", self.units.kind)
        row = self.table.nearest(wanted)
        return self._learned(wanted, row, passes(self.stage) / row.work if row else 0)

    def _score(self) -> Phase:
        """By a row of its own, or as the part of training that it is."""
        forwards = len(scored(self.stage))
        wanted, training = (self._wanted(what, self.units.kind) for what in ("score", "train"))
        if row := self.table.nearest(wanted):
            return self._learned(wanted, row, forwards)
        row = self.table.nearest(training)
        return self._learned(wanted, row, 2 * forwards / row.work if row else 0)

    def _learned(self, wanted: Wanted, row: Row | None, times: float) -> Phase:
        if row is None:
            return Phase(wanted, (), None)
        rate = scaled(row, self.shape.parameters) * self.units.learners
        return Phase(wanted, (row,), (self.sizes.trained * times).over(rate))

    def _sync(self) -> Phase:
        kind = next(iter(self.units.engines))
        wanted = self._wanted("sync", kind, self.stage.rollout.engine.name)
        row = self.table.nearest(wanted)
        if row is None:
            return Phase(wanted, (), None)
        size = float(BYTES[self.stage.model.dtype] * self.shape.parameters)
        return Phase(wanted, (row,), Span(size, size).over(scaled(row, size)))

    def _wanted(self, what: What, kind: str, engine: str = "") -> Wanted:
        stage = self.stage
        alike = (stage.learner.gradient_checkpointing, stage.model.lora is not None)
        size = float(self.shape.parameters)
        return Wanted(what, kind, engine, size, stage.model.dtype, *alike)


def estimate(
    stage: Stage,
    fitted: Fit,
    prompt: float,
    table: Table,
    response: float | None = None,
    cores: int | None = None,
) -> Estimate | None:
    """Of a stage where it is placed; None while nothing is known of its model.

    Args:
        prompt: tokens of a prompt.
        response: tokens of a response, if somebody knows.
        cores: of the machine, where processes run on its CPU; None: enough.
    """
    if fitted.shape is None:
        return None
    return Estimate(
        stage,
        fitted.shape,
        units(fitted.placement, cores),
        table,
        sizes(stage, prompt, response),
        max(1, len(fitted.placement.seats["rollout"])),
        response is None,
    )


def sizes(stage: Stage, prompt: float, response: float | None = None) -> Sizes:
    """What a step of the stage handles.

    Args:
        prompt: tokens of a prompt.
        response: tokens of a response; None: from a quarter of the cap to the cap.
    """
    if stage.kind == "sft":
        batch = float(stage.supervised.batch_tokens)
        return Sizes(Span(0, 0), Span(batch, batch), 0.0, Span(1, 1))
    cap = stage.rollout.max_tokens
    length = Span(SHORT * cap, cap) if response is None else Span(response, response)
    if response is None:
        forks = memory.forks(stage)
        length += Span(SHORT * forks, forks)
    rows = stage.prompts_per_step * stage.rollouts_per_prompt
    return Sizes(rollouts(stage), length, prompt, TRAINED * rows)


def rollouts(stage: Stage) -> Span:
    """Of a step: what the allocator says it makes on average, or from what trains to the most."""
    module, config = seam.resolve("samplers.allocation", stage.allocation)
    prompts, each = stage.prompts_per_step, stage.rollouts_per_prompt
    expects = getattr(module, "expects", None)
    if expects is not None:
        mean = float(expects(config, prompts, each))
        return Span(mean, mean)
    most = compatibility.spends(stage)
    return Span(min(prompts * each, most), most)


def units(placement: Placement, cores: int | None = None) -> Units:
    """What of the placement works at once. The whole cluster is paid for."""
    engines, learners = placement.seats["rollout"], placement.seats["learner"]
    if placement.device == "cpu":
        most = cores or math.inf
        at_once, ranks = (int(min(len(seats), most)) for seats in (engines, learners))
        return Units({CPU: at_once}, ranks, CPU, placement.totals.get("CPU", 0.0))
    nodes = placement.cluster.nodes
    taken = {(seat.node, gpu) for seat in engines for gpu in seat.gpus}
    kinds = Counter(nodes[node].kind or "" for node, _ in sorted(taken))
    kind = nodes[learners[0].node].kind or ""
    return Units(dict(kinds), len(learners), kind, placement.cluster.total)


def scored(stage: Stage) -> set[str]:
    """Logprobs that learners tell before the step."""
    algorithm, config = seam.resolve("trainer.algorithms", stage.algorithm)
    needs = getattr(algorithm, "needs", None)
    found = set(needs(config)) if needs else set()
    if stage.loss.importance != "none" and stage.loss.importance_normalize:
        found.add("old_logprobs")
    return found


def passes(stage: Stage) -> float:
    """FLOPs that a learner's step spends on a token, by parameter: with all its epochs, and the
    logprobs that it still has to tell itself."""
    lacks = losses.needs(stage.loss, stage.updates_per_batch * stage.epochs)
    if stage.kind == "rl":
        lacks -= scored(stage)
    once = work(stage.learner.gradient_checkpointing, stage.model.lora is not None)
    return stage.epochs * once + 2.0 * len(lacks)


def lines(one: Estimate) -> Iterator[str]:
    """What people read."""
    for phase in one.missing[:1]:
        yield f"cost: no measurement for {phase.wanted}: step time unknown{_why(phase)}"
    if one.step is None:
        return
    each = ", ".join(f"{name} {_short(phase)}" for name, phase in one.phases.items())
    beside = "; engines beside learners" if one.overlaps else ""
    yield f"cost: step {one.step} s ({each}{beside}), {spent([one])}"
    if one.sizes.rollouts.high:
        length = f"responses of {tokens(one.sizes.response)} tokens"
        if one.assumed:
            length += " (a quarter of the cap, to the cap; say --response-tokens N if you know)"
        share = f"{TRAINED.low:.0%} to {TRAINED.high:.0%} of the rows train"
        if any(row.steady for phase in one.phases.values() for row in phase.rows):
            share += f"; a step reaches {STEADY:.0%} to 100% of steady rates"
        yield f"  if       {length}, and {share}"
    for name, phase in one.phases.items():
        if not phase.rows:
            yield f"  without  {name}: no measurement for {phase.wanted}"
        elif name != "evaluate":
            for row in phase.rows:
                yield f"  {name:<8} {_from(phase, row)}"


def _why(phase: Phase) -> str:
    if not phase.wanted.hardware:
        return "; say which GPUs they are, as --node 8xH100-80GB"
    return (
        "; put a row into a file for --throughputs FILE, as in launch/throughputs.yaml (laconic "
        "plan RUN of a short run prints its rows)"
    )


def _from(phase: Phase, row: Row) -> str:
    size = count(row.parameters)
    if (here := count(phase.wanted.parameters)) != size and row.what != "sync":
        size += f" (here {here})"
    return f"{row.engine} on {row.hardware}, {size} parameters: {row.source}"


def _short(phase: Phase) -> str:
    return "unknown" if phase.seconds is None else str(phase.seconds)


def spent(all_of_it: Sequence[Estimate]) -> str:
    """'30 steps, 7 evaluations: 1.2-3.4 min, x 3 cores = 0.06-0.17 core-hours'."""
    total = sum((one.run or Span(0, 0) for one in all_of_it), Span(0, 0))
    paid = sum((one.hours or Span(0, 0) for one in all_of_it), Span(0, 0))
    what = f"{sum(one.stage.steps for one in all_of_it)} steps"
    if evaluations := sum(one.evaluations for one in all_of_it):
        what += f" and {evaluations} evaluations"
    units = all_of_it[0].units
    name = units.name if units.paid == 1 else f"{units.name}s"
    hours = f"x {units.paid:g} {name} = {paid} {units.name}-hours"
    return f"{what}: {duration(total)}, {hours}"


def duration(seconds: Span) -> str:
    for size, name in ((HOUR, "h"), (60.0, "min")):
        if seconds.low * seconds.high >= size**2:
            return f"{seconds * (1 / size)} {name}"
    return f"{seconds} s"


def tokens(span: Span) -> str:
    low, high = f"{span.low:,.0f}", f"{span.high:,.0f}"
    return low if low == high else f"{low}-{high}"


def data(one: Estimate) -> dict[str, Any]:
    """The same for programs: [low, high], in seconds and hours; null where no row tells."""

    def pair(span: Span | None) -> list[float] | None:
        return None if span is None else [span.low, span.high]

    return {
        "step": pair(one.step),
        "phases": {name: pair(phase.seconds) for name, phase in one.phases.items()},
        "evaluations": one.evaluations,
        "run": pair(one.run),
        "unit": one.units.name,
        "units": one.units.paid,
        "hours": pair(one.hours),
        "response_tokens": pair(one.sizes.response),
        "sources": {n: [r.source for r in p.rows] for n, p in one.phases.items() if p.rows},
        "missing": [str(p.wanted) for p in one.phases.values() if p.seconds is None],
    }
