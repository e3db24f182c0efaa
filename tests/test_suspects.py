"""Prompts that take their engines down: all are found, and no other is, within a few engines."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from launch.suspects import Suspects, unmade
from samplers import columns
from samplers.types import Job, Plan, Prompt, Rollout
from tests.test_dispatch import made
from trainer.faults import Lost


def job(prompt: int, index: int = 0, name: str = "train") -> Job:
    asked = Prompt(prompt, f"{name}-{prompt}", (), f"{name} {prompt}?", "A", "exact")
    return Job(asked, Plan(8, cuts=(2, 4), answers_per_cut=2), prompt, index, seed=0)


class Engine:
    """Dies of any list with a guilty prompt in it, and of some others."""

    def __init__(self, guilty: set[int], unlucky: Sequence[bool] = ()) -> None:
        self.guilty, self.unlucky, self.deaths = guilty, list(unlucky), 0
        self.made: list[int] = []

    def __call__(self, jobs: Sequence[Job]) -> list[Rollout]:
        dies = any(one.prompt.index in self.guilty for one in jobs)
        if (self.unlucky and self.unlucky.pop(0)) or dies:
            self.deaths += 1
            raise Lost("rollout", 0, "died")
        self.made += [one.prompt.index for one in jobs]
        return columns.unpack(made(list(jobs), 3), jobs)


def run(suspects: Suspects, engine: Engine, jobs: list[Job]) -> list[Rollout]:
    """As `launch.engines` goes about it."""
    wanted, none = suspects.part(jobs)
    while wanted:
        try:
            rollouts = engine(wanted)
            suspects.cleared(wanted)
            return [*none, *rollouts]
        except Lost:
            if suspects.lost(wanted):
                return [*none, *suspects.tried(wanted, engine)]
    return none


@settings(max_examples=200, deadline=None)
@given(
    prompts=st.integers(1, 40),
    each=st.integers(1, 3),
    kills=st.integers(1, 4),
    guilty=st.sets(st.integers(0, 39), max_size=4),
)
def test_all_that_are_guilty_are_found_and_everybody_else_is_made_once(
    prompts: int, each: int, kills: int, guilty: set[int]
) -> None:
    guilty = {prompt for prompt in guilty if prompt < prompts}
    told: list[str] = []
    suspects = Suspects(kills, lambda prompt: told.append(prompt.id))
    engine = Engine(guilty)
    jobs = [job(prompt, i) for prompt in range(prompts) for i in range(each)]
    rollouts = run(suspects, engine, jobs)
    assert sorted((r.group, r.index) for r in rollouts) == [(j.group, j.index) for j in jobs]
    assert {r.prompt for r in rollouts if r.unmade} == guilty
    assert sorted(told) == sorted(f"train-{prompt}" for prompt in guilty)
    innocent = [prompt for prompt in range(prompts) if prompt not in guilty]
    assert sorted(engine.made) == sorted(innocent * each)
    depth = math.ceil(math.log2(max(prompts, 2)))
    assert engine.deaths <= kills * bool(guilty) + len(guilty) * (depth + kills)
    deaths = engine.deaths
    again = run(suspects, engine, jobs)
    assert {r.prompt for r in again if r.unmade} == guilty
    assert engine.deaths == deaths, "who is known to be guilty takes no engine down any more"
    assert len(told) == len(guilty), "named once"


@settings(max_examples=100, deadline=None)
@given(unlucky=st.lists(st.booleans(), max_size=4), prompts=st.integers(2, 20))
def test_engines_that_die_of_something_else_condemn_nobody(
    unlucky: list[bool], prompts: int
) -> None:
    """Of as many deaths as a prompt is allowed, one after the other, and one more."""
    told: list[str] = []
    suspects = Suspects(3, lambda prompt: told.append(prompt.id))
    rollouts = run(suspects, Engine(set(), unlucky), [job(p) for p in range(prompts)])
    assert not any(r.unmade for r in rollouts)
    assert told == []
    assert not suspects._seen, "what was made is no suspect"


def test_two_prompts_that_only_together_are_too_much_are_both_made() -> None:
    class Small(Engine):
        def __call__(self, jobs: Sequence[Job]) -> list[Rollout]:
            self.guilty = {1} if {1, 5} <= {one.prompt.index for one in jobs} else set()
            return super().__call__(jobs)

    told: list[str] = []
    suspects = Suspects(3, lambda prompt: told.append(prompt.id))
    rollouts = run(suspects, Small(set()), [job(p) for p in range(8)])
    assert [r.prompt for r in rollouts] == list(range(8))
    assert told == []


def test_a_test_prompt_of_the_same_number_is_another_one() -> None:
    suspects = Suspects(1, lambda prompt: None)
    run(suspects, Engine({3}), [job(3)])
    wanted, none = suspects.part([job(3), job(3, name="test")])
    assert [one.prompt.id for one in wanted] == ["test-3"]
    assert [r.prompt for r in none] == [3]


def test_what_stands_for_a_rollout_has_its_shape_and_survives_the_wire() -> None:
    one = job(2)
    rollout = unmade(one)
    assert rollout.unmade
    assert [len(cut) for cut in rollout.answers] == [2, 2]
    (back,) = columns.unpack(columns.pack([rollout]), [one])
    assert back.unmade
    assert [len(cut) for cut in back.answers] == [2, 2]
