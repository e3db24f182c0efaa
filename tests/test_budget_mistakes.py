"""Bad budgets: one line that names the field, the value and the fix, before any work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from samplers import seam
from samplers.types import Plan
from tests.scripted import PROMPT, RENDERER
from trainer import components
from trainer.config import resolve

CAP = 96
FIXED = {"name": "fixed", "think": 8}
TWO = {"high": {}, "low": {"suffix": "!"}}


def refused(spec: dict[str, Any]) -> str:
    """What the recipe's reader says; it must be one line."""
    with pytest.raises(ValueError) as caught:
        components.check("budget", "samplers.budgets", {"max_tokens": CAP, **spec})
    (line,) = str(caught.value).splitlines()
    assert line.startswith("budget")
    return line


def scheduled(schedule: Any, field: str = "think", of: Any = FIXED) -> dict[str, Any]:
    return {"name": "curriculum", "of": of, "fields": {field: schedule}}


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"name": "elastic", "think": 0}, "budget.think: 0 is no budget; give"),
        ({"name": "elastic", "think": -3}, "-3 is no budget"),
        ({"name": "elastic", "think": [9, 4]}, "[9, 4] is no budget"),
        ({"name": "elastic", "think": 8, "answer": [0, 4]}, "budget.answer: [0, 4]"),
        ({"name": "elastic", "think": "budget"}, "'meta:COLUMN'"),
        ({"name": "elastic", "think": True}, "True is no budget"),
        ({"name": "elastic", "think": 8, "answer": None, "separate": False}, "answer is null: set"),
        (
            {"name": "elastic", "think": [8, 200], "answer": 4},
            "think=200, the end marker and answer",
        ),
        ({"name": "anytime", "budgets": [0, 8]}, "budgets=[0, 8] must ascend from 1"),
        ({"name": "anytime", "budgets": [-4, 8]}, "budgets=[-4, 8] must ascend from 1"),
        ({"name": "anytime", "budgets": [8, 4]}, "budgets=[8, 4] must ascend"),
        ({"name": "anytime", "budgets": [8, 8]}, "budgets=[8, 8] must ascend"),
        ({"name": "anytime", "budgets": [8, 40], "think": 20}, "must end at the thinking limit"),
        ({"name": "anytime", "budgets": []}, "budget.budgets"),
        ({"name": "anytime", "budgets": [8, 90], "answer": 8}, "think=90, the end marker"),
        ({"name": "anytime"}, "think=8000, the end marker"),
        ({"name": "anytime", "think": 3, "answer": 4}, "count=4 cuts do not fit into think=3"),
        ({"name": "anytime", "think": 3, "answer": 4, "samples": 5}, "samples=5 cuts do not fit"),
        ({"name": "anytime", "budgets": [4, 8], "samples": 2}, "budgets and samples each say"),
        ({"name": "anytime", "answers_per_cut": 0}, "answers_per_cut"),
        ({"name": "anytime", "prior": [0.5, 0.6]}, "[0.5, 0.6] sums to 1.1"),
        ({"name": "anytime", "prior": [1.5, -0.5]}, "0 or more, that sum to 1"),
        ({"name": "anytime", "prior": "gauss"}, "'gauss' is no prior; allowed: uniform, linear"),
        (
            {"name": "anytime", "think": 20, "answer": 4, "prior": [0.5, 0.5]},
            "2 entries for 4 cuts",
        ),
        ({"name": "anytime", "think": 20, "answer": 4, "probe": "B"}, "probe='B' must say where"),
        (
            {
                "name": "anytime",
                "think": 20,
                "answer": 4,
                "probe": "{answer}",
                "answers_per_cut": 2,
            },
            "answers_per_cut=2: a probe scores one",
        ),
        ({"name": "hierarchical", "budgets": [16, 8]}, "budgets=[16, 8] must ascend"),
        ({"name": "hierarchical", "budgets": [0, 8]}, "must ascend from 1"),
        ({"name": "hierarchical"}, "budgets=2560 is above the response cap of 96"),
        ({"name": "hierarchical", "budgets": [8], "prefill": "T"}, "no text says {budget}"),
        ({"name": "hierarchical", "budgets": [8, 95], "hard": True}, "budgets=95, the end marker"),
        ({"name": "prompted", "budget": [0, 8]}, "[0, 8] is no budget"),
        ({"name": "prompted"}, "budget=4000 is above the response cap"),
        ({"name": "prompted", "budget": 8, "suffix": ""}, "no text says {budget}"),
        ({"name": "prompted", "budget": 96, "hard": True}, "budget=96, the end marker"),
        ({"name": "modes"}, "budget.modes: is required"),
        ({"name": "modes", "modes": {}}, "at least 1"),
        ({"name": "modes", "modes": {"a": {"think": -1}}}, "budget.modes.a.think"),
        ({"name": "modes", "modes": {"a": {"think": 95}}}, "modes.a.think=95, the end marker"),
        ({"name": "modes", "modes": {"a": {"max_tokens": 97}}}, "modes.a.max_tokens=97 is above"),
        ({"name": "modes", "modes": {"a": {"share": 0}}}, "budget.modes.a.share"),
        (
            {"name": "modes", "modes": TWO, "natural": "lo"},
            "natural='lo' is no mode; allowed: high",
        ),
        ({"name": "tiered", "easy": 9, "hard": 9}, "easy=9 must be below hard=9"),
        ({"name": "tiered"}, "hard=4000 is above the response cap"),
        ({"name": "tiered", "easy": 9, "hard": 95, "cap": "think"}, "hard=95, the end marker"),
        ({"name": "chunked", "chunk": 0}, "budget.chunk"),
        ({"name": "chunked", "of": FIXED}, "budget.chunk: is required"),
        ({"name": "chunked", "chunk": 8, "of": "fixd"}, "no component named 'fixd'"),
        ({"name": "chunked", "chunk": 8, "of": {"name": "fixed", "think": -1}}, "of.think"),
        (
            {"name": "chunked", "chunk": 8, "of": {"name": "anytime", "think": 9, "answer": 4}},
            "answers at several cuts",
        ),
        (scheduled({"kind": "exponential", "factor": 1, "end": 4}), "never leads from start=256"),
        (scheduled({"kind": "linear", "start": 40, "end": 40}), "nothing changes"),
        (scheduled([[0, 8], [5, 96]]), "at step 5: of: think=96, the end marker"),
        (scheduled([[0, 8], [5, -1]]), "at step 5: of.think"),
        (scheduled([[0, 8]], "thnk"), "at step 0: of.thnk: unknown field; did you mean 'think'"),
        (scheduled([[0, 8]], "think.2"), "fields.think.2: there is no '2' in 8"),
        (scheduled({"kind": "custom", "function": "nope:f", "steps": 3}), "'nope:f' cannot be"),
        (
            scheduled([[0, 8]], "of.think", {"name": "chunked", "chunk": 4, "of": FIXED}),
            "goes outs",
        ),
    ],
)
def test_configs(spec, told):
    assert told in refused(spec)


