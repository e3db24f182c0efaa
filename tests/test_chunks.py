"""Rollouts that go on over several steps: none lost or twice, none too old, none judged early."""

from __future__ import annotations

import pickle
import random
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samplers import columns
from samplers.allocation import uniform
from samplers.types import Group, Job, Plan, Rollout
from tests.aging import Aging, recipe, watched
from tests.scripted import PROMPT
from tests.test_collect import Counting, verify
from tests.test_overlap import ages, draws
from trainer import carried, checkpoint, staleness
from trainer.collect import Collected, Rounds, collect
from trainer.loop import train
from trainer.tracking import read


class Judging(Aging):
    """No answer of an unfinished rollout comes to the verifier."""

    def rollout(self, jobs):
        made = super().rollout(jobs)
        for job, rollout in zip(jobs, made, strict=True):
            assert rollout.group == job.group
            if job.plan.chunk is None:
                assert not rollout.unfinished
            if job.resume is not None:
                assert job.resume.unfinished
                begun = job.resume.sampled_tokens
                assert begun < rollout.sampled_tokens <= begun + (job.plan.chunk or 10**6)
        return made


def settings(rng: random.Random, **fields: Any) -> dict[str, Any]:
    """A stage with chunks that its max_staleness holds, by turns or ahead."""
    cap, depth = rng.choice([8, 24, 40]), fields.pop("depth", rng.choice([0, 0, 1, 2]))
    chunk = rng.randint(2, cap + 3)
    think = rng.choice([None, cap // 2])
    return {
        "max_staleness": -(-cap // chunk) + depth,
        "rollout": {"max_tokens": cap, "in_flight_updates": bool(depth) and rng.random() < 0.5},
        "budget": {"name": "tests.pieces", "chunk": chunk, "think": think},
        "loss": {"importance_normalize": rng.random() < 0.3},
        "deterministic": False,
        **fields,
    }


def finished(trained: list[tuple[int, list[Group]]]) -> None:
    for group in (g for _, groups in trained for g in groups):
        assert len(group.verdicts) == len(group)
        assert [r.index for r in group.rollouts] == list(range(len(group)))
        assert not any(r.unfinished for r in group.rollouts)


@pytest.mark.parametrize("seed", range(24))
def test_every_rollout_is_trained_once_and_in_time(seed: int, tmp_path: Path) -> None:
    """Whatever waits for whom, by turns or ahead, in one round or several."""
    rng = random.Random(seed)
    made = recipe(
        tmp_path,
        steps=rng.randint(4, 9),
        allocation=rng.choice(["uniform", "tests.rounds"]),
        prompts_per_step=rng.randint(2, 5),
        evaluation={"every": rng.choice([0, 2]), "problems": 2, "budgets": ["inf"]},
        **settings(rng),
    )
    (stage,) = made.stages
    world = Judging(stage, seed, engines=rng.randint(1, 3))
    with watched(made, world, tmp_path) as run:
        train(run)
    assert sorted(draws(run.trained)) == list(range(stage.steps * stage.prompts_per_step))
    assert run.sampling.memory == {"steps": stage.steps, "seen": draws(run.trained)}
    assert not run.sampling.carried
    finished(run.trained)
    old = ages(run.trained)
    assert old.min() >= 0
    assert old.max() <= stage.max_staleness
    assert [step["step"] for step in read(tmp_path)][-1] == stage.steps
    assert not [t for t in threading.enumerate() if t.name == "sampling"]


def test_tokens_of_several_versions_are_trained_and_counted(tmp_path: Path) -> None:
    """By turns: a rollout of 12 tokens in chunks of 3 is of 4 versions."""
    made = recipe(
        tmp_path, steps=8, max_staleness=4, rollout={"max_tokens": 12}, deterministic=True,
        budget={"name": "tests.pieces", "chunk": 3}, prompts_per_step=8,
    )  # fmt: skip
    with watched(made, Judging(made.stages[0], 3), tmp_path) as run:
        train(run)
    rollouts = [r for _, groups in run.trained for g in groups for r in g.rollouts]
    versions = {len({v for _, v in r.thought.spans}) for r in rollouts}
    assert max(versions) == 4
    assert ages(run.trained).max() == 3
    steps = read(tmp_path)
    assert [step["chunks/carried"] for step in steps][-1] == 0
    assert steps[0]["chunks/carried"] > 0
    assert steps[0]["chunks/tokens"] == 3 * steps[0]["chunks/carried"]
    sampled = sum(step.get("tokens/sampled", 0) for step in steps)
    assert sampled == sum(r.sampled_tokens for r in rollouts)


def test_steps_without_a_whole_group_pass(tmp_path: Path) -> None:
    """A shaper, an algorithm or a mean that cannot stand an empty list is not asked."""
    made = recipe(
        tmp_path, steps=3, max_staleness=40, rollout={"max_tokens": 40}, rollouts_per_prompt=8,
        budget={"name": "tests.pieces", "chunk": 1},
        shaping=[{"name": "soft_overlong", "cache": 20}], loss={"importance_normalize": True},
        checkpoint={"every": 1},
    )  # fmt: skip
    with watched(made, Aging(made.stages[0], 0), tmp_path) as run:
        train(run)
        assert run.world.version == 3, "versions count on"
    assert [len(groups) for _, groups in run.trained] == [0, 0, 9]
    assert [step.get("groups", 0) for step in read(tmp_path)] == [0, 0, 9]


def test_the_first_groups_that_are_whole_tell_whether_the_cap_is_too_low(tmp_path: Path) -> None:
    """Steps without a group say nothing of it."""
    made = recipe(
        tmp_path, max_staleness=4, rollout={"max_tokens": 4}, rollouts_per_prompt=8,
        budget={"name": "tests.pieces", "chunk": 1}, guard={"truncated": 0.3},
    )  # fmt: skip
    with (
        watched(made, Aging(made.stages[0], 0), tmp_path) as run,
        pytest.raises(ValueError, match="hit the cap"),
    ):
        train(run)
    assert [len(groups) for _, groups in run.trained][:2] == [0, 0]
    assert run.trained[-1][1]


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("allocation", ["uniform", "tests.rounds"])
def test_resumed_runs_lose_and_repeat_nothing(depth: int, allocation: str, tmp_path: Path) -> None:
    """Killed in the middle of steps; what the checkpoint held unfinished goes on from there."""
    rng = random.Random(depth)
    made = recipe(
        tmp_path, steps=11, max_staleness=4 + depth, allocation=allocation,
        rollout={"max_tokens": 32}, budget={"name": "tests.pieces", "chunk": 8},
        checkpoint={"every": 2, "keep": 1},
    )  # fmt: skip
    kept, newest, state, held = [], None, None, []

    class Dying(Judging):
        left = 0

        def step(self, batch):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            return super().step(batch)

    for life in range(4):
        world = Dying(made.stages[0], life)
        world.left = rng.randint(3, 5) if life < 3 else 0
        with watched(made, world, tmp_path) as run:
            if newest is not None:
                run.restore(newest, state)
                held.append(sum(len(group) for group in run.sampling.carried))
            began = run.step
            if life < 3:
                with pytest.raises(KeyboardInterrupt):
                    train(run)
            else:
                train(run)
        newest = checkpoint.newest(tmp_path / "checkpoints")
        state = checkpoint.driver_state(newest)
        kept += run.trained[: state["step"] - began]
    assert state["step"] == 11
    assert sorted(draws(kept)) == list(range(11 * 3))
    assert sorted(state["memory"]["seen"]) == list(range(11 * 3))
    finished(kept)
    assert ages(kept).max() <= 4 + depth
    assert max(held) > 0
    assert not (newest / "driver.npz").exists(), "the last step leaves nothing unfinished"


def test_by_turns_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """Token for token, whatever was unfinished when it was killed."""
    made = recipe(
        tmp_path, steps=7, max_staleness=5, rollout={"max_tokens": 40}, deterministic=True,
        budget={"name": "tests.pieces", "chunk": 8, "think": 30}, checkpoint={"every": 3},
    )  # fmt: skip
    with watched(made, Aging(made.stages[0], 0, engines=1), tmp_path / "whole") as run:
        train(run)
    whole = run.trained
    first = checkpoint.complete(tmp_path / "whole" / "checkpoints")[0]
    assert (first / "driver.npz").exists()
    state = checkpoint.driver_state(first)
    with watched(made, Aging(made.stages[0], 1, engines=1), tmp_path / "again") as run:
        run.restore(first, state)
        train(run)
    again = [(version, groups) for version, groups in whole if version >= state["step"]]
    assert [version for version, _ in run.trained] == [version for version, _ in again]
    for (_, ours), (_, theirs) in zip(run.trained, again, strict=True):
        same([r for g in ours for r in g.rollouts], [r for g in theirs for r in g.rollouts])


def same(ours: list[Rollout], theirs: list[Rollout]) -> None:
    a, b = columns.pack(ours), columns.pack(theirs)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert [(r.plan, r.seed) for r in ours] == [(r.plan, r.seed) for r in theirs]


def going(seed: int) -> list[Group]:
    """Groups with unfinished rollouts of several plans among them."""
    world = Aging(recipe(Path("unused")).stages[0], 0)
    plans = [
        Plan(60, chunk=5, think=40, target=7),
        Plan(60, chunk=7, prefill="A1"),
        Plan(60, chunk=1),
    ]
    return collect(
        uniform.Allocator(uniform.Config(), 4, 3), Counting(), lambda p, n, key: plans,
        Rounds(world.rollout), verify, lambda g, what: g, seed=seed, temperature=1.0,
    ).carried  # fmt: skip


def test_what_a_checkpoint_holds_of_groups_comes_back_exactly(tmp_path: Path) -> None:
    groups = going(2**63 + 1)
    asked = {"effort": "low", "stops": [1, 2]}
    groups = [
        replace(g, rollouts=tuple(
            replace(r, plan=replace(r.plan, template=asked, weights=(0.5, 0.5), cuts=(1, 2)))
            if r.index == g.serial else r for r in g.rollouts
        )) for g in groups
    ]  # fmt: skip
    checkpoint.save(tmp_path, 1, lambda folder: None, {"carried": carried.pack(groups)}, keep=1)
    arrays = checkpoint.driver_state(tmp_path / "step-000001")["carried"]
    prompts = {group.prompt.index: group.prompt for group in groups}
    back = carried.unpack(arrays, prompts.__getitem__)
    assert [(g.serial, g.prompt, len(g)) for g in back] == [
        (g.serial, g.prompt, len(g)) for g in groups
    ]
    same([r for g in back for r in g.rollouts], [r for g in groups for r in g.rollouts])
    assert carried.pack([]) == {}
    assert carried.unpack({}, prompts.__getitem__) == []


def test_an_allocator_receives_none_when_the_rest_goes_on(tmp_path: Path) -> None:
    """And may ask for more then; what was carried is continued once a step, and not judged."""
    asked: list[list[tuple[int, int, bool]]] = []

    class Twice(uniform.Allocator):
        def allocate(self, stream):
            yield from super().allocate(stream)
            yield from super().allocate(stream)

    world = Aging(recipe(tmp_path).stages[0], 0)

    def make(jobs):
        asked.append([(job.group, job.index, job.resume is not None) for job in jobs])
        made = world.rollout(jobs)
        return [replace(r, unfinished=job.plan.chunk is not None and job.group != 1)
                for r, job in zip(made, jobs, strict=True)]  # fmt: skip

    def once(allocator: Any, going: list[Group], last: bool = False) -> Collected:
        return collect(
            allocator, stream, lambda p, n, key: [Plan(30, chunk=2)] * n, Rounds(make), verify,
            lambda g, what: g, seed=0, temperature=1.0, carried=going, last=last,
        )  # fmt: skip

    stream = Counting()
    groups, going, *_ = once(Twice(uniform.Config(), 1, 2), [])
    assert asked == [[(0, 0, False), (0, 1, False)], [(1, 0, False), (1, 1, False)]]
    assert [g.serial for g in groups] == [1]
    assert [g.serial for g in going] == [0]
    asked.clear()
    groups, going, *_ = once(uniform.Allocator(uniform.Config(), 1, 1), going, last=True)
    assert asked == [[(0, 0, True), (0, 1, True), (2, 0, False)]]
    assert [g.serial for g in groups] == [0, 2]
    assert not going


def staged(**fields: Any) -> Any:
    budget = {"name": "tests.pieces", "chunk": 10}
    base = {"rollout": {"max_tokens": 24}, "budget": budget, "deterministic": False}
    return recipe(Path("unused"), **{**base, **fields}).stages[0]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "max_staleness=0: .*max_tokens=24 .*chunks of 10 .*3 steps; set max_staleness=3 "),
        ({"max_staleness": 2}, "max_staleness=3 .*, or budget.chunk=12 or more"),
        (
            {"max_staleness": 4, "deterministic": True},
            "deterministic=true with max_staleness=4: .*or max_staleness=3",
        ),
    ],
)
def test_chunks_that_cannot_be_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        staged(**fields)


