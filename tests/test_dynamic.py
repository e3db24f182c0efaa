"""Dynamic sampling: enough informative groups, none lost, none twice, no step without end."""

from __future__ import annotations

import json
import random
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.allocation import dynamic
from samplers.allocation.base import informative
from samplers.types import Group, Job
from tests.allocated import Says, Steps, at_rates
from tests.test_run import _until, command, metrics, train, weights
from trainer.collect import Collected

rate_lists = st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), min_size=1, max_size=6)
surpluses = st.sampled_from(["keep", "train", "drop"])


def allocator(prompts: int, n: int, **fields: Any) -> dynamic.Allocator:
    return dynamic.Allocator(dynamic.Config(**fields), prompts, n)


def serials(groups: list[Group]) -> list[int]:
    return [group.serial for group in groups]


def mixed_if(*draws: int) -> Says:
    """Only these draws are informative."""
    return lambda draw, index: draw in draws and index == 0


@settings(deadline=None)
@given(
    rate_lists, surpluses, st.integers(1, 6), st.integers(1, 4), st.integers(1, 4),
    st.none() | st.integers(0, 99), st.sampled_from([0.0, 0.3, 0.8]),
)  # fmt: skip
def test_every_draw_ends_once_and_every_step_ends(
    rates: list[float],
    surplus: str,
    prompts: int,
    n: int,
    rounds: int,
    order: int | None,
    unfinished: float,
) -> None:
    """Whatever comes, in whatever order, and however long rollouts go on."""
    ours = allocator(prompts, n, surplus=surplus, max_rounds=rounds)
    coin = random.Random(order or 0)
    begun: dict[tuple[int, int], int] = {}

    def goes_on(job: Job) -> bool:  # over two more steps at most
        began = begun.setdefault((job.group, job.index), steps.taken)
        return steps.taken < began + 2 and coin.random() < unfinished

    steps = Steps(ours, at_rates(rates, order or 0), order, goes_on if unfinished else None)
    ends, waited = Counter[int](), 0
    for step in range(6):
        drawn, kept = steps.stream.drawn, list(ours.kept)
        out = steps.step(last=step == 5)
        tried = steps.stream.drawn - drawn
        ends.update([*serials(out.groups), *serials(out.discarded)])
        assert tried <= rounds * prompts
        assert all(informative(g) or n == 1 for g in out.groups)
        assert len(out.groups) <= prompts or surplus == "train" or len(ours.kept) == prompts
        assert ours.metrics()["allocation/missing"] == max(0, prompts - len(out.groups))
        assert set(kept) <= set(serials(out.groups)), "what was kept trains in the next step"
        assert len(ours.kept) <= prompts
        waited += len(ours.kept)
        assert ours.going + len(ours.kept) == len(out.carried) + (step == 5) * len(ours.kept)
        vain = sum(g.serial >= drawn and n > 1 and not informative(g) for g in out.discarded)
        enough = tried - vain >= prompts - len(kept)
        assert enough or tried == rounds * prompts, "no step gives up before its tries are used"
        if not unfinished:
            assert len(out.groups) >= prompts or tried == rounds * prompts
    assert ends == Counter(range(steps.stream.drawn))
    assert not waited or surplus == "keep"


def test_it_asks_until_enough_can_teach() -> None:
    ours = allocator(4, 3)
    steps = Steps(ours, mixed_if(0, 3, 5, 8, 9))
    out = steps.step()
    assert serials(out.groups) == [0, 3, 5, 8]
    assert serials(out.carried) == ours.kept == [9]
    assert steps.calls[0] == {0: 3, 1: 3, 2: 3, 3: 3}
    assert ours.metrics() == {
        "allocation/rounds": 2.5,
        "allocation/surplus": 1,
        "allocation/missing": 0,
        "allocation/informative_share": 0.5,
    }


