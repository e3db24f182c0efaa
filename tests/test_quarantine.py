"""A prompt that no engine survives: nothing is learned of it, measured by it, or drawn of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch.suspects import unmade
from rewards.apply import Shaping
from rewards.verdict import Verdict
from rewards.verify import verify
from samplers.allocation import base
from samplers.data import Dataset, PromptStream
from samplers.types import Group, Job, Plan, Prompt, Rollout
from tests import here, made
from tests.test_alarms import trained
from tests.test_eval_budgets import PLAN, Scripted, prompts
from tests.test_shaping_properties import DEFAULT, spec
from trainer import carried, rows
from trainer.config import load
from trainer.eval.budgets import EvalConfig, evaluate
from trainer.metrics import summarise

ASKED = Prompt(7, "seven", (), "text", "gold", "exact")


def none(index: int, serial: int = 0, plan: Plan | None = None) -> Rollout:
    return unmade(Job(ASKED, plan or Plan(max_tokens=64), serial, index, seed=index))


def graded(group: Group) -> Group:
    def grade(items: Sequence[Any]) -> list[Verdict]:
        asked.extend(items)
        return [Verdict(i % 2 == 0, float(i % 2 == 0), "ok") for i in range(len(items))]

    asked: list[Any] = []
    (judged,) = verify([replace(group, verdicts=(), rewards={})], grade)
    assert len(asked) == sum(not r.unmade for r in group.rollouts), "nobody judges what is not"
    return judged


def both() -> tuple[Group, Group]:
    """A group, and the same with two rollouts more that were never made."""
    plan = Plan(max_tokens=64, target=32, subgroup="medium")
    plain = made.group([1.0, 0.0, 1.0])
    plain = replace(plain, rollouts=tuple(replace(r, plan=plan) for r in plain.rollouts))
    more = replace(plain, rollouts=(none(3, plan=plan), *plain.rollouts, none(4, plan=plan)))
    return graded(plain), graded(more)


# What it is worth


def test_it_is_unknown_and_does_not_train() -> None:
    _, group = both()
    assert [v.status for r in group.verdicts for c in r for v in c][::4] == ["error", "error"]
    assert rows.trainable(group).tolist() == [False, True, True, True, False]
    assert len(rows.rows(group)) == 3
    assert base.informative(group)
    alone = graded(replace(group, rollouts=(none(0), none(1))))
    assert not base.informative(alone)
    assert rows.rows(alone) == []
    assert np.isnan(base.rights(alone)).all()


def test_the_rest_of_a_group_is_as_old_as_it_is() -> None:
    _, group = both()
    late = [replace(r, thought=made.run((11,), version=5)) for r in group.rollouts if not r.unmade]
    answered = [replace(r, answers=()) for r in late]
    assert replace(group, rollouts=(none(0), *answered)).oldest_version == 5


@pytest.mark.parametrize("name", DEFAULT)
def test_no_length_reward_of_the_others_reads_it(name: str) -> None:
    plain, group = both()
    (want,) = Shaping([spec(name, DEFAULT[name])]).apply([plain])
    (got,) = Shaping([spec(name, DEFAULT[name])]).apply([group])
    for part, values in want.rewards.items():
        np.testing.assert_array_equal(got.rewards[part][1:4], values)
        assert np.isnan(got.rewards[part][[0, 4]]).all()


def test_no_figure_of_lengths_and_ends_reads_it() -> None:
    plain, group = both()
    want, got = (summarise(Shaping([]).apply([one])) for one in (plain, group))
    counted = {"rollouts", "rollouts_discarded", "unknown", "unknown/error"}
    counted |= {k for k in want if k.startswith(("rollouts_per_prompt", "gradient/"))}
    same = {k: v for k, v in want.items() if k not in counted and not k.startswith(("time", "mem"))}
    assert {k: got[k] for k in same} == pytest.approx(same, nan_ok=True)
    assert got["unknown"] == pytest.approx(2 / 5)
    assert got["rollouts"] == 5
    alone = summarise([graded(replace(group, rollouts=(none(0), none(1))))])
    assert alone["rollouts"] == 2
    assert "think_tokens/mean" not in alone
    assert math.isnan(alone["accuracy"])


def test_an_evaluation_counts_it_as_unknown_and_measures_the_others() -> None:
    class Dying(Scripted):
        def _one(self, job: Job) -> Rollout:
            return unmade(job) if job.prompt.id == "p0" else super()._one(job)

    config = EvalConfig(every=1, problems=4, budgets=(8, 16), samples=2)
    workers = Dying()
    result = evaluate(workers, prompts(4), config, PLAN, step=3)
    rest = evaluate(Scripted(), prompts(4)[1:], config, PLAN, step=3)
    assert all(item[2]["id"] != "p0" for item in workers.items)
    got, want = result.flat(), rest.flat()
    assert got["eval/unknown"] == pytest.approx(1 / 4)
    for name in ("accuracy", "accuracy@8", "think_tokens/mean", "answer_tokens/mean", "anytime"):
        assert got[f"eval/{name}"] == pytest.approx(want[f"eval/{name}"]), name


def test_a_checkpoint_holds_it_beside_rollouts_that_go_on() -> None:
    plan = Plan(max_tokens=64, chunk=8)
    going = replace(made.rollout(0, finish="length"), plan=plan, unfinished=True)
    group = Group(ASKED, 3, (replace(going, group=3), none(1, 3, plan)))
    packed = carried.pack([group])
    (back,) = carried.unpack(packed, lambda index: ASKED)
    assert [r.unmade for r in back.rollouts] == [False, True]
    assert [r.unfinished for r in back.rollouts] == [True, False]


# What is drawn


def stream(size: int | None = 7, shuffle: bool = True) -> PromptStream:
    get = lambda i: replace(ASKED, index=i, id=f"p{i}")  # noqa: E731
    return PromptStream(Dataset(get, size, "f"), seed=3, shuffle=shuffle)


def draws(of: PromptStream, count: int) -> list[tuple[int, int]]:
    return [(draw, prompt.index) for draw, prompt in (of.next() for _ in range(count))]


@pytest.mark.parametrize(("size", "shuffle"), [(7, True), (7, False), (None, True)])
def test_it_is_drawn_no_more_and_all_others_as_before(size: int | None, shuffle: bool) -> None:
    whole = draws(stream(size, shuffle), 30)
    one = stream(size, shuffle)
    begun = draws(one, 5)
    assert begun == whole[:5]
    out = {2, 11}
    for index in out:
        one.exclude(index) if size is None or index < size else None
    rest = [(draw, index) for draw, index in whole[5:] if index not in out]
    assert draws(one, 10) == list(islice(rest, 10))


def test_it_does_not_come_back_when_its_draw_is_put_back_or_the_run_resumed() -> None:
    one = stream()
    (draw, prompt), (later, other) = one.next(), one.next()
    one.put_back(draw, prompt)
    one.put_back(later, other)
    one.exclude(prompt.index)
    again = stream()
    again.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for each in (one, again):
        assert each.next() == (later, other)
    assert draws(one, 20) == draws(again, 20)
    old = {k: v for k, v in one.state_dict().items() if k != "excluded"}
    again.load_state_dict(old)
    assert again.excluded == set(), "a checkpoint of before there was such a thing"


def test_a_dataset_of_which_nothing_is_left_is_told() -> None:
    one = stream(3)
    for index in range(3):
        one.exclude(index)
    with pytest.raises(ValueError, match="all 3 prompts took engines down"):
        one.next()


@pytest.mark.slow
def test_a_run_that_goes_on_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of an evaluation too, which no stream of prompts leaves out."""
    settings = ("steps=2", "prompts_per_step=2", "rollouts_per_prompt=2", "rollout.max_tokens=32")
    more = ("evaluation=null", "guard.truncated=1", "checkpoint.every=1", f"output={tmp_path}")
    recipe = load("grpo/find", (*settings, *more))
    with monkeypatch.context() as dying:
        dying.setattr(here.Here, "faults", lambda self: self.left_out.add(("p", "what?")) or [])
        with trained(recipe, tmp_path / "run"):
            pass
    with trained(recipe, tmp_path / "run", since=1) as run:
        assert run.world.left_out == {("p", "what?")}
