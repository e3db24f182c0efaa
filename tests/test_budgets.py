"""Every budget policy makes the plans that it promises, from its key alone."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers import seam
from samplers.budgets import anytime, base
from samplers.facts import CHUNKS, CUT_CREDIT, CUTS, MARKERS, MODES, PROBES, SUBGROUPS, TARGET
from samplers.rollout import RolloutWorker, Run
from samplers.run import THOUGHT
from samplers.types import Completion, Job, Plan
from tests import made
from tests.scripted import END, PROMPT, RENDERER, ScriptedEngine
from tests.vectors import check, each

CAP = 96
SPECS: dict[str, dict[str, Any]] = {
    "unlimited": {},
    "fixed": {"think": 12, "answer": 4},
    "elastic": {"think": [4, 24], "answer": [2, 8], "per": "rollout"},
    "anytime": {"think": 24, "samples": 3, "prior": "linear", "answer": 4},
    "hierarchical": {"budgets": [8, 16, 32], "prefill": "{budget}:"},
    "modes": {
        "modes": {
            "high": {"template": {"effort": "H"}},
            "low": {"template": {"effort": "A"}, "think": 6, "answer": 4},
            "none": {"template": {"enable_thinking": False}, "max_tokens": 20},
        }
    },
    "prompted": {"budget": [8, 32], "suffix": "T{budget}"},
    "tiered": {"easy": 16, "hard": 32},
    "curriculum": {
        "of": {"name": "elastic", "answer": 4, "per": "prompt"},
        "fields": {"think": {"kind": "linear", "start": 20, "end": 5, "steps": 8, "drops": 3}},
    },
    "chunked": {"of": {"name": "fixed", "think": 20}, "chunk": 7},
}


def policy(name: str, **settings: Any) -> tuple[Any, Any]:
    given_ = SPECS[name] | settings
    return seam.resolve("samplers.budgets", {"name": name, "max_tokens": CAP, **given_})


def plans(name: str, n: int = 6, step: int = 0, key: int = 7, **settings: Any) -> list[Plan]:
    module, config = policy(name, **settings)
    return module.plans(config, PROMPT, n, step, {}, key)


def natural(name: str, **settings: Any) -> Plan:
    return base.natural(*policy(name, **settings))


# All of them


def test_every_policy_that_ships_is_here():
    assert sorted(SPECS) == seam.names("samplers.budgets")


@pytest.mark.parametrize("name", SPECS)
def test_plans_follow_from_the_key_and_memory_is_json(name):
    module, config = policy(name)
    memory: dict[str, Any] = {}
    first = module.plans(config, PROMPT, 6, 3, memory, 11)
    assert len(first) == 6
    again = json.loads(json.dumps(memory))
    assert again == memory
    assert module.plans(config, PROMPT, 6, 3, again, 11) == first
    assert json.loads(json.dumps(again)) == memory
    drawn = {repr(module.plans(config, PROMPT, 6, 3, {}, key)) for key in range(8)}
    assert (len(drawn) > 1) == (name in ("elastic", "anytime", "prompted"))


@pytest.mark.parametrize("name", SPECS)
def test_what_nobody_budgets_is_one_whole_thought(name):
    plan = natural(name)
    assert (plan.cuts, plan.chunk, plan.answers_per_cut, plan.target) == ((), None, 1, None)
    assert plan.max_tokens == CAP


@pytest.mark.parametrize("name", [name for name in SPECS if name != "chunked"])
def test_rollouts_keep_the_budgets_of_their_plans(name):
    for key in range(4):
        wanted = plans(name, key=key)
        jobs = [Job(PROMPT, plan, 0, i, seed=100 * key + i) for i, plan in enumerate(wanted)]
        for rollout in RolloutWorker(ScriptedEngine(), RENDERER).generate(jobs):
            plan = rollout.plan
            assert rollout.think_tokens <= (plan.max_tokens if plan.think is None else plan.think)
            assert rollout.response_tokens <= plan.max_tokens
            assert all(
                (~a.tokens.forced_T).sum() <= (plan.answer or plan.max_tokens)
                for cut in rollout.answers
                for a in cut
            )
            if plan.think is not None:  # budgets are kept by closing: there is an answer
                assert rollout.final.reached


# elastic


def test_elastic_is_the_papers_budget_of_two_parts():
    module, config = seam.resolve("samplers.budgets", {"name": "elastic", "max_tokens": 4096})
    assert module.plans(config, PROMPT, 2, 0, {}, 0) == [Plan(4096, think=1024, answer=1024)] * 2
    assert module.natural(config) == Plan(4096, answer=1024)


def test_elastic_without_parts_is_one_cap_and_forces_nothing():
    settings = {"think": [8, 96], "answer": 8, "max_tokens": 192}
    apart = plans("elastic", n=1, **settings, key=5)[0]
    total = plans("elastic", n=1, **settings, separate=False, key=5)[0]
    assert (total.think, total.answer, total.max_tokens) == (None, None, apart.think + 1 + 8)
    module, config = seam.resolve("samplers.budgets", {"name": "elastic", **settings})
    assert module.requires(config)
    assert not module.requires(config.model_copy(update={"separate": False}))


def test_elastic_ranges_are_uniform_and_drawn_for_a_prompt_or_a_rollout():
    wanted = [plans("elastic", think=[3, 6], answer=None, per="prompt", key=k) for k in range(400)]
    assert all(len(set(map(repr, group))) == 1 for group in wanted)
    counts = Counter(group[0].think for group in wanted)
    assert sorted(counts) == [3, 4, 5, 6]
    assert min(counts.values()) > 60  # of 100 expected; four deviations are 35
    each_own = plans("elastic", n=400, think=[3, 6], answer=[1, 2])
    assert {(p.think, p.answer) for p in each_own} == {(t, a) for t in (3, 4, 5, 6) for a in (1, 2)}


def test_elastic_reads_a_column_of_the_prompt():
    module, config = policy("elastic", think="meta:budget", answer=4, per="prompt")
    told = replace(PROMPT, meta={"budget": 17})
    assert module.plans(config, told, 3, 0, {}, 1) == [Plan(CAP, think=17, answer=4)] * 3


# anytime


@each("brpo_budget_prior")
def test_grid_and_prior_are_those_of_anytime_reasoner(case):
    given_ = case["inputs"]
    budgets = anytime.grid(given_["max_thinking"], given_["n_budgets"])
    prior = "final" if given_["prior"] == "base" else given_["prior"]
    check(case, {"budgets": list(budgets), "probs": anytime.weights(budgets, prior)})


@each("brpo_truncation_plan")
def test_truncation_points_are_those_of_anytime_reasoner(case):
    given_ = case["inputs"]
    thoughts = zip(given_["cot_lengths"], given_["ended_with_think_end"], strict=True)
    names = ("multiplicity", "valid_len", "needs_inserted_think_end")
    points = [anytime.truncation(*thought, given_["budgets"]) for thought in thoughts]
    check(case, {"plans": [[dict(zip(names, p, strict=True)) for p in cot] for cot in points]})


@settings(max_examples=300, deadline=None)
@given(st.sets(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 30), st.booleans())
def test_rollouts_are_cut_at_the_truncation_points(budgets, length, closed):
    """One answer a budget; just before a sampled marker the two differ in name alone."""
    cuts = tuple(sorted(budgets))
    length = min(length, cuts[-1]) if closed else cuts[-1]
    ids = np.array([7] * (length - closed) + [END] * closed, np.int32)
    run = Run(Job(PROMPT, Plan(64, think=cuts[-1], cuts=cuts), 0, 0, seed=0), ids[:0], RENDERER)
    list(run.begin())
    finish = "stop" if closed else "length"
    done = Completion(0, ids, np.zeros(length, np.float32), finish, ((0, 0),))
    asked = list(run.take(THOUGHT, done))
    expected = [
        ids[: point.valid_len].tolist() + [END] * point.needs_close
        for point in anytime.truncation(length, closed, cuts)
        for _ in range(point.multiplicity)
    ]
    assert [request.ids.tolist() for _, request in asked] == expected
    assert [len(cut) for cut in run.answers] == [1] * len(cuts)


def test_anytime_cuts_at_a_grid_and_weighs_it():
    (plan,) = set_of(plans("anytime", samples=None, count=3, prior="linear"))
    assert (plan.think, plan.cuts, plan.answers_per_cut, plan.answer) == (24, (8, 16, 24), 4, 4)
    assert plan.weights == pytest.approx((1 / 6, 2 / 6, 3 / 6))
    listed = plans("anytime", think=None, samples=None, budgets=[2, 9, 20], prior=[0.5, 0, 0.5])[0]
    assert (listed.think, listed.cuts, listed.weights) == (20, (2, 9, 20), (0.5, 0, 0.5))
    probed = plans("anytime", probe="{answer}")[0]
    assert (probed.probe, probed.answers_per_cut) == ("{answer}", 1)


def test_anytime_redraws_cuts_for_a_prompt_or_a_rollout():
    assert len(set_of(plans("anytime"))) == 1
    assert len({plan.cuts for plan in plans("anytime", per="rollout")}) > 2
    assert plans("anytime", prior="final")[0].cuts == (24,)


priors = st.sampled_from(["uniform", "linear", (0.5, 0.5), (0.0, 1.0), (0.25, 0.0, 0.75)])


@settings(max_examples=300, deadline=None)
@given(priors, st.integers(1, 9), st.integers(0, 300), st.integers(0, 2**40))
def test_sampled_cuts_ascend_to_the_limit(prior, count, more, key):
    think = count + more
    u_C = np.array([base.uniform(key, c) for c in range(count)])
    cuts = anytime.sampled(think, prior, u_C)
    assert len(cuts) == count
    assert cuts[0] >= 1
    assert cuts[-1] == think
    assert list(cuts) == sorted(set(cuts))


@pytest.mark.parametrize(
    ("prior", "below"),
    [
        ("uniform", lambda x: x),
        ("linear", lambda x: x**2),
        ((0.25, 0.75), lambda x: x / 2 if x < 0.5 else 0.25 + 1.5 * (x - 0.5)),
    ],
)
def test_sampled_cuts_are_one_from_each_stratum_of_the_prior(prior, below):
    """The prior's distribution function of cut c is uniform over (c/C, (c+1)/C)."""
    think, count = 100_000, 4
    u_NC = np.random.default_rng(0).uniform(size=(500, count))
    shares_NC = [[below(c / think) for c in anytime.sampled(think, prior, u_C)] for u_C in u_NC]
    strata_NC = np.array(shares_NC)[:, :-1] * count - np.arange(count - 1)
    np.testing.assert_allclose(strata_NC, u_NC[:, :-1], atol=1e-3)