@pytest.mark.parametrize(
    ("surplus", "trained", "dropped", "then"),
    [
        ("keep", [1, 2], [0], [3, 4]),
        ("train", [1, 2, 3], [0], [4, 5, 6]),
        ("drop", [1, 2], [0, 3], [4, 5]),
    ],
)
def test_a_surplus(surplus: str, trained: list[int], dropped: list[int], then: list[int]) -> None:
    """Draw 0 teaches nothing, so two are tried for the one that is missing, and both do teach.

    Then nine tenths are thought to teach: one more than is needed is tried.
    """
    steps = Steps(allocator(2, 2, surplus=surplus), lambda d, i: d != 0 and i == 0)
    out = steps.step()
    assert serials(out.groups) == trained
    assert serials(out.discarded) == dropped
    assert serials(steps.step().groups) == then


def test_what_is_dropped_does_not_depend_on_the_order_of_arrival() -> None:
    """Short rollouts come first, and are not preferred: of those that teach the first drawn do."""
    says = at_rates([0.1, 0.5, 0.9, 0.3], 7)
    teach = [d for d in range(60) if len({says(d, i) for i in range(4)}) == 2]
    dropped = 0
    for order in [None, *range(20)]:
        out = Steps(allocator(6, 4, surplus="drop"), says, order).step()
        assert serials(out.groups) == teach[:6]
        dropped += sum(map(informative, out.discarded))
    assert dropped, "the case is about a choice"


def test_nothing_informative_ends_and_says_so() -> None:
    ours = allocator(3, 2, max_rounds=4)
    out = Steps(ours, lambda d, i: True).step()
    assert not out.groups
    assert serials(out.discarded) == list(range(12))
    assert ours.metrics() == {
        "allocation/rounds": 4,
        "allocation/surplus": 0,
        "allocation/missing": 3,
        "allocation/informative_share": 0,
    }


