"""Rules that watch a thought: nothing of a look stays, an exit is a budget, costs are counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from samplers import columns
from samplers.rollout import RolloutWorker
from samplers.stopping import base
from samplers.stopping.base import Look
from samplers.types import Job, Plan, Rollout
from tests.engines import small
from tests.scripted import BARE, END, PROMPT, RENDERER, ScriptedEngine
from trainer import preflight
from trainer.config import load

Start = Callable[..., Any]
NEVER = {
    "consistency": {"name": "consistency", "runs": 99, "every": 5, "temperature": 1.0},
    "confidence": {"name": "confidence", "threshold": 1 - 1e-12, "every": 7, "text": "A"},
    "self_evaluation": {
        "name": "self_evaluation", "every": 6, "text": "AB", "no": "A+", "yes": "B",
        "threshold": 1 - 1e-12,
    },
    "wait": {"name": "wait", "minimum": 20, "text": "A" * 60},  # for which there is no room
    "ramp": {"name": "ramp", "strength": 0.0, "start": 4, "end": 9, "every": 3},
}  # fmt: skip
PLANS = [
    Plan(50), Plan(50, think=23), Plan(50, think=23, answer=6, close="w</think>!", after_close="A"),
    Plan(50, answers_per_cut=2), Plan(50, prefill="A1", think=20),
]  # fmt: skip


def jobs(plans: list[Plan], n: int = 6, temperature: float = 1.0) -> list[Job]:
    return [
        Job(PROMPT, plan, 0, i, seed=i, temperature=temperature)
        for i, plan in enumerate(plan for plan in plans for _ in range(n))
    ]


def watched(plans: list[Plan], spec: Any) -> list[Plan]:
    return [replace(plan, stopping=spec) for plan in plans]


def seen(rollout: Rollout) -> Any:
    """All of a rollout that its reader sees."""
    runs = [rollout.thought, *(a.tokens for cut in rollout.answers for a in cut)]
    texts = [a.text for cut in rollout.answers for a in cut]
    ids = [(run.ids_T.tolist(), run.forced_T.tolist(), run.finish) for run in runs]
    return ids, texts, rollout.closed


def of_base(start: Start, slots: int = 16) -> RolloutWorker:
    return RolloutWorker(start(small(initializer_range=0.02), slots=slots), RENDERER)


@pytest.mark.parametrize("rule", NEVER)
def test_a_rule_that_never_stops_changes_no_token(start, rule):
    """Greedy on every engine; sampled where requests go on with a seed's random numbers."""
    worker = of_base(start)
    for temperature in (0.0, 1.0) if worker.engine.ramps else (0.0,):
        plain = worker.generate(jobs(PLANS, temperature=temperature))
        made = worker.generate(jobs(watched(PLANS, NEVER[rule]), temperature=temperature))
        assert [seen(r) for r in made] == [seen(r) for r in plain]
        for a, b in zip(made, plain, strict=True):
            np.testing.assert_allclose(a.thought.logprobs_T, b.thought.logprobs_T, atol=1e-4)
            assert a.watch is not None
            assert a.watch.exit is None
    looked = sum(r.watch.looks for r in made)
    assert (looked > 0) == (rule not in ("wait", "ramp"))


def test_an_exit_is_a_budget_at_that_length(start):
    worker = of_base(start)
    spec = {"name": "confidence", "threshold": 0.022, "every": 6, "tokens": 3, "temperature": 1.0}
    exits = jobs(watched(PLANS, spec), n=12)
    made = worker.generate(exits)
    ended = [r for r in made if r.watch.exit is not None]
    assert len(ended) > 10
    assert any(r.watch.looks > 1 for r in ended)
    if worker.engine.ramps:
        again = [
            replace(exits[r.index], plan=replace(r.plan, stopping=None, think=r.watch.exit))
            for r in ended
        ]
        assert [seen(r) for r in worker.generate(again)] == [seen(r) for r in ended]
    for r in ended:
        assert r.watch.exit == r.think_tokens
        assert not r.closed
        assert r.final.tokens.forced_T[0]
        assert r.final.reached


def test_all_that_was_paid_for_is_counted(start):
    worker = of_base(start)
    specs = [NEVER["consistency"], NEVER["self_evaluation"], {"name": "confidence", "every": 4}]
    specs.append({"name": "wait", "minimum": 15, "times": 3, "text": "A"})
    before = worker.stats()
    made = worker.generate(jobs([replace(PLANS[1], stopping=spec) for spec in specs], n=8))
    after = worker.stats()
    assert after["sampled"] - before["sampled"] == sum(
        # an eos in a budgeted thought is dropped, as without a rule
        r.sampled_tokens + (r.thought.finish == "stop" and not r.closed)
        for r in made
    )
    assert after["looks"] - before["looks"] == sum(r.watch.looks for r in made) > 0
    assert after["tried"] - before["tried"] == sum(r.watch.sampled for r in made) > 0
    assert not getattr(worker.engine, "_kept", None)


def test_wait_replaces_ends_that_come_too_early(start):
    worker = of_base(start)
    spec = {"name": "wait", "minimum": 12, "times": 2, "text": "AB"}
    plain = worker.generate(jobs([Plan(60, think=40)], n=40))
    made = worker.generate(jobs([Plan(60, think=40, stopping=spec)], n=40))
    resumed = [r for r in made if r.watch.resumed]
    assert len(resumed) > 5
    for short, r in zip(plain, made, strict=True):
        thought = r.thought
        assert thought.forced_T.sum() == 2 * r.watch.resumed
        assert RENDERER.decode(thought.ids_T[thought.forced_T]) == "AB" * r.watch.resumed
        assert END not in thought.ids_T[:-1]
        if not r.watch.resumed:
            assert r.think_tokens >= 12 or r.think_tokens == short.think_tokens
        if r.watch.resumed < 2 and r.ended:
            assert r.think_tokens >= 12
        if worker.engine.ramps:  # as without the rule, up to where the first end stood
            first = short.think_tokens if r.watch.resumed else len(thought)
            np.testing.assert_array_equal(thought.ids_T[:first], short.thought.ids_T[:first])