def set_of(made_: list[Plan]) -> list[Plan]:
    return [plan for i, plan in enumerate(made_) if plan not in made_[:i]]


# hierarchical, modes, prompted


def test_hierarchical_announces_each_subgroups_budget():
    module, config = seam.resolve("samplers.budgets", {"name": "hierarchical", "max_tokens": 4096})
    wanted = module.plans(config, PROMPT, 16, 0, {}, 5)
    assert [p.target for p in wanted] == [512] * 4 + [1024] * 4 + [2048] * 4 + [2560] * 4
    assert [p.subgroup for p in wanted] == [str(p.target) for p in wanted]
    assert wanted[5].prefill == "I will answer the question within 1024 tokens"
    assert {p.think for p in wanted} == {None}
    assert module.natural(config) == Plan(4096)


def test_a_budget_may_be_said_anywhere_and_be_enforced():
    texts = {"system": "at most {budget}!", "suffix": " ({budget})", "prefill": "", "hard": True}
    arguments = {"thinking_budget": "{budget}", "effort": "e{budget}", "other": 3}
    plan = plans("hierarchical", **texts, template=arguments)[0]
    assert (plan.system, plan.suffix, plan.think, plan.target) == ("at most 8!", " (8)", 8, 8)
    assert plan.template == {"thinking_budget": 8, "effort": "e8", "other": 3}
    free = natural("hierarchical", **texts, template=arguments)
    assert (free.system, free.suffix, free.template) == (None, "", {"other": 3})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.1, 0.2, 0.7, 1, 2, 3]), min_size=1, max_size=6), st.data())
