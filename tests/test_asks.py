"""Every rollout that an allocator asks for has one fate, whatever it asks and who is done first."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from samplers import seeds
from samplers.allocation.base import (
    Discard,
    Finish,
    Keep,
    PutBack,
    Receive,
    Sample,
    informative,
    units,
)
from samplers.types import Group, Job, Plan, Prompt, Rollout
from tests.made import group as made_group
from tests.test_collect import make, verify
from trainer.collect import Collected, Rounds, collect
from trainer.rows import rows, weighted


class Returning:
    """Numbered prompts; what is put back comes first."""

    def __init__(self) -> None:
        self.drawn, self.returned = 0, []

    def next(self) -> tuple[int, Prompt]:
        if self.returned:
            return self.returned.pop(0)
        draw, self.drawn = self.drawn, self.drawn + 1
        return draw, Prompt(draw, f"p{draw}", (), f"q{draw}", "", "exact")

    def put_back(self, draw: int, prompt: Prompt) -> None:
        self.returned.append((draw, prompt))
        self.returned.sort(key=lambda entry: entry[0])


class OneByOne:
    """A flow whose lots are done in any order, some at a time."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.lots = rng, []

    def add(self, jobs: list[Job]) -> None:
        self.lots.append(list(jobs))

    def take(self) -> list[list[Rollout]]:
        self.rng.shuffle(self.lots)
        done = [self.lots.pop() for _ in range(self.rng.randint(1, len(self.lots)))]
        return [make(lot) for lot in done]


class Script:
    """An allocator that is the generator it is given."""

    def __init__(self, asks: Any) -> None:
        self.allocate = asks


def step(asks: Any, stream: Any, making: Any = None, **more: Any) -> Collected:
    return collect(
        Script(asks), stream, lambda p, n, key: [Plan(4)] * n, making or Rounds(make), verify,
        lambda groups, what: groups, seed=3, temperature=1.0, **more,
    )  # fmt: skip


def indices(groups: list[Group]) -> list[tuple[int, list[int]]]:
    return [(g.serial, [r.index for r in g.rollouts]) for g in groups]


@pytest.mark.parametrize("seed", range(60))
def test_nothing_is_lost_or_made_twice(seed: int) -> None:
    """Random allocators over several steps; rounds, or lots that come one by one."""
    rng = random.Random(seed)
    stream, asked = Returning(), Counter()
    streaming = rng.random() < 0.7

    def asks(stream: Returning) -> Any:
        for _ in range(rng.randint(1, 4)):
            draw, prompt = stream.next()
            if rng.random() < 0.9:
                n = rng.randint(1, 3)
                asked[draw] += n
                yield Sample(draw, prompt, n)
            else:
                yield PutBack(draw, prompt)
        for _ in range(rng.randint(0, 12)):
            group = yield Receive()
            if group is None:
                break
            assert len(group.verdicts) == len(group)
            fate = rng.random()
            if fate < 0.3:
                asked[group.serial] += 2
                yield Sample(group.serial, group.prompt, 2)
            elif fate < 0.6:
                yield Finish(group)
            elif fate < 0.7 and not group.part:
                yield Keep(group)
            elif fate < 0.8:
                yield Discard(group)
                if rng.random() < 0.5:
                    asked[group.serial] += 1
                    yield Sample(group.serial, group.prompt, 1)
            elif fate < 0.9:
                yield Discard(group)
                yield PutBack(group.serial, group.prompt)

    seen: list[tuple[int, int]] = []
    carried: list[Group] = []
    made: dict[int, int] = {}
    steps = 6
    for number in range(steps):
        making = OneByOne(rng) if streaming else Rounds(make)
        out = step(asks, stream, making, carried=carried, made=made, last=number == steps - 1)
        for group in (*out.groups, *out.discarded):
            assert all(r.group == group.serial for r in group.rollouts)
            assert [v[0][0].correct for v in group.verdicts] == [
                r.index == 5 for r in group.rollouts
            ], "verdicts lie beside their rollouts"
            seen += [(group.serial, r.index) for r in group.rollouts]
        assert out.groups == sorted(out.groups, key=lambda g: (g.serial, g.part))
        keys = [g.key for g in out.groups]
        assert len(set(keys)) == len(keys)
        carried, made = out.carried, {**made, **out.made}
    assert not carried
    assert Counter(seen).most_common(1)[0][1] == 1, "no rollout twice"
    assert Counter(draw for draw, _ in seen) == asked
    for draw, n in asked.items():
        assert sorted(i for d, i in seen if d == draw) == list(range(n)), "indices go on"