def test_what_chunks_leave_of_the_staleness_is_sampled_ahead() -> None:
    assert staleness.depth(staged(max_staleness=3, deterministic=True)) == 0
    assert staleness.depth(staged(max_staleness=5)) == 2
    whole = {"name": "tests.pieces", "chunk": 24}
    assert staleness.depth(staged(max_staleness=1, budget=whole)) == 0
    assert staleness.depth(staged(max_staleness=2, budget="unlimited")) == 2


def test_by_turns_nothing_is_in_flight() -> None:
    with pytest.warns(
        UserWarning, match="no effect with max_staleness=3: nothing is sampled ahead"
    ):
        staged(max_staleness=3, rollout={"max_tokens": 24, "in_flight_updates": True})


def test_plans_that_go_on_for_longer_than_was_set_aside_are_refused(tmp_path: Path) -> None:
    made = recipe(
        tmp_path, max_staleness=3, rollout={"max_tokens": 24},
        budget={"name": "tests.pieces", "chunk": 8, "max_tokens": 30},
    )  # fmt: skip
    with (
        pytest.raises(ValueError, match=r"max_tokens 30 in chunks of 8 .* the 3 of max_staleness"),
        watched(made, Aging(made.stages[0], 0), tmp_path) as run,
    ):
        train(run)