def test_rollouts_are_split_by_share(shares, data):
    n = data.draw(st.integers(len(shares), 64))
    u = data.draw(st.floats(0, 1, exclude_min=True, exclude_max=True))
    exact = n * np.array(shares) / sum(shares)
    counts = base.split(n, shares, u)
    assert sum(counts) == n
    assert np.all(np.abs(counts - exact) < 1 + 1e-6)
    grid = [base.split(n, shares, (i + 0.5) / 500) for i in range(500)]
    np.testing.assert_allclose(np.mean(grid, axis=0), exact, atol=0.01)  # none is favoured
    if set(shares) == {1}:
        assert max(counts) - min(counts) <= 1


def test_modes_ask_in_their_own_way_and_share_the_rollouts():
    wanted = plans("modes", n=6, close="w</think>", template={"x": 1})
    assert [p.subgroup for p in wanted] == ["high", "high", "low", "low", "none", "none"]
    assert {p.close for p in wanted} == {"w</think>"}
    assert wanted[0].template == {"x": 1, "effort": "H"}
    assert (wanted[2].think, wanted[2].answer, wanted[2].max_tokens) == (6, 4, CAP)
    assert (wanted[4].think, wanted[4].max_tokens) == (None, 20)
    uneven = {"a": {"share": 3, "suffix": "!"}, "b": {}}
    assert Counter(p.subgroup for p in plans("modes", n=8, modes=uneven)) == {"a": 6, "b": 2}
    assert natural("modes").subgroup == "high"
    assert natural("modes", natural="low").template == {"effort": "A"}


