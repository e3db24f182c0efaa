"""GVM: who gets how many rollouts, and blocks that survive a resume."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.allocation import gvm
from samplers.allocation._apportion import apportion, bounded
from samplers.data import Dataset, PromptStream
from samplers.types import Group, Prompt
from tests import vectors
from tests.allocated import Says, Steps, Streaming, at_rates
from tests.made import group as made_group
from trainer import rehearsal
from trainer.collect import Collected, Rounds, collect
from trainer.config import Stage, resolve


def allocator(prompts: int, n: int, **fields: Any) -> gvm.Allocator:
    return gvm.Allocator(gvm.Config(**fields), prompts, n)


class Blocks(Steps):
    """Steps on a stream that takes draws back; gradients have the norms of `norm(draw, index)`."""

    def __init__(
        self, allocator: Any, says: Says, norm: Callable[[int, int], float], **more: Any
    ) -> None:
        super().__init__(allocator, says, **more)
        self.norm, self.made = norm, {}
        self.asked: list[tuple[list[int], str]] = []
        """What the learners were asked to measure, this step."""
        prompts = Dataset(lambda i: Prompt(i, f"p{i}", (), "", "", "exact"), None, "numbered")
        self.stream = PromptStream(prompts)

    def step(self, last: bool = False) -> Collected:
        self.calls, self.asked = [], []
        making = Rounds(self._make) if self.order is None else Streaming(self._make, self._mixed())
        out = collect(
            self.allocator, self.stream, self._plans, making, self._verify, self._measure,
            seed=5, temperature=1.0, carried=self.carried, made=self.made, last=last,
        )  # fmt: skip
        returned = {draw for draw, _ in self.stream.returned}
        known = {**self.made, **out.made}
        self.made = {draw: n for draw, n in known.items() if draw in returned}
        self.carried, self.taken = out.carried, self.taken + 1
        self.allocator.observe([*out.groups, *out.discarded])
        return out

    def _measure(self, groups: Any, what: str) -> list[Group]:
        self.asked.append(([g.serial for g in groups], what))
        out = []
        for group in groups:
            right_G = (group.correct_GCA & group.known_GCA)[:, -1, 0]
            norms = tuple(
                np.array([self.norm(group.serial, r.index)] if right else [], np.float32)
                for r, right in zip(group.rollouts, right_G, strict=True)
            )
            out.append(replace(group, annotations={"grad_norm": norms}))
        return out

    def state(self) -> Any:
        state = self.stream.state_dict(), self.allocator.state_dict(), list(self.made.items())
        return json.loads(json.dumps(state))

    def load(self, state: Any) -> None:
        self.stream.load_state_dict(state[0])
        self.allocator.load_state_dict(state[1])
        self.made = dict(state[2])


def sampled(groups: list[Group]) -> dict[int, list[int]]:
    return {g.serial: [r.index for r in g.rollouts] for g in groups}


# -- how many -------------------------------------------------------------------------------------


@vectors.each("gvm_allocation")
def test_the_released_code(case: vectors.Case) -> None:
    given = dict(case["inputs"])
    total, filters = given.pop("total_samples"), ("filter_threshold", "filter_insufficient")
    weights_N = gvm.weights_of(**{k: v for k, v in given.items() if k not in filters})
    rates_N = np.array(given["accept_rates"])
    ratios_N = gvm.shares_of(weights_N, rates_N, total, *(given[name] for name in filters))
    vectors.check(case, {"ratios": ratios_N, "sizes": gvm.sizes_of(**given, total=total)})


def test_nothing_right_anywhere_is_shared_out_alike_and_what_filters_leave_out_gets_nothing() -> (
    None
):
    assert gvm.sizes_of([1, 2, 0], [0, 0, 0.5], 9).tolist() == [3, 3, 3]
    assert gvm.sizes_of([1, 2], [0.9, 0.8], 8, filter_threshold=0.5).tolist() == [0, 0]
    assert gvm.sizes_of([1, 2], [0.1, 0.1], 4, filter_insufficient=3).tolist() == [0, 0]


shares = st.lists(
    st.one_of(st.just(0.0), st.floats(1e-3, 10)), min_size=1, max_size=12
).map(lambda w: np.array(w) / (sum(w) or 1.0))  # fmt: skip


@given(shares, st.integers(1, 200), st.integers(0, 6), st.integers(0, 60), st.booleans())
def test_whole_rollouts_within_bounds(
    shares_N: Any, total: int, least: int, more: int, all_get: bool
) -> None:
    if all_get:
        total = max(total, least * len(shares_N))
    most = least + more
    sizes_N = apportion(shares_N, total, least, most, all_get)
    floor = np.full(len(shares_N), least) if all_get else np.where(sizes_N > 0, least, 0)
    assert (floor <= sizes_N).all()
    assert (sizes_N <= max(most, least)).all()
    assert not sizes_N[shares_N == 0].any() or (all_get and least)
    assert sizes_N.sum() <= total
    room = sizes_N[(shares_N > 0)] < min(most, total)
    affordable = all_get or not least or (shares_N > 0).sum() * least <= total
    if room.any() and affordable:
        assert sizes_N.sum() == total


@given(shares, st.integers(1, 200), st.integers(1, 4), st.integers(1, 30), st.randoms())
def test_no_exchange_between_two_prompts_lowers_the_variance(
    shares_N: Any, total: int, least: int, more: int, random: Any
) -> None:
    """sum(share^2 / n) at its least within the bounds: moving rollouts about only raises it."""
    shares_N = shares_N[shares_N > 0]
    if len(shares_N) < 2 or least * len(shares_N) > total:
        return
    low_N, high_N = np.full(len(shares_N), float(least)), np.full(len(shares_N), least + more + 0.0)
    real_N = bounded(shares_N, total, low_N, high_N)
    assert real_N.sum() == pytest.approx(min(total, high_N.sum()))
    for _ in range(20):
        a, b = random.sample(range(len(shares_N)), 2)
        moved = random.uniform(0, min(real_N[a] - low_N[a], high_N[b] - real_N[b]))
        other_N = real_N.copy()
        other_N[a], other_N[b] = other_N[a] - moved, other_N[b] + moved
        before, after = ((shares_N**2 / n).sum() for n in (real_N, other_N))
        assert after >= before * (1 - 1e-9)


def test_what_is_too_little_for_all_goes_to_those_with_most_to_gain() -> None:
    sizes_N = apportion(np.array([0.1, 0.4, 0.2, 0.3]), 5, least=2)
    assert sizes_N.tolist() == [0, 3, 0, 2]
    assert apportion(np.array([0.01, 0.99]), 10, least=2).tolist() == [2, 8]
    assert apportion(np.array([0.0, 1.0]), 10, least=2, all_get=True).tolist() == [2, 8]


# -- blocks ---------------------------------------------------------------------------------------

RATES = (0.0, 0.1, 0.3, 0.5, 0.8, 1.0)


def norm(draw: int, index: int) -> float:
    return 0.5 + draw % 3 + 0.01 * index


def pilot_of(says: Says, draw: int, pilot: int) -> tuple[float, float]:
    right = [i for i in range(pilot) if says(draw, i)]
    return (np.mean([norm(draw, i) for i in right]) if right else 0.0), len(right) / pilot


@pytest.mark.parametrize("order", [None, 0, 1, 2])
def test_a_block_is_measured_at_its_first_step_and_trained_in_all(order: int | None) -> None:
    says, prompts, n, pilot, every = at_rates(RATES, 3), 4, 6, 5, 3
    steps = Blocks(
        allocator(prompts, n, every=every, pilot=pilot, least=1), says, norm, order=order
    )
    for block in range(2):
        draws = [block * every * prompts + i for i in range(every * prompts)]
        norms_N, rates_N = zip(*(pilot_of(says, d, pilot) for d in draws), strict=True)
        sizes = dict(
            zip(draws, gvm.sizes_of(norms_N, rates_N, len(draws) * n).tolist(), strict=True)
        )
        assert sum(sizes.values()) == len(draws) * n
        assert 0 in sizes.values()
        for at in range(every):
            out = steps.step()
            if at == 0:
                assert sampled(out.discarded) == {d: list(range(pilot)) for d in draws}
                right = [d for d, rate in zip(draws, rates_N, strict=True) if rate]
                assert steps.asked == [(right, "grad_norm:embedding")]
            else:
                assert not out.discarded
                assert not steps.asked
            mine = draws[at * prompts :][:prompts]
            later = {d: list(range(pilot, pilot + sizes[d])) for d in mine if sizes[d]}
            assert sampled(out.groups) == later
            figures = steps.allocator.metrics()
            assert figures["allocation/pilot_rollouts"] == (0 if at else len(draws) * pilot)
            assert figures["allocation/zero"] == prompts - len(later)
            if at == 0:
                assert figures["allocation/accept_rate"] == pytest.approx(np.mean(rates_N))
                measured = [g for g in norms_N if g]
                assert figures["allocation/grad_norm"] == pytest.approx(np.mean(measured))
    assert not steps.stream.returned


@pytest.mark.parametrize("at", range(1, 5))
def test_a_resume_within_a_block_goes_on_with_it(at: int) -> None:
    def fresh() -> Blocks:
        return Blocks(allocator(3, 4, every=3, pilot=4), at_rates(RATES, 1), norm)

    one = fresh()
    for _ in range(at):
        one.step()
    other = fresh()
    other.load(one.state())
    for _ in range(4):
        ours, theirs = one.step(), other.step()
        assert sampled(ours.groups) == sampled(theirs.groups)
        assert sampled(ours.discarded) == sampled(theirs.discarded)
        assert one.allocator.metrics() == other.allocator.metrics()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.02, 0.3, 0.5, 0.9, 1.0]), min_size=1, max_size=5),
    st.integers(1, 3), st.integers(1, 4), st.integers(2, 6), st.integers(1, 6),
    st.integers(1, 3), st.booleans(), st.sampled_from([None, 7]),
)  # fmt: skip
def test_what_a_block_samples_is_what_was_promised(
    rates: list[float], every: int, prompts: int, n: int, pilot: int, least: int,
    count_pilot: bool, order: int | None,
) -> None:  # fmt: skip
    pilot = min(pilot, n - count_pilot)
    later = n - pilot if count_pilot else n
    least = min(least, every * prompts * later)
    ours = allocator(
        prompts, n, every=every, pilot=pilot, least=least, most=max(least, 2 * n),
        count_pilot=count_pilot,
    )  # fmt: skip
    steps = Blocks(ours, at_rates(rates, 2), norm, order=order)
    trained = unspent = made = 0
    for _ in range(every):
        out = steps.step()
        unspent += ours.metrics().get("allocation/unspent", 0)
        made += sum(map(len, [*out.groups, *out.discarded]))
        trained += sum(map(len, out.groups))
        assert all(least <= len(g) <= max(least, 2 * n) for g in out.groups)
    assert trained + unspent == every * prompts * later
    assert made == trained + every * prompts * pilot
    if count_pilot:
        assert made + unspent == every * prompts * n


def test_every_prompt_may_weigh_the_same() -> None:
    steps = Blocks(
        allocator(6, 8, every=1, pilot=8, weights="prompts"), at_rates(RATES, 0), norm
    )  # fmt: skip
    groups = steps.step().groups
    assert len({len(g) for g in groups}) > 1
    each = [g.weights_G.sum() for g in groups if g.weights_G is not None]
    assert each == pytest.approx([sum(map(len, groups)) / len(groups)] * len(groups))


def test_unknown_verdicts_and_what_was_not_measured_say_nothing() -> None:
    ours, nan = allocator(1, 8), float("nan")
    norms = tuple(np.array(n, np.float32) for n in ([3.0], [9.0], [], [1.0], []))
    pilot = made_group([1, nan, 1, 1, 0], annotations={"grad_norm": norms})
    found = ours.measure(pilot)
    assert (found.rate, found.norm) == (0.75, 2.0)
    assert found.weight == pytest.approx(float(gvm.weights_of(2.0, 0.75)))
    blind = ours.measure(made_group([nan, nan]))
    assert np.isnan([blind.rate, blind.norm]).all()
    assert blind.weight == 0
    assert ours.measure(made_group([1, 0])).weight == 0  # right, and nothing was measured


def test_modes_that_are_compared_apart_add_their_variances_up() -> None:
    """Two modes, right 1/2 and 1/1 of the time, norms 2 and 1: n rollouts are half of each."""
    ours = allocator(1, 8, alpha=0)
    norms = tuple(np.array(n, np.float32) for n in ([2.0], [1.0], [], [1.0]))
    pilot = made_group([1, 1, 0, 1], annotations={"grad_norm": norms})
    modes = ("long", "short", "long", "short")
    turns = tuple(
        replace(r, plan=replace(r.plan, subgroup=mode))
        for r, mode in zip(pilot.rollouts, modes, strict=True)
    )
    pilot = replace(pilot, rollouts=turns)
    together = ours.measure(pilot)
    ours.apart = True
    apart = ours.measure(pilot)
    assert together.weight**2 == pytest.approx((4 / 3) ** 2 / 0.75)
    assert apart.weight**2 == pytest.approx(0.5 * 2**2 / 0.5 + 0.5 * 1**2 / 1)
    assert (together.rate, together.norm) == (apart.rate, apart.norm)


# -- what contradicts itself ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rollouts", "fields", "says"),
    [
        (8, {"pilot": 9}, "pilot=9 is more than rollouts_per_prompt=8"),
        (8, {"pilot": 8, "count_pilot": True}, "leaves 0 of rollouts_per_prompt=8"),
        (8, {"pilot": 7, "reuse": True, "every": 1}, "and 2 or more are needed"),
        (8, {"reuse": True, "pilot": 4}, "every=10"),
        (8, {"least": 4, "most": 3}, "most=3 is below least=4"),
        (8, {"most": 7}, "most=7 is below the 8 rollouts"),
        (1, {"pilot": 1, "every": 1, "least": 5}, "least=5 is more than the 4 rollouts"),
    ],
)
def test_pilot_and_bounds_that_do_not_fit(rollouts: int, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        allocator(4, rollouts, **fields)


def test_sizes_are_those_that_can_be_asked_for() -> None:
    assert gvm.sizes(gvm.Config(every=2, least=3), 4, 8) == (3, 64)
    assert gvm.sizes(gvm.Config(every=2, most=20, pilot=1), 4, 8) == (1, 20)
    assert gvm.sizes(gvm.Config(every=1, pilot=4, reuse=True), 4, 8) == (2, 16)


@pytest.mark.parametrize(
    ("fields", "fewest"),
    [
        ({"every": 2, "pilot": 1, "least": 2}, 2),
        ({"every": 2, "pilot": 4, "least": 1}, 1),
        ({"every": 1, "pilot": 1, "least": 3, "reuse": True}, 1),
        ({"every": 1, "pilot": 5, "least": 2, "reuse": True}, 2),
    ],
)
def test_the_smallest_group_that_trains(fields: dict[str, Any], fewest: int) -> None:
    assert gvm.trains(gvm.Config(**fields), 6, 8) == fewest
    steps = Blocks(allocator(6, 8, **fields), at_rates(RATES, 0), lambda d, i: 10.0 ** (d % 5))
    trained = [len(g) for _ in range(6) for g in steps.step().groups]
    assert min(trained) == fewest


def stage(updates: int, **fields: Any) -> Stage:
    made = resolve({
        "name": "x", "model": {"path": "base/find"}, "data": {"task": "find"},
        "prompts_per_step": 4, "rollouts_per_prompt": 8, "updates_per_batch": updates,
        "allocation": {"name": "gvm", "pilot": 4, **fields},
    })  # fmt: skip
    return made.stages[0]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"reuse": True, "every": 1}, r"reuse=true .*updates_per_batch=1, or reuse=false"),
        ({"weights": "prompts"}, r"weights=prompts .*updates_per_batch=1, or weights=rollouts"),
    ],
)
def test_prompts_do_not_count_alike_over_several_updates(fields: dict[str, Any], says: str) -> None:
    stage(1, **fields)
    with pytest.raises(ValueError, match=f"several updates a batch: {says}"):
        stage(2, **fields)
    stage(2)


def test_a_group_of_one_is_only_what_trains() -> None:
    prompt = made_group([1.0]).prompt
    rehearsal.check(stage(1, pilot=1), prompt, None)
    for fields in ({"least": 1}, {"pilot": 1, "every": 1, "reuse": True}):
        with pytest.raises(ValueError, match="may train 1 rollouts of a prompt"):
            rehearsal.check(stage(1, **fields), prompt, None)


def test_settings_that_reuse_does_not_read_are_told() -> None:
    reuse: dict[str, Any] = {"every": 1, "pilot": 4, "reuse": True}
    with pytest.warns(UserWarning, match="weights=prompts has no effect with reuse=true"):
        gvm.Config(**reuse, weights="prompts")
    with pytest.warns(UserWarning, match="count_pilot=True has no effect with reuse=true"):
        gvm.Config(**reuse, count_pilot=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gvm.Config(**gvm.Config(**reuse).model_dump())
        gvm.Config(weights="prompts", count_pilot=True, pilot=4)