def test_a_step_begins_its_own_whatever_is_under_way() -> None:
    """All go on over a step: each begins four, and has the four of the step before."""
    ours = allocator(4, 2)
    steps = Steps(ours, lambda d, i: i == 0, goes_on=lambda job: steps.taken == job.group // 4)
    out = steps.step()
    assert (serials(out.groups), serials(out.carried)) == ([], [0, 1, 2, 3])
    assert ours.metrics()["allocation/missing"] == 4
    for step in range(1, 5):
        assert serials(steps.step().groups) == list(range(4 * step - 4, 4 * step))
        assert ours.metrics()["allocation/missing"] == 0


@pytest.mark.parametrize("order", [None, 3])
@pytest.mark.parametrize(("chunks", "most"), [(1, 8), (2, 9), (4, 9)])
def test_steps_are_full_however_many_chunks_a_rollout_takes(
    chunks: int, most: float, order: int | None
) -> None:
    """Half of the draws are informative: once the first came in, a step trains about eight."""
    ours = allocator(8, 2)
    begun: dict[int, int] = {}

    def goes_on(job: Job) -> bool:
        return steps.taken < begun.setdefault(job.group, steps.taken) + chunks - 1

    halves = np.random.default_rng(0).random(3000) < 0.5
    steps = Steps(ours, lambda d, i: bool(halves[d]) and i == 0, order, goes_on)
    trained = [len(steps.step().groups) for _ in range(60)][3 * chunks :]
    assert 7 <= np.mean(trained) <= most
    assert np.mean([n >= 4 for n in trained]) > 0.9, "no step waits for another's"


def test_what_would_wait_twice_trains_at_once() -> None:
    """Three steps' draws, two each, end in the fourth: two train, two wait, two are too many."""
    ours = allocator(2, 2)
    steps = Steps(
        ours, lambda d, i: i == 0, goes_on=lambda job: steps.taken < 3 or job.group // 2 == 3
    )
    for _ in range(3):
        assert not steps.step().groups
    out = steps.step()
    assert serials(out.groups) == [0, 1, 4, 5]
    assert ours.kept == [2, 3]
    assert sorted(serials(out.carried)) == [2, 3, 6, 7]
    assert {2, 3} <= set(serials(steps.step().groups))


def test_how_many_are_asked_for_follows_the_share_that_teaches() -> None:
    """A tenth teaches: as many at a time as it may. All do: never more than needed. Half do: few
    too many."""
    rare = allocator(8, 2, max_rounds=100)
    steps = Steps(rare, lambda d, i: d % 10 == 0 and i == 0)
    steps.step()
    assert all(len(call) == 8 for call in steps.calls[:-1])
    common = allocator(8, 2)
    steps = Steps(common, lambda d, i: i == 0)
    for _ in range(3):
        steps.step()
        assert [len(call) for call in steps.calls] == [8]
    half = allocator(32, 2)
    steps = Steps(half, lambda d, i: d % 2 == 0 and i == 0)
    for step in range(1, 6):
        steps.step()
        assert len(half.kept) <= 4
        assert steps.stream.drawn <= 64 * step + 8


def test_informative_is_any_cut_and_within_a_mode() -> None:
    cuts = Steps(allocator(2, 2), lambda d, i: [False, i == 0, True])
    assert serials(cuts.step().groups) == [0, 1]
    answers = Steps(allocator(2, 2), lambda d, i: [[False, i == 0], [True, True]])
    assert serials(answers.step().groups) == [0, 1]
    for apart, trained in ((False, [0, 1]), (True, [])):
        ours = allocator(2, 4, max_rounds=2)
        ours.apart = apart
        modes = Steps(ours, lambda d, i: i % 2 == 0, modes=("high", "low"))
        assert serials(modes.step().groups) == trained


def test_unknown_verdicts_do_not_make_a_group_informative() -> None:
    ours = allocator(1, 3, max_rounds=1)
    assert not Steps(ours, lambda d, i: [True, True, None][i]).step().groups
    alone = allocator(2, 1, max_rounds=1)  # verl keeps groups of one
    assert serials(Steps(alone, lambda d, i: None if d == 0 else False).step().groups) == [1]


def test_it_goes_on_from_its_state() -> None:
    """A resumed run asks, keeps and trains as the uninterrupted one; also through JSON."""

    def run(steps: Steps, n: int) -> list[tuple[list[int], list[int], Any]]:
        def told(out: Collected) -> tuple[list[int], list[int], Any]:
            return serials(out.groups), serials(out.carried), dict(steps.allocator.metrics())

        return [told(steps.step()) for _ in range(n)]

    says = at_rates([0.0, 0.5, 0.7, 1.0, 0.1], 4)
    whole = Steps(allocator(4, 3), says)
    before = run(whole, 3)
    assert whole.allocator.kept, "the case is about kept groups"
    state = json.loads(json.dumps(whole.allocator.state_dict()))
    again = Steps(allocator(4, 3), says)
    again.allocator.load_state_dict(state)
    again.stream.drawn, again.carried = whole.stream.drawn, whole.carried
    assert run(again, 4) == run(whole, 4)
    assert again.allocator.state_dict() == whole.allocator.state_dict()
    assert before


def test_only_what_is_kept_waits() -> None:
    waits = [dynamic.waits(dynamic.Config(surplus=s)) for s in ("keep", "train", "drop")]
    assert waits == [1, 0, 0]


@pytest.mark.slow
def test_killed_and_run_again_equals_never_killed(tmp_path: Path) -> None:
    """Real engines and learners: what was kept is in the checkpoint, and trains after it."""
    settings = ("steps=5", "checkpoint={every: 1, keep: 9}")
    whole = train(tmp_path / "whole", *settings, recipe="dynamic/find")
    process = subprocess.Popen(
        command(tmp_path / "killed", *settings, recipe="dynamic/find"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    folder = tmp_path / "killed" / "dynamic-find-seed0"
    second = folder / "checkpoints" / "step-000002"
    _until((second / "COMPLETE").exists, process)
    process.kill()
    process.wait()
    train(tmp_path / "killed", *settings, recipe="dynamic/find")
    steps = metrics(whole)
    assert metrics(folder) == steps
    for name, array in weights(whole).items():
        np.testing.assert_array_equal(array, weights(folder)[name])
    assert all(step["groups"] == 4 for step in steps), "enough were informative in every step"
    assert all(step["allocation/surplus"] for step in steps[:-1]), "some wait at every checkpoint"
    assert max(step["staleness/max"] for step in steps) == 1