def test_modes_of_whole_prompts_come_by_their_share():
    uneven = {"a": {"share": 3, "suffix": "!"}, "b": {}}
    groups = [plans("modes", n=2, modes=uneven, per="prompt", key=k) for k in range(400)]
    assert all(group[0] == group[1] for group in groups)
    assert 260 < sum(group[0].subgroup == "a" for group in groups) < 340  # four deviations


def test_prompted_is_l1s_suffix():
    module, config = seam.resolve("samplers.budgets", {"name": "prompted", "max_tokens": 4096})
    drawn = [module.plans(config, PROMPT, 2, 0, {}, key)[0] for key in range(300)]
    assert all(p.suffix == f" Think for {p.target} tokens." and p.think is None for p in drawn)
    assert 100 <= min(p.target or 0 for p in drawn) < 200
    assert 3900 < max(p.target or 0 for p in drawn) <= 4000
    assert module.natural(config) == Plan(4096)


def test_prompted_with_one_number_is_evaluated_with_it():
    plan = natural("prompted", budget=20)
    assert (plan.suffix, plan.target, plan.think) == ("T20", 20, None)


# tiered


def observed(rates: dict[str, list[float]], memory: dict[str, float], **settings: Any) -> None:
    groups = []
    for serial, (name, rewards) in enumerate(rates.items()):
        group = made.group(rewards, serial)
        groups.append(replace(group, prompt=replace(group.prompt, id=name)))
    module, config = policy("tiered", **settings)
    module.observe(config, groups, memory)


def cap(memory: dict[str, float], name: str, **settings: Any) -> Plan:
    module, config = policy("tiered", **settings)
    return module.plans(config, replace(PROMPT, id=name), 1, 0, memory, 0)[0]


def test_tiered_tightens_where_more_than_half_pass():
    memory: dict[str, float] = {}
    nan = float("nan")
    observed({"easy": [1, 1, 0], "even": [1, 0], "known": [1, nan, nan], "lost": [nan]}, memory)
    assert memory == pytest.approx({"easy": 2 / 3, "even": 0.5, "known": 1.0})
    caps = [cap(memory, name).max_tokens for name in ("easy", "even", "known", "lost", "new")]
    assert caps == [16, 32, 16, 32, 32]
    closed = cap(memory, "easy", cap="think")
    assert (closed.think, closed.max_tokens) == (16, CAP)


def test_tiered_forgets_slowly_or_at_once_and_is_bounded():
    memory: dict[str, float] = {}
    for rewards in ([1, 1], [0, 0]):
        observed({"a": rewards}, memory, momentum=0.75)
    assert memory["a"] == pytest.approx(0.75)
    observed({"a": [0, 0]}, memory)
    assert memory["a"] == 0
    observed({"b": [1], "c": [1]}, memory)
    observed({"a": [1]}, memory, remember=2)
    assert list(memory) == ["c", "a"]


