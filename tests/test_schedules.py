"""A schedule takes the values that it says, reaches its end and stays there; or it is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from samplers.schedules import Schedule, drops, exponential
from tests.vectors import check, each

ADAPTER: TypeAdapter[Any] = TypeAdapter(Schedule)


def made(**settings: Any) -> Any:
    return ADAPTER.validate_python(settings)


@each("tlts_budget_schedule")
def test_budgets_are_those_of_train_long_think_short(case):
    given_ = dict(case["inputs"])
    step, kind = given_["step"], given_["kind"]
    if kind == "exponential":
        budget = exponential(step, given_["B0"], given_["gamma"], given_["interval"])
    else:
        shape = (given_["S0"], given_["S_f"], given_["n_decays"], given_["total_steps"])
        budget = drops(step, *shape, kind)
    check(case, {"budget": budget, "budget_int": int(budget)})


def test_the_papers_schedule_is_256_179_125_87():
    paper = made(kind="exponential", end=87, steps=600)
    assert [paper.value(step) for step in (0, 149, 150, 299, 300, 449, 450, 599, 10_000)] == [
        *(256, 256, 179, 179, 125, 125, 87, 87, 87)
    ]
    assert paper.last_step == 450
    assert made(kind="exponential", start=1, end=64, factor=2, interval=1).value(3) == 8


@st.composite
def schedules(draw: Any) -> Any:
    start, end = draw(st.integers(1, 400)), draw(st.integers(1, 400))
    assume(start != end)
    if draw(st.booleans()):
        factor = draw(st.floats(0.05, 0.99) if end < start else st.floats(1.01, 9.0))
        interval = draw(st.integers(1, 9))
        return made(kind="exponential", start=start, end=end, factor=factor, interval=interval)
    steps = draw(st.integers(2, 60))
    count = draw(st.none() | st.integers(1, steps - 1))
    kind = draw(st.sampled_from(["linear", "stepwise_exponential"]))
    return made(kind=kind, start=start, end=end, steps=steps, drops=count)


@settings(max_examples=300, deadline=None)
@given(schedules())
def test_a_schedule_goes_from_start_to_end_one_way_and_stays(schedule):
    last = schedule.last_step
    values = [schedule.value(step) for step in range(min(last, 3000) + 3)]
    assert values[0] == schedule.start
    assert values == sorted(values, reverse=schedule.end < schedule.start)
    if last < 3000:
        assert values[last:] == [schedule.end] * 3
        assert schedule.end not in values[:last]  # and no step sooner
    assert all(type(value) is int for value in values)
    if getattr(schedule, "steps", None):
        assert last < schedule.steps


def test_drops_hold_equally_long_and_may_come_at_every_step():
    steps = made(kind="linear", start=40, end=10, steps=8, drops=3)
    assert [steps.value(t) for t in range(8)] == [40, 40, 30, 30, 20, 20, 10, 10]
    smooth = made(kind="linear", start=40, end=10, steps=4, drops=None)
    assert [smooth.value(t) for t in range(5)] == [40, 30, 20, 10, 10]
    halves = made(kind="stepwise_exponential", start=64, end=8, steps=8, drops=3)
    assert [halves.value(t) for t in range(0, 8, 2)] == [64, 32, 16, 8]


def test_steps_hold_any_value_and_have_a_short_form():
    schedule = ADAPTER.validate_python([[0, [8, 16]], [5, [4, 8]]])
    assert [schedule.value(t) for t in (0, 4, 5, 99)] == [[8, 16], [8, 16], [4, 8], [4, 8]]
    assert schedule.last_step == 5


def triangle(step: int) -> int:
    """What a user might write."""
    return 8 + min(step, 6 - step if step < 4 else 2)


def test_a_custom_function_is_asked_within_its_steps():
    schedule = made(kind="custom", function="tests.test_schedules:triangle", steps=20)
    assert [schedule.value(t) for t in (0, 3, 4, 19, 500)] == [8, 11, 10, 10, 10]
    assert schedule.last_step == 4


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kind": "exponential", "end": 87, "factor": 1}, "factor=1.0 never leads"),
        ({"kind": "exponential", "end": 87, "factor": 1.1}, "never leads from start=256 to end=87"),
        ({"kind": "exponential", "end": 300}, "factor=0.7 never leads"),
        ({"kind": "exponential", "end": 256}, "never leads"),
        ({"kind": "exponential", "end": 87, "steps": 450}, "at step 450, not within steps=450"),
        ({"kind": "exponential"}, "end"),
        ({"kind": "exponential", "end": 0}, "greater than or equal to 1"),
        ({"kind": "exponential", "end": 87, "interval": 0}, "greater than or equal to 1"),
        ({"kind": "linear", "start": 9, "end": 9}, "nothing changes"),
        ({"kind": "linear", "steps": 3, "drops": 3}, "drops=3 never end within steps=3"),
        ({"kind": "stepwise_exponential", "drops": 0}, "greater than or equal to 1"),
        ({"kind": "step", "values": [[1, 8]]}, "must ascend from 0"),
        ({"kind": "step", "values": [[0, 8], [5, 4], [5, 2]]}, "must ascend from 0"),
        ({"kind": "step", "values": []}, "at least 1"),
        ({"kind": "cosine"}, "'exponential', 'linear'"),
    ],
)
def test_what_never_reaches_its_end_is_refused(settings, told):
    with pytest.raises(ValidationError, match=told):
        made(**settings)