def asked(name: str, n: int, **settings: Any) -> list[Plan]:
    module, config = seam.resolve("samplers.budgets", {"name": name, "max_tokens": CAP, **settings})
    return module.plans(config, PROMPT, n, 0, {}, 0)


@pytest.mark.parametrize(
    ("name", "n", "settings", "told"),
    [
        ("hierarchical", 3, {"budgets": [1, 2, 3, 4]}, r"4 subgroups .* rollouts_per_prompt=4"),
        ("modes", 1, {"modes": TWO}, r"2 subgroups .* there are 1 of these"),
        (
            "elastic",
            2,
            {"think": "meta:tokens", "answer": 4},
            r"'meta:tokens' of prompt 'p3' is None",
        ),
        ("elastic", 2, {"think": 8, "max_tokens": None}, r"budget.max_tokens: not set"),
        ("prompted", 2, {"budget": "meta:tokens"}, r"every row needs a column 'tokens'"),
    ],
)
def test_plans(name, n, settings, told):
    with pytest.raises(ValueError, match=told) as caught:
        asked(name, n, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, 2.5, "12", True])
def test_a_column_that_holds_no_budget(value):
    module, config = seam.resolve("samplers.budgets", {"name": "elastic", "think": "meta:t"})
    with pytest.raises(ValueError, match=r"'meta:t' of prompt 'p3' is .*; every row needs"):
        module.plans(config, replace(PROMPT, meta={"t": value}), 2, 0, {}, 0)


@pytest.mark.parametrize(("name", "field"), [("elastic", "think"), ("prompted", "budget")])
def test_a_row_whose_budget_is_above_the_cap_is_named(name, field):
    settings = {field: "meta:t", "max_tokens": CAP}
    settings |= {"answer": 4} if name == "elastic" else {}
    module, config = seam.resolve("samplers.budgets", {"name": name, **settings})
    with pytest.raises(ValueError, match=f"budget of prompt 'p3': {field}=97"):
        module.plans(config, replace(PROMPT, meta={"t": CAP + 1}), 2, 0, {}, 0)


def plans(config: Any, prompt: Any, n: int, *_: Any) -> list[Plan]:
    """This file is a user's policy, too: one that cuts and does not say so."""
    return [Plan(CAP, cuts=(4, 8))] * n


def test_chunked_looks_at_the_plans_of_a_policy_that_says_nothing():
    with pytest.raises(ValueError, match=r"budget\.of: answers at several cuts"):
        asked("chunked", 2, of="tests.test_budget_mistakes", chunk=8)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (
            {"name": "elastic", "think": 8, "answer": 4, "per": "rollout"},
            "per=rollout has no effect",
        ),
        (
            {"name": "anytime", "think": 8, "answer": 4, "per": "rollout"},
            "per=rollout has no effect",
        ),
        ({"name": "modes", "modes": {"a": {}, "b": {}}}, "ask the model in the same way"),
        ({"name": "chunked", "of": FIXED, "chunk": CAP}, "chunk=96 has no effect"),
    ],
)
def test_settings_without_effect_warn(spec, told):
    with pytest.warns(UserWarning, match=told):
        seam.resolve("samplers.budgets", {"max_tokens": CAP, **spec})


@pytest.mark.parametrize("asks", [{"depth": 3}, {"effort": "B", "reasoning": True}])
def test_a_mode_that_the_template_does_not_know(asks):
    known, unknown = asked("modes", 2, modes={"high": {}, "low": {"template": asks}})
    RENDERER.render(PROMPT, known)
    with pytest.raises(ValueError, match="the chat template ignores the argument"):
        RENDERER.render(PROMPT, unknown)


RECIPE = {"name": "r", "model": {"path": "base/find"}, "data": {"task": "find"}}
ELASTIC = {"name": "elastic", "think": 8, "answer": 4}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"budget": ELASTIC, "thinking": "none"}, "budget=elastic needs thinking markers"),
        (
            {"budget": {"name": "anytime", "think": 8, "answer": 4}},
            "budget=anytime needs credit at cuts",
        ),
        (
            {"budget": scheduled([[0, 8]], of=ELASTIC), "thinking": "none"},
            "budget=curriculum needs thinking markers",
        ),
    ],
)
def test_stages_that_a_budget_does_not_suit(changes, told):
    with pytest.raises(ValueError, match=told):
        resolve({**RECIPE, **changes})