# Policies around others


def test_curriculum_changes_the_fields_of_its_policy():
    module, config = policy("curriculum")
    thinks = [module.plans(config, PROMPT, 1, step, {}, 0)[0].think for step in range(9)]
    assert thinks == [20, 20, 15, 15, 10, 10, 5, 5, 5]
    assert base.last_step(module, config) == 6
    assert natural("curriculum") == Plan(CAP, answer=4)


def test_curriculum_reaches_fields_inside_fields():
    fields = {
        "modes.low.think": [[0, 6], [4, 3]],
        "modes.low.template.effort": [[0, "A"], [2, "B"]],
        "close": [[0, "w</think>"]],
    }
    spec = {"of": {"name": "modes", **SPECS["modes"]}, "fields": fields}
    low = [plans("curriculum", n=3, step=step, **spec)[1] for step in (0, 2, 4)]
    assert [(p.think, p.template["effort"]) for p in low] == [(6, "A"), (6, "B"), (3, "B")]
    default = {"of": "hierarchical", "fields": {"budgets.0": [[0, 8], [1, 9]]}, "max_tokens": 4096}
    targets = [[p.target for p in plans("curriculum", n=4, step=t, **default)] for t in (0, 1)]
    assert targets == [[8, 1024, 2048, 2560], [9, 1024, 2048, 2560]]


@pytest.mark.parametrize("outer", ["curriculum", "chunked"])
def test_what_is_inside_keeps_its_memory(outer):
    inside = {"name": "tiered", "easy": 16, "hard": 32}
    around = {
        "curriculum": {"of": inside, "fields": {"hard": [[0, 32], [5, 24]]}},
        "chunked": {"of": inside, "chunk": 7},
    }
    module, config = policy(outer, **around[outer])
    memory: dict[str, Any] = {}
    caps = []
    for step in (0, 5):
        caps.append(module.plans(config, made.group([1]).prompt, 1, step, memory, 0)[0].max_tokens)
        module.observe(config, [made.group([1, 1], serial=step)], memory)
        memory = json.loads(json.dumps(memory))
    assert caps == [32, 16]
    other = module.plans(config, PROMPT, 1, 5, memory, 0)[0].max_tokens
    assert other == (24 if outer == "curriculum" else 32)


def test_chunked_adds_nothing_but_the_chunk():
    assert plans("chunked") == [Plan(CAP, think=20, chunk=7)] * 6
    assert natural("chunked", of="unlimited") == Plan(CAP)
    scheduled = {"name": "curriculum", **SPECS["curriculum"]}
    assert plans("chunked", of=scheduled, step=6)[0] == Plan(CAP, think=5, answer=4, chunk=7)
    assert base.last_step(*policy("chunked", of=scheduled)) == 6


# What they say of themselves


@pytest.mark.parametrize(
    ("name", "settings", "provided", "required"),
    [
        ("elastic", {}, set(), {MARKERS}),
        ("anytime", {}, {CUTS}, {MARKERS, CUT_CREDIT}),
        ("anytime", {"probe": "{answer}"}, {CUTS, PROBES}, {MARKERS, CUT_CREDIT}),
        ("anytime", {"samples": 1, "answers_per_cut": 1}, set(), {MARKERS}),
        ("hierarchical", {}, {SUBGROUPS, TARGET}, set()),
        ("hierarchical", {"hard": True}, {SUBGROUPS, TARGET}, {MARKERS}),
        ("modes", {}, {SUBGROUPS, MODES}, {MARKERS}),
        ("prompted", {}, {TARGET}, set()),
        ("tiered", {}, set(), set()),
        ("tiered", {"cap": "think"}, set(), {MARKERS}),
        ("chunked", {"of": {"name": "prompted", "budget": 9}}, {CHUNKS, TARGET}, set()),
        ("curriculum", {}, set(), {MARKERS}),
    ],
)
def test_facts(name, settings, provided, required):
    module, config = policy(name, **settings)
    assert set(base.said("provides", module, config)) == provided
    assert set(base.said("requires", module, config)) == required