@pytest.mark.parametrize("memory", [{1: 2}, {"a": (1,)}, {"a": np.float32(1)}])
def test_a_memory_that_json_would_change_is_refused_at_once(memory: Any, tmp_path: Path) -> None:
    made = recipe(tmp_path)
    with watched(made, Aging(made.stages[0], 0), tmp_path) as run:

        class Budget:
            plans = staticmethod(run.sampling.budget.plans)

            @staticmethod
            def observe(config, groups, kept):
                kept.update(memory)

        run.sampling.budget = Budget
        Budget.__name__ = "mine"
        with pytest.raises(ValueError, match="the memory of mine would not come back from JSON"):
            run.sample()


def test_resumed_rollouts_travel_to_engines_as_columns() -> None:
    """All jobs arrive in order, each with its own rollout."""
    begun = going(2)
    jobs = [
        Job(PROMPT, r.plan, r.group, r.index, r.seed, 0.5, resume=r if r.unfinished else None)
        for group in begun
        for r in group.rollouts
    ]
    assert {job.resume is None for job in jobs} == {True, False}
    sent = pickle.loads(pickle.dumps(columns.pack_jobs(jobs), protocol=5))
    back = columns.unpack_jobs(sent)
    plain, wanted = ([replace(job, resume=None) for job in some] for some in (back, jobs))
    assert plain == wanted
    assert [job.resume is None for job in back] == [job.resume is None for job in jobs]
    same([j.resume for j in back if j.resume], [j.resume for j in jobs if j.resume])