def test_what_is_kept_comes_first_in_the_next_step() -> None:
    stream = Returning()

    def keeps(stream: Any) -> Any:
        for _ in range(2):
            yield Sample(*stream.next(), 2)
        yield Finish((yield Receive()))
        yield Keep((yield Receive()))

    first = step(keeps, stream)
    assert (indices(first.groups), indices(first.carried)) == ([(0, [0, 1])], [(1, [0, 1])])

    def takes(stream: Any) -> Any:
        yield Sample(*stream.next(), 1)
        kept = yield Receive()
        assert (kept.serial, len(kept.verdicts)) == (1, 2)
        yield Sample(1, kept.prompt, 1)  # and may grow
        while (group := (yield Receive())) is not None:
            yield Finish(group)

    second = step(takes, stream, carried=first.carried)
    assert indices(second.groups) == [(1, [0, 1, 2]), (2, [0])]
    unsaid = step(keeps, stream, last=True)
    assert (len(unsaid.carried), indices(unsaid.discarded)) == (0, [(4, [0, 1])])


def test_a_draw_that_goes_on_after_it_was_trained_is_another_group() -> None:
    def parts(stream: Any) -> Any:
        yield Sample(*stream.next(), 3)
        pilot = yield Receive()
        yield Finish(pilot, weights_G=np.full(3, 0.5))
        yield Sample(pilot.serial, pilot.prompt, 2)
        yield Finish((yield Receive()))

    one, two = step(parts, Returning()).groups
    assert indices([one, two]) == [(0, [0, 1, 2]), (0, [3, 4])]
    assert [r.seed for r in two.rollouts] == [seeds.key(3, 0, 3), seeds.key(3, 0, 4)]
    assert one.key != two.key
    trained = [row for g in (one, two) for row in rows(g)]
    assert len({(row.group, row.rollout) for row in trained}) == 5
    given = [replace(row, advantages_T=np.ones(len(row), np.float32)) for row in trained]
    after = weighted(given, [one, two])
    assert [float(row.advantages_T[0]) for row in after] == [0.5, 0.5, 0.5, 1.0, 1.0]


def test_random_numbers_of_a_draw_go_on_over_steps() -> None:
    """What was piloted in one step and is sampled in another is not the same rollout again."""
    stream = Returning()

    def pilots(stream: Any) -> Any:
        for _ in range(2):
            yield Sample(*stream.next(), 2)
        while (group := (yield Receive())) is not None:
            yield Discard(group)
            yield PutBack(group.serial, group.prompt)

    def uses(stream: Any) -> Any:
        yield Sample(*stream.next(), 2)
        yield Finish((yield Receive()))

    first = step(pilots, stream)
    assert first.made == {0: 2, 1: 2}
    second = step(uses, stream, made=first.made)
    third = step(uses, stream, made=first.made)
    assert indices([*second.groups, *third.groups]) == [(0, [2, 3]), (1, [2, 3])]


def of_modes(right: list[float], modes: str) -> Group:
    group = made_group(right)
    each = zip(group.rollouts, modes, strict=True)
    return replace(
        group, rollouts=tuple(replace(r, plan=replace(r.plan, subgroup=m)) for r, m in each)
    )


def test_informative_within_modes() -> None:
    """All of one mode right and none of the other: nothing to compare within either."""
    apart = of_modes([1, 1, 0, 0], "hhll")
    assert informative(apart)
    assert not informative(apart, apart=True)
    assert informative(of_modes([1, 0, 0, 0], "aabb"), apart=True)
    assert {k: v.tolist() for k, v in units(apart, True).items()} == {"h": [0, 1], "l": [2, 3]}
    assert not informative(of_modes([1, np.nan, 1], "aaa"))


def named_twice(group: Group) -> Any:
    yield Finish(group)
    yield Finish(group)


@pytest.mark.parametrize(
    ("asks", "match"),
    [
        (lambda group: iter([group]), "Group is nothing that can be asked for"),
        (named_twice, "draw 0 was finished, kept or discarded twice"),
        (lambda group: iter([Finish(group, np.ones(2, bool))]), r"kept_G of \(2,\) for 3 rollouts"),
        (lambda group: iter([Finish(group, weights_G=np.ones((3, 1)))]), r"weights_G of \(3, 1\)"),
        (lambda group: iter([Sample(0, group.prompt, 0)]), "0 rollouts of draw 0; ask for 1"),
    ],
)
def test_what_cannot_be_asked_is_told(asks: Any, match: str) -> None:
    def allocate(stream: Any) -> Any:
        yield Sample(*stream.next(), 3)
        yield from asks((yield Receive()))

    with pytest.raises(ValueError, match=match) as told:
        step(allocate, Returning())
    assert "\n" not in str(told.value)
