"""Advantages: reference vectors, brute force, and what no group may do to another."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplers import seam
from samplers.allocation import _teaching as teaching
from samplers.types import Group
from tests import made, vectors
from trainer import credit
from trainer.types import TrainSequence

Floats = np.ndarray
finite = st.floats(-10, 10).map(lambda r: round(r, 3))
group_lists = st.lists(st.lists(finite, min_size=1, max_size=6), min_size=1, max_size=5)


def by_group(
    formula: Callable[[list[Floats]], list[Floats]], rewards: Sequence[float], ids: Sequence[Any]
) -> Floats:
    """A formula over lists of groups, applied to flat rewards with group ids."""
    flat, keys = np.array(rewards, dtype=float), np.array(ids)
    members = [np.flatnonzero(keys == key) for key in dict.fromkeys(ids)]
    out = np.zeros(len(flat))
    for where, advantages_G in zip(members, formula([flat[m] for m in members]), strict=True):
        out[where] = advantages_G
    return out


def arrays(groups: Sequence[Sequence[float]]) -> list[Floats]:
    return [np.array(group, dtype=float) for group in groups]


# -- reference vectors ----------------------------------------------------------------------------


@vectors.each("grpo_advantage")
def test_grpo_of_the_vectors(case: vectors.Case) -> None:
    inputs = case["inputs"]
    assert inputs["std_ddof"] == 1
    std = "group" if inputs["normalize_std"] else "none"
    got = by_group(
        lambda groups: credit.grpo(groups, std=std, eps=inputs["eps"], singleton="raw"),
        inputs["rewards"],
        inputs["group_ids"],
    )
    vectors.check(case, {"advantages": got})


@vectors.each("rloo_advantage")
def test_rloo_of_the_vectors(case: vectors.Case) -> None:
    inputs = case["inputs"]
    got = by_group(
        lambda groups: credit.rloo(groups, singleton="raw"), inputs["rewards"], inputs["group_ids"]
    )
    vectors.check(case, {"advantages": got})


@vectors.each("raft_advantage")
def test_raft_of_the_vectors(case: vectors.Case) -> None:
    (got,) = credit.raft(arrays([case["inputs"]["rewards"]]))
    vectors.check(case, {"advantages": got})


@vectors.each("dynamic_sampling_filter")
def test_dynamic_sampling_of_the_vectors(case: vectors.Case) -> None:
    vectors.check(case, {"kept": teaching.dynamic(case["inputs"]["groups"])})


# -- formulas -------------------------------------------------------------------------------------


@given(group_lists)
def test_each_formula_by_the_book(groups: list[list[float]]) -> None:
    everything = [r for group in groups for r in group]
    batch_std = statistics.stdev(everything) if len(everything) > 1 else 0.0
    plain = credit.grpo(arrays(groups), std="none")
    own = credit.grpo(arrays(groups), std="group", eps=1e-4)
    batch = credit.grpo(arrays(groups), std="batch", eps=1e-4)
    loo = credit.rloo(arrays(groups))
    left = [r - statistics.fmean(group) for group in groups if len(group) > 1 for r in group]
    left_std = statistics.stdev(left) if left else 0.0
    centred_by = credit.grpo(arrays(groups), std="centred", eps=1e-4)
    for g, group in enumerate(groups):
        for i, r in enumerate(group):
            if len(group) == 1:
                assert plain[g][i] == own[g][i] == batch[g][i] == loo[g][i] == 0
                continue
            centred, std = r - statistics.fmean(group), statistics.stdev(group)
            assert plain[g][i] == pytest.approx(centred, abs=1e-8)
            if std > 1e-6:
                assert own[g][i] == pytest.approx(centred / (std + 1e-4))
                assert batch[g][i] == pytest.approx(centred / (batch_std + 1e-4))
            if left_std > 1e-6:
                assert centred_by[g][i] == pytest.approx(centred / (left_std + 1e-4), abs=1e-7)
            others = statistics.fmean(group[:i] + group[i + 1 :])
            assert loo[g][i] == pytest.approx(r - others, abs=1e-8)


def test_max_rl_weighs_rare_success() -> None:
    rare, common, never = credit.max_rl(arrays([[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]))
    assert rare.tolist() == [3, -1, -1, -1]
    assert common == pytest.approx([1 / 3, 1 / 3, 1 / 3, -1])
    assert never.tolist() == [0, 0, 0, 0]


FORMULAS = {
    "grpo": credit.grpo,
    "batch": lambda groups, counted=None: credit.grpo(groups, counted, std="batch"),
    "centred": lambda groups, counted=None: credit.grpo(groups, counted, std="centred"),
    "dr_grpo": lambda groups, counted=None: credit.grpo(groups, counted, std="none"),
    "rloo": credit.rloo,
    "max_rl": credit.max_rl,
}
every_formula = pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS.keys())


@every_formula
@pytest.mark.parametrize("reward", [0.0, 1.0, -0.3, 0.1 + 0.2])
def test_equal_rewards_give_exactly_zero(formula: Any, reward: float) -> None:
    noisy = [reward, reward + 5e-17, reward - 5e-17, 0.3 if reward > 0.3 else reward]
    for group in ([reward] * 4, noisy if reward != 1.0 else [reward] * 3):
        assert not np.concatenate(formula(arrays([group, [1, 0]])))[: len(group)].any()


@every_formula
@given(groups=group_lists, seed=st.integers(0, 99))
def test_order_of_rollouts_and_of_groups_does_not_matter(
    formula: Any, groups: list[list[float]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    at = rng.permutation(len(groups))
    within = [rng.permutation(len(group)) for group in groups]
    want = formula(arrays(groups))
    got = formula([arrays(groups)[g][within[g]] for g in at])
    for g, advantages_G in zip(at, got, strict=True):
        assert advantages_G == pytest.approx(want[g][within[g]], abs=1e-6)


@given(groups=group_lists, shift=finite, scale=st.floats(0.5, 4))
def test_shift_leaves_and_scale_scales_or_leaves(
    groups: list[list[float]], shift: float, scale: float
) -> None:
    moved = [group * scale + shift for group in arrays(groups)]
    for name, formula, power in (
        ("dr_grpo", FORMULAS["dr_grpo"], 1),
        ("rloo", FORMULAS["rloo"], 1),
        ("grpo", lambda groups: credit.grpo(groups, eps=0.0), 0),
        ("batch", lambda groups: credit.grpo(groups, std="batch", eps=0.0), 0),
        ("centred", lambda groups: credit.grpo(groups, std="centred", eps=0.0), 0),
    ):
        for before, after in zip(formula(arrays(groups)), formula(moved), strict=True):
            assert after == pytest.approx(before * scale**power, abs=1e-6), name


@every_formula
@given(groups=group_lists)
def test_an_unknown_reward_changes_nothing_for_the_others(
    formula: Any, groups: list[list[float]]
) -> None:
    with_unknown = [np.append(group, np.nan) for group in arrays(groups)]
    for want, got in zip(formula(arrays(groups)), formula(with_unknown), strict=True):
        assert got[:-1] == pytest.approx(want, abs=1e-9)
        assert got[-1] == 0


@every_formula
def test_nothing_known_is_zero_and_no_warning(formula: Any) -> None:
    nothing = [np.array([np.nan, np.nan]), np.array([]), np.array([1.0])]
    with np.errstate(all="raise"):
        assert not np.concatenate(formula(nothing)).any()
    assert formula([]) == []


def test_uncounted_rollouts_are_compared_with_the_counted() -> None:
    counted = [np.array([True, True, True, False])]
    rewards = arrays([[1, 0, 0.5, 0]])
    (plain,) = credit.grpo(rewards, counted, std="none")
    assert plain == pytest.approx([0.5, -0.5, 0, -0.5])
    (own,) = credit.grpo(rewards, counted, eps=0.0)
    assert own == pytest.approx([1, -1, 0, -1])
    (loo,) = credit.rloo(rewards, counted)
    assert loo == pytest.approx([0.75, -0.75, 0, -0.5])


# -- algorithms -----------------------------------------------------------------------------------


def advantages(name: str, groups: Sequence[Group], **settings: Any) -> dict[tuple[int, int], float]:
    """(group, rollout) -> the advantage that all its trained tokens carry."""
    out = {}
    for row in rows_of(name, groups, **settings):
        assert not row.advantages_T[~row.mask_T].any()
        values = set(row.advantages_T[row.mask_T].tolist())
        assert len(values) <= 1
        out[row.group, row.rollout] = values.pop() if values else np.nan
    return out


def rows_of(name: str, groups: Sequence[Group], **settings: Any) -> list[TrainSequence]:
    module, config = seam.resolve("trainer.algorithms", {"name": name, **settings})
    found: list[TrainSequence] = module.sequences(groups, config)
    return found


def test_components_are_summed_and_token_rewards_with_them() -> None:
    group = made.group([1.0, 0.0])
    length = {"length": np.array([-0.5, 0.0]).reshape(2, 1, 1)}
    per_token = {"repetition": (np.array([0.0, -0.25]), np.array([-0.25, -0.5, 0.0]))}
    group = replace(group, rewards={**group.rewards, **length}, token_rewards=per_token)
    # 1 - 0.5 - 0.25 and 0 - 0.75
    assert advantages("dr_grpo", [group]) == {(0, 0): 0.5, (0, 1): -0.5}


def test_what_is_not_kept_still_counts_in_the_statistics() -> None:
    group = made.group([1.0, 0.0, 0.0, 0.0], kept_G=np.array([True, True, False, False]))
    assert advantages("dr_grpo", [group]) == {(0, 0): 0.75, (0, 1): -0.25}


def test_unknown_verdicts_leave_the_statistics_and_have_no_row() -> None:
    group = made.group([1.0, 0.0, np.nan])
    assert advantages("dr_grpo", [group]) == {(0, 0): 0.5, (0, 1): -0.5}
    hidden = {"mine": np.array([1.0, 0.0, 5.0]).reshape(3, 1, 1)}  # a reward for the unknown too
    assert advantages("dr_grpo", [replace(group, rewards=hidden)]) == {(0, 0): 0.5, (0, 1): -0.5}


def test_the_final_answer_is_what_plain_methods_reward() -> None:
    rewards = {"correct": np.array([[[0.0, 9.0], [1.0, 9.0]], [[9.0, 9.0], [0.0, 9.0]]])}
    group = replace(made.group([1.0, 0.0]), rewards=rewards, verdicts=())
    assert advantages("dr_grpo", [group]) == {(0, 0): 0.5, (0, 1): -0.5}


def test_truncated_rollouts_are_masked_or_left_out_as_asked() -> None:
    rollouts = tuple(made.rollout(g, finish="length" if g == 2 else "stop") for g in range(3))
    group = made.group([1.0, 0.0, 0.0], rollouts=rollouts)
    assert advantages("dr_grpo", [group])[0, 1] == pytest.approx(-1 / 3)
    left_out = advantages("dr_grpo", [group], exclude_truncated_from_stats=True)
    assert left_out == {(0, 0): 0.5, (0, 1): -0.5, (0, 2): -0.5}
    masked = rows_of("dr_grpo", [group], mask_truncated=True)
    assert [bool(row.mask_T.any()) for row in masked] == [True, True, False]
    assert masked[0].advantages_T.max() == pytest.approx(2 / 3)


def test_raft_learns_from_what_was_accepted() -> None:
    group = made.group([1.0, 0.0, 0.5])
    assert advantages("raft", [group]) == {(0, 0): 1.0, (0, 2): 0.5}
    everything = advantages("raft", [group], only_accepted=False)
    assert everything == {(0, 0): 1.0, (0, 1): 0.0, (0, 2): 0.5}


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "max_rl", "raft"])
def test_every_algorithm_gives_its_formula(name: str) -> None:
    groups = [made.group([1.0, 0.0, 0.0]), made.group([1.0, 1.0], serial=1)]
    rewards = arrays([[1, 0, 0], [1, 1]])
    formula = FORMULAS.get(name, credit.raft)
    settings = {"only_accepted": False} if name == "raft" else {}
    want = np.concatenate(formula(rewards)).astype(np.float32)
    assert list(advantages(name, groups, **settings).values()) == want.tolist()


def test_batch_deviations_with_and_without_the_spread_between_prompts() -> None:
    """An easy and a hard prompt: DLER divides by what is left within prompts, TRL by all."""
    groups = arrays([[11, 9], [1, -1]])
    centred, _ = credit.grpo(groups, std="centred", eps=0.0)
    assert centred == pytest.approx([1 / np.std([1, -1, 1, -1], ddof=1), -np.sqrt(3) / 2])
    batch, _ = credit.grpo(groups, std="batch", eps=0.0)
    assert batch == pytest.approx([1 / np.std([11, 9, 1, -1], ddof=1)] * np.array([1, -1]))


def with_modes(group: Group, modes: str) -> Group:
    """One letter a rollout: its subgroup."""
    rollouts = tuple(
        replace(r, plan=replace(r.plan, subgroup=mode))
        for r, mode in zip(group.rollouts, modes, strict=True)
    )
    return replace(group, rollouts=rollouts)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "max_rl"])
def test_within_subgroups_each_is_a_group_of_its_own(name: str) -> None:
    """Interleaved, one of one rollout, and one mode in two groups: they never meet."""
    first = with_modes(made.group([1.0, 0.0, 1.0, 1.0, 0.0]), "abaab")
    second = with_modes(made.group([0.0, 1.0, 1.0], serial=1), "aca")
    got = advantages(name, [first, second], within="subgroup")
    parts = arrays([[1, 1, 1], [0, 0], [0, 1], [1]])
    want = [a.astype(np.float32).tolist() for a in FORMULAS[name](parts)]
    assert [got[0, g] for g in (0, 2, 3)] == want[0]
    assert [got[0, g] for g in (1, 4)] == want[1]
    assert [got[1, g] for g in (0, 2)] == want[2]
    assert got[1, 1] == want[3][0]


def test_the_deviation_of_a_batch_is_one_for_all_subgroups() -> None:
    group = with_modes(made.group([1.0, 0.0, 1.0, 0.0]), "aabb")
    got = advantages("grpo", [group], within="subgroup", std="batch", eps=0.0)
    assert got[0, 0] == pytest.approx(0.5 / np.std([1, 0, 1, 0], ddof=1))


def test_whoever_compares_within_subgroups_says_that_there_must_be_some() -> None:
    for name in seam.names("trainer.algorithms"):
        module = seam.find("trainer.algorithms", name)
        if "within" in module.Config.model_fields:
            plain, within = module.Config(), module.Config(within="subgroup")
            assert set(module.requires(within)) - {"subgroups"} == set(module.requires(plain)) - {
                "subgroups"
            }
            assert "subgroups" in module.requires(within)


def test_on_policy_sft_imitates_what_is_right_and_within_the_cap() -> None:
    """Responses of 2, 3, 4, 5 and 6 sampled tokens; the third was cut off, the fourth is wrong."""
    rollouts = [made.rollout(g, range(11, 12 + g)) for g in range(5)]
    rollouts[2] = made.rollout(2, range(11, 14), finish="length")
    rewards = [1.0, 1.0, 1.0, 0.0, 1.0]
    group = made.group(rewards, rollouts=tuple(rollouts))
    assert advantages("on_policy_sft", [group]) == {(0, 0): 1, (0, 1): 1, (0, 4): 1}
    assert advantages("on_policy_sft", [group], cap=3) == {(0, 0): 1, (0, 1): 1}
    assert advantages("on_policy_sft", [group], cap=2) == {(0, 0): 1}
    assert advantages("on_policy_sft", [group], cap=2, length="think") == {(0, 0): 1, (0, 1): 1}
    partly = {**group.rewards, "length": np.full((5, 1, 1), -3.0)}
    assert len(advantages("on_policy_sft", [replace(group, rewards=partly)])) == 3
    assert rows_of("on_policy_sft", [made.group([0.0, np.nan])]) == []
    module, config = seam.resolve("trainer.algorithms", "on_policy_sft")
    assert set(module.requires(config)) == {"loss ce"}


def test_a_singleton_is_zero_unless_raw() -> None:
    group = made.group([1.0])
    for name in ("grpo", "dr_grpo", "rloo"):
        assert advantages(name, [group]) == {(0, 0): 0.0}
        assert advantages(name, [group], singleton="raw")[0, 0] == pytest.approx(1.0, abs=1e-5)
    others = made.group([0.0, 9.0], serial=1)  # whatever the deviation of the batch, its own is 1
    for std in ("group", "batch", "centred", "none"):
        got = advantages("grpo", [group, others], singleton="raw", std=std)
        assert got[0, 0] == pytest.approx(1.0, abs=1e-5)


def test_dynamic_sampling_is_exact_where_a_deviation_is_not() -> None:
    assert np.std([0.1] * 3) > 0  # what a test of the deviation would call informative
    assert teaching.dynamic([[0.1] * 3, [], [0.0, 1e-12]]) == [2]