def test_looks_do_not_depend_on_slots_or_neighbours(start):
    specs = [
        {"name": "confidence", "threshold": 0.02, "every": 6, "tokens": 3, "temperature": 1.0},
        NEVER["self_evaluation"] | {"threshold": 0.6},
    ]
    asked = jobs([replace(plan, stopping=spec) for plan in PLANS for spec in specs], n=3)
    together = of_base(start, 64).generate(asked)
    for slots, order in ((3, slice(None)), (7, slice(None, None, -1))):
        for r in of_base(start, slots).generate(asked[order]):
            assert seen(r) == seen(together[r.index])
            assert r.watch == together[r.index].watch


def test_an_abort_leaves_nothing_behind():
    worker = RolloutWorker(ScriptedEngine(), RENDERER)
    call = worker.submit(jobs(watched(PLANS, NEVER["self_evaluation"]), n=4))
    for steps in range(40):
        worker.until(lambda n=steps: worker.engine.counters["steps"] >= n or call.ended)
        worker.engine.counters["steps"] += 1
        if steps == 25:
            worker.abort()
    worker.until(lambda: call.ended)
    assert {r.thought.finish for r in call.value} >= {"abort"}
    assert all(len(r.answers) == 1 for r in call.value)
    assert not worker.engine.pending


def test_what_a_rule_did_travels_between_processes():
    asked = jobs(watched(PLANS[:2], NEVER["consistency"]), n=2) + jobs(PLANS[:1], n=1)
    asked = [replace(job, index=i) for i, job in enumerate(asked)]
    made = RolloutWorker(ScriptedEngine(), RENDERER).generate(asked)
    back = columns.unpack(columns.pack(made), asked)
    assert [r.watch for r in back] == [r.watch for r in made]
    assert made[-1].watch is None


@pytest.mark.parametrize(
    ("plan", "spec", "said"),
    [
        (Plan(50), "consistensy", "did you mean 'consistency'"),
        (Plan(50), {"name": "confidence", "threshold": 2}, r"stopping: threshold: .*less than 1"),
        (
            Plan(50, think=20),
            {"name": "consistency", "every": 20},
            "every: 20 would have no effect",
        ),
        (Plan(50, think=20), {"name": "wait", "minimum": 21}, "minimum: 21 is above"),
        (Plan(50), "ramp", "without a thinking budget"),
        (Plan(50, think=20), {"name": "ramp", "start": 20}, "start: 20 is not below"),
        (Plan(50, cuts=(3, 9)), {"name": "consistency", "every": 3}, "has no cuts"),
        (Plan(50, chunk=9), {"name": "consistency", "every": 3}, "no chunks"),
        (Plan(90), {"name": "consistency", "every": 3}, "exceed the model's context of 100"),
    ],
)
def test_what_cannot_be_watched_is_refused(plan, spec, said):
    engine = ScriptedEngine(context=100)
    with pytest.raises(ValueError, match=said):
        RolloutWorker(engine, RENDERER).generate(jobs([replace(plan, stopping=spec)], n=1))
    assert not engine.pending


def test_a_model_without_thoughts_has_none_to_watch():
    with pytest.raises(ValueError, match="needs thinking markers"):
        RolloutWorker(ScriptedEngine(), BARE).generate(jobs([Plan(50, stopping="consistency")]))


def looks(*answers: str | None, confidence: float = 0.5) -> list[Look]:
    return [Look(8 * i, answer, confidence) for i, answer in enumerate(answers)]


def test_rules_on_saved_looks():
    """The same functions offline, by hand."""
    rule, config = base.resolve({"name": "consistency", "runs": 2})
    assert base.exit_of(rule, config, looks("A", "B", "B", "C")) == 2
    assert base.exit_of(rule, config, looks("A", None, None, "A", "B")) is None
    assert base.exit_of(rule, config, looks("A", None, "A", "A")) == 3
    rule, config = base.resolve("confidence")
    sure = [*looks("A"), Look(8, None, 0.99), Look(16, "B", 0.951), Look(24, "B", 0.99)]
    assert base.exit_of(rule, config, sure) == 2
    assert base.exit_of(rule, config, looks("A", confidence=float("nan"))) is None
    rule, config = base.resolve("self-evaluation")
    assert not base.offline(rule)
    assert base.exit_of(rule, config, looks("A", "A", confidence=1.0)) is None
    assert rule.stops(config, [Look(8, None, float("nan"), share=0.95)])
    assert [base.offline(base.resolve(name)[0]) for name in ("consistency", "confidence", "ramp")]


def test_training_has_no_rules(tmp_path, monkeypatch):
    """Its ends are nobody's samples: a policy of a user's own that sets one is refused."""
    policy = """
from samplers.types import Plan
from samplers.seam import Component
class Config(Component):
    max_tokens: int = 64
def plans(config, prompt, n, step, memory, seed):
    return [Plan(config.max_tokens, stopping="consistency")] * n
"""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "watched.py").write_text(policy)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="a stopping rule, whose ends nobody sampled"):
        preflight.check_all(load("grpo/find", ["budget=own.watched"]))
