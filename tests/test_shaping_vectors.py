"""Risk: a length reward that is not the published one. Through the whole component where it can."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rewards.shaping import cosine_trl, hbpo, kimi, l1, o1_pruner, pass_rate_linear, triangular
from rewards.verdict import Verdict
from tests.shaped import UNKNOWN, group, total
from tests.vectors import Case, check, each


def floats(values: Any) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def answers(correct: list[Any]) -> list[bool | None]:
    return [UNKNOWN if c is None else bool(c) for c in correct]


@each("tlts_length_reward")
def test_triangular(case: Case) -> None:
    g = case["inputs"]
    got = {
        name: g["r_max"] * triangular.triangle(floats([g["length"]]), g["target"], name == "band")
        for name in ("triangular", "band")
    }
    check(case, {name: float(value[0]) for name, value in got.items()})


@each("tlts_total_reward")
def test_triangular_with_correctness_and_format(case: Case) -> None:
    g, weights = case["inputs"], case["inputs"]["weights"]
    spec = {
        "name": "triangular",
        "correct": weights["correct"] * g["R_cor"],
        "weight": weights["length"] * g["R_max"],
    }
    announced = group([g["length"]], [bool(g["correct"])], cap=4096, targets=g["target"])
    form = g["alpha_think"] * g["think_ok"] + g["alpha_answer"] * g["answer_ok"]
    reward = total([announced], spec)[0][0] + weights["format"] * form
    check(case, {"reward": float(reward)})
    fixed = group([g["length"]], [bool(g["correct"])], cap=4096)
    (same,) = total([fixed], {**spec, "target": g["target"]})[0]
    check(case, {"reward": float(same + weights["format"] * form)})


@each("kimi_length_reward")
def test_kimi(case: Case) -> None:
    g = case["inputs"]
    check(case, {"rewards": kimi.rewards(floats(g["lengths"]), floats(g["correct"]))})
    whole = group(g["lengths"], answers(g["correct"]), cap=8192)
    check(case, {"rewards": total([whole], "kimi")[0] - floats(g["correct"])})


@each("thinkdial_reward")
def test_thinkdial(case: Case) -> None:
    g = case["inputs"]
    lengths, correct = g["response_lengths"], answers(g["correct"])
    whole = group(lengths, correct, cap=8192, modes=g["mode"])
    texts = ["But wait: 7" if leaks else "7" for leaks in g["answer_has_transition_keyword"]]
    rollouts = tuple(
        replace(r, answers=((replace(r.final, text=text),),))
        for r, text in zip(whole.rollouts, texts, strict=True)
    )
    spec = {"name": "thinkdial", "alpha": g["alpha"]}
    got = total([replace(whole, rollouts=rollouts)], spec)[0]
    check(case, {"total": got, "length_reward": kimi.rewards(floats(lengths), floats(correct))})


@each("cosine_reward_demystify")
def test_cosine_demystify(case: Case) -> None:
    g = dict(case["inputs"])
    whole = group(g.pop("lengths"), answers(g.pop("correct")), cap=g.pop("max_len"))
    check(case, {"rewards": total([whole], {"name": "cosine_demystify", **g})[0]})


@each("cosine_reward_trl")
def test_cosine_trl(case: Case) -> None:
    g = dict(case["inputs"])
    lengths, correct, cap = g.pop("lengths"), answers(g.pop("correct")), g.pop("max_len")
    got = total([group(lengths, correct)], {"name": "cosine_trl", "max_tokens": cap, **g})[0]
    check(case, {"rewards": [None if np.isnan(r) else r for r in got.tolist()]})
    wrong, right = (g["min_wrong"], g["max_wrong"]), (g["min_correct"], g["max_correct"])
    known = [c is not None for c in correct]
    pure = cosine_trl.rewards(floats(lengths) / cap, np.array(correct, bool), wrong, right)
    check(case, {"rewards": [r if k else None for r, k in zip(pure, known, strict=True)]})


@each("l1_lcpo_reward")
def test_l1(case: Case) -> None:
    g = case["inputs"]
    wanted, used, correct = abs(g["target_tokens"]), g["used_tokens"], bool(g["correct"])
    mode, alpha = g["mode"], g["alpha_code"]
    delta = (l1.exact if mode == "exact" else l1.at_most)(floats([used]), floats([wanted]), alpha)
    whole = group([used], [correct], cap=8192, targets=wanted)
    (released,) = total([whole], {"name": "l1", "mode": mode, "alpha": alpha})[0]
    paper = {"name": "l1", "mode": "exact" if mode == "exact" else "max_paper"}
    (published,) = total([whole], paper)[0]
    got = {"code_delta": delta[0], "code_reward": released, "paper_reward": published}
    check(case, {name: float(value) for name, value in got.items()})


@each("hbpo_reward")
def test_hbpo(case: Case) -> None:
    g = case["inputs"]
    whole = group([g["n_gen"]], [g["case"] == "correct"], targets=g["budget"], cap=8192)
    if g["case"].startswith("no_"):
        whole = replace(whole, verdicts=(((Verdict(False, 0.0, "no_answer"),),),))
    spec = {"name": "hbpo", "max_tokens": g["L_max"], "beta": g["beta"], "alpha": g["alpha"]}
    (paper,), (code,) = (total([whole], {**spec, "form": form})[0] for form in ("paper", "code"))
    field = g["L_max"] if g["budget"] is None else g["budget"]
    got = {"code": float(code), "code_budget_field": field}
    check(case, got if g["budget"] is None else {**got, "paper": float(paper)})


def test_hbpo_defaults_are_the_papers() -> None:
    config = hbpo.Config()
    assert (config.beta, config.alpha, config.count_forced) == (4.0, None, True)
    own = total([group([700], [True], targets=512, cap=4096)], "hbpo")[0]
    assert own[0] == pytest.approx(4 * np.cos(np.pi * 700 / 8192) - 188 / 4096)


@each("o1_pruner_weight")
def test_o1_pruner(case: Case) -> None:
    g = case["inputs"]
    lengths, correct, clip = floats(g["lengths"]), floats(g["correct"]), tuple(g["clip"])
    got = o1_pruner.weights(lengths, correct, g["alpha"], clip)
    check(case, {"weights": got[: g["used_per_problem"]]})
    settings = {"alpha": g["alpha"], "clip": clip, "standardised": False}
    whole = group(g["lengths"], answers(g["correct"]), cap=8192)
    reward = total([whole], {"name": "o1_pruner", **settings})[0]
    check(case, {"weights": reward[: g["used_per_problem"]]})


@each("phi4_length_aware_reward")
def test_phi4(case: Case) -> None:
    g = case["inputs"]
    sizes = {"positive": g["L_pos_control"], "negative": g["L_neg_control"]}
    fields = {None: {}, "no_eos": {"finish": "length"}, "bad_think": {"text": None}}
    whole = group([g["length"]], [bool(g["correct"])], cap=g["L_max"], **fields[g["violation"]])
    (reward,) = total([whole], {"name": "phi4", "weight": 1, **sizes})[0]
    check(case, {"R_acc_scaled": float(reward)})
    (default,) = total([whole], {"name": "phi4", "weight": 1})[0]
    if (g["L_max"], *sizes.values()) == (31744, 25600, 3702):
        check(case, {"R_acc_scaled": float(default)})


@each("prime_linear_length_penalty")
def test_pass_rate_linear(case: Case) -> None:
    g = case["inputs"]
    output, whole = floats(g["output_tokens"]), floats(g["total_tokens"])
    rewards, weights = floats(g["rewards"]), g["weights"] or [0.0, 0.0, 0.0]
    costs = [output, whole - output, floats(g["turns"])]
    parts = zip(costs, weights, strict=True)
    shaped = rewards - sum(pass_rate_linear.penalties(rewards, *part) for part in parts)
    check(case, {"advantages": shaped - shaped.mean()})
