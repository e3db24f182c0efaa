"""Knapsack step by step: what it is told of prompts, in any order and late, and its state."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest

from samplers.allocation.base import Finish, PutBack, Receive, Sample, informative
from samplers.allocation.knapsack import (
    Allocator,
    Config,
    sizes_of,
)
from samplers.data import Dataset, PromptStream
from samplers.types import Group, Prompt
from tests import made


def pool(rates: list[float]) -> PromptStream:
    def get(i: int) -> Prompt:
        return Prompt(i, str(i), (), "", "", "exact", {"rate": rates[i]})

    return PromptStream(Dataset(get, len(rates), "pool"), seed=1)


def step(
    allocator: Allocator,
    stream: PromptStream,
    rng: random.Random,
    waiting: list[Group] | None = None,
    late: Callable[[Group], bool] = lambda group: False,
) -> list[Group]:
    """Groups come in a random order; those that are `late` in the next step."""
    ready: list[Group] = list(waiting or [])
    if waiting is not None:
        waiting.clear()
    done: list[Group] = []
    asks, reply = allocator.allocate(stream), None
    while True:
        try:
            ask = asks.send(reply)
        except StopIteration:
            break
        reply = None
        match ask:
            case Sample(draw, prompt, n):
                verdicts = [float(rng.random() < prompt.meta["rate"]) for _ in range(n)]
                group = replace(made.group(verdicts, serial=draw), prompt=prompt)
                if waiting is not None and late(group):
                    waiting.append(group)
                else:
                    ready.append(group)
            case Receive():
                reply = ready.pop(rng.randrange(len(ready))) if ready else None
            case Finish(group, kept_G, weights_G):
                assert kept_G is None
                done.append(replace(group, weights_G=weights_G))
            case PutBack(draw, prompt):
                stream.put_back(draw, prompt)
    allocator.observe(done)
    return done


def sizes_by_prompt(groups: Iterable[Group]) -> dict[int, int]:
    return {group.prompt.index: len(group) for group in groups}


def test_the_first_epoch_is_uniform_and_the_next_is_not() -> None:
    rates = [0.0, 1.0, 1.0, 1.0, 0.3, 1.0, 0.3, 0.0]
    allocator, rng = Allocator(Config(), 8, 8), random.Random(0)
    stream = pool(rates)
    first = step(allocator, stream, rng)
    assert sizes_by_prompt(first) == dict.fromkeys(range(8), 8)
    told = allocator.metrics()
    assert told["allocation/unvisited"] == 1
    assert told["allocation/unspent"] == 0
    assert "allocation/estimate_error" not in told
    second = sizes_by_prompt(step(allocator, stream, rng))
    assert sum(second.values()) == 64
    assert [second[i] for i in (1, 2, 3, 5)] == [2] * 4
    assert min(second[i] for i in (0, 4, 6, 7)) > 8
    told = allocator.metrics()
    assert told["allocation/unvisited"] == 0
    assert told["allocation/explored"] == (second[0] + second[7]) / 64


def test_errors_of_the_estimates_are_told() -> None:
    allocator = Allocator(Config(), 3, 4)

    def group(index: int, rate: float, right: int) -> Group:
        prompt = Prompt(index, "", (), "", "", "exact", {"rate": rate})
        return replace(made.group([1.0] * right + [0.0] * (4 - right)), prompt=prompt)

    allocator.observe([group(0, 0.5, 1), group(1, 0.5, 4)])
    assert not allocator.metrics()
    allocator.observe([group(0, 0.5, 2), group(1, 0.75, 4), group(2, 0.5, 4)])
    assert allocator.metrics() == {
        "allocation/estimate_error": 0.125,  # of the two visited before: 1/4 and 0
        "allocation/rate_error": 0.25,
    }


def test_weights_make_prompts_count_alike() -> None:
    rates, rng = [0.0, 1.0, 0.5, 0.1, 0.9, 1.0], random.Random(3)
    allocator, stream = Allocator(Config(weights="prompts"), 6, 8), pool(rates)
    for _ in range(3):
        groups = step(allocator, stream, rng)
    assert len({len(group) for group in groups}) > 2
    sums = [float(group.weights_G.sum()) for group in groups if group.weights_G is not None]
    assert sums == pytest.approx([8.0] * 6)
    assert all(g.weights_G is None for g in step(Allocator(Config(), 6, 8), pool(rates), rng))


def test_it_goes_on_from_its_state_with_groups_that_come_late() -> None:
    rates = [random.Random(5).random() for _ in range(24)]
    allocator, stream = Allocator(Config(estimate="ema"), 6, 8), pool(rates)
    rng, waiting = random.Random(7), list[Group]()

    def late(group: Group) -> bool:
        return group.serial % 3 == 0

    for _ in range(9):
        step(allocator, stream, rng, waiting, late)
    again, other = Allocator(Config(estimate="ema"), 6, 8), pool(rates)
    again.load_state_dict(allocator.state_dict())
    other.load_state_dict(stream.state_dict())
    rng_again, waiting_again = random.Random(), list(waiting)
    rng_again.setstate(rng.getstate())
    trained = []
    for _ in range(6):
        ours = step(allocator, stream, rng, waiting, late)
        theirs = step(again, other, rng_again, waiting_again, late)
        assert [(g.serial, len(g)) for g in ours] == [(g.serial, len(g)) for g in theirs]
        assert allocator.metrics() == again.metrics()
        trained += [g.serial for g in ours]
    assert len(trained) == len(set(trained))


def test_it_finds_more_mixed_groups_than_uniform() -> None:
    """A pool with a tail, at the same number of rollouts: the effect that the paper reports."""
    rng = random.Random(0)
    rates = [0.99] * 40 + [0.5] * 12 + [0.03] * 12

    def ratio(allocator: Allocator) -> float:
        stream = pool(rates)
        groups = [g for i in range(24) for g in step(allocator, stream, rng) if i >= 4]
        assert sum(map(len, groups)) == 20 * 16 * 8
        return sum(len(g) for g in groups if informative(g)) / (20 * 16 * 8)

    uniform = ratio(Allocator(Config(low=8, up=8), 16, 8))
    assert ratio(Allocator(Config(), 16, 8)) > 1.2 * uniform


def by_mode(index: int, rates: dict[str, float], n: int = 8) -> Group:
    """`n` rollouts of each mode, of which that share is right."""
    right = [float(i < rate * n) for rate in rates.values() for i in range(n)]
    modes = [mode for mode in rates for _ in range(n)]
    group = made.group(right)
    rollouts = tuple(
        replace(r, plan=replace(r.plan, subgroup=mode))
        for r, mode in zip(group.rollouts, modes, strict=True)
    )
    prompt = Prompt(index, str(index), (), "", "", "exact")
    return replace(group, prompt=prompt, rollouts=rollouts)


def test_budgets_that_are_no_longer_in_use_change_nothing() -> None:
    """A curriculum of two budgets, changed three times before: eight subgroups were seen."""
    live = [{"64": i / 8, "128": (8 - i) / 16} for i in range(8)]

    def fresh() -> Allocator:
        allocator = Allocator(Config(), 8, 8)
        allocator.apart = True
        return allocator

    def sizes(allocator: Allocator) -> dict[int, int]:
        again = fresh()  # as after a resume, or in a later stage
        again.load_state_dict(allocator.state_dict())
        found = []
        for one in (allocator, again):
            asks = [ask for ask in one.allocate(pool([0.5] * 8)) if isinstance(ask, Sample)]
            found.append({ask.prompt.index: ask.n for ask in asks})
        assert found[0] == found[1]
        return found[0]

    changed, plain = fresh(), fresh()
    for budget in (1024, 512, 256):
        old = {str(budget): 0.25, str(2 * budget + 1): 0.75}
        changed.observe([by_mode(i, old) for i in range(8)])
        assert set(sizes(changed).values()) == {8}  # all alike
    for one in (changed, plain):
        one.observe([by_mode(i, rates, 16) for i, rates in enumerate(live)])
    assert len(changed.state_dict()["statistics"]["units"]) == 8
    found = sizes(changed)
    assert found == sizes(plain)
    rates_NM = np.array([list(live[i].values()) for i in found])
    assert list(found.values()) == sizes_of(Config(), rates_NM, 8).tolist()
    assert len(set(found.values())) > 2
    for one in (changed, plain):  # the next change: it is all that is known of prompt 0 alone
        one.observe([by_mode(0, {"16": 0.5, "32": 0.5})])
    assert sizes(changed) == sizes(plain)
    assert changed.metrics()["allocation/unvisited"] == 7 / 8
