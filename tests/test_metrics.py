"""Risk: a metric that is not what its name says, or depends on what it must not depend on."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tables
from tests.test_eval_budgets import CAP, run
from trainer.eval import metric, metrics, statistics
from trainer.eval.budgets import EvalConfig
from trainer.eval.folder import open_folder
from trainer.eval.metric import Metric
from trainer.eval.metrics import Options
from trainer.eval.rows import table_of
from trainer.eval.table import FINISHES, Table

GRID = (8, 24, 60)
LIGHT = Options(selections=("majority",), stopping=())


def values(found: dict[str, Metric]) -> dict[str, float]:
    return {name: m.value for name, m in found.items()}


def ragged(seed: int, problems: int = 7, samples: int = 4) -> Table:
    """Some samples are missing, some verdicts unknown; every problem has two known samples."""
    rng = np.random.default_rng(seed)
    table = tables.random(problems, samples, GRID, seed)
    missing = rng.random((problems, samples)) < 0.2
    unknown = rng.random(table.correct_MSJ.shape) < 0.1
    missing[:, :2] = unknown[:, :2] = False
    correct = np.where(unknown, np.nan, table.correct_MSJ)
    status = np.where(unknown, tables.TIMEOUT, table.status_MSJ)
    closed = table.closed_MS & (rng.random((problems, samples)) < 0.8)  # it was answered for it
    made = replace(table, correct_MSJ=correct, status_MSJ=status, closed_MS=closed)
    return tables.without(made, missing)


def mean(per_problem: list[list[float]]) -> float:
    """Mean over problems of the mean of what is known."""
    kept = [[v for v in row if not math.isnan(v)] for row in per_problem]
    return float(np.mean([np.mean(row) for row in kept if row]))


def by_hand(t: Table) -> dict[str, float]:
    """Plain loops over samples."""
    out: dict[str, float] = {}
    there = [[s for s in range(t.present_MS.shape[1]) if t.present_MS[m, s]]
             for m in range(t.problems)]  # fmt: skip

    def over(value: Any) -> float:
        return mean([[float(value(m, s)) for s in row] for m, row in enumerate(there)])

    last = len(t.budgets)
    for j, b in enumerate((*t.budgets, "inf")):
        correct = t.correct_MSJ[..., j]
        tokens = t.think_MSJ[..., j] + t.answer_MSJ[..., j]
        accuracy = over(lambda m, s, c=correct: c[m, s])
        out[f"accuracy@{b}"] = accuracy
        out[f"tokens@{b}"] = spent = over(lambda m, s, c=tokens: c[m, s])
        out[f"think_tokens@{b}"] = over(lambda m, s, j=j: t.think_MSJ[m, s, j])
        out[f"answer_tokens@{b}"] = over(lambda m, s, j=j: t.answer_MSJ[m, s, j])
        out[f"forced@{b}"] = over(lambda m, s, j=j: t.forced_MSJ[m, s, j])
        out[f"tokens_per_solve@{b}"] = spent / accuracy if accuracy else math.inf
        out[f"e3@{b}"] = accuracy**2 / spent
        out[f"ockscore@{b}"] = 100 * accuracy - 10 * math.log(1 + spent / 1e4)
        if j < last:
            out[f"cap_accuracy@{b}"] = over(
                lambda m, s, b=b: float("nan") if np.isnan(t.correct_MSJ[m, s, -1])
                else t.closed_MS[m, s] and t.think_MSJ[m, s, -1] <= b and t.correct_MSJ[m, s, -1]
            )  # fmt: skip
    caps = range(1, t.cap + 1)
    out["cap_area"] = over(
        lambda m, s: t.correct_MSJ[m, s, -1] * t.closed_MS[m, s]
        * np.mean([t.think_MSJ[m, s, -1] <= cap for cap in caps])
    )  # fmt: skip
    out["anytime/equal"] = float(np.mean([out[f"accuracy@{b}"] for b in t.budgets]))
    out["anytime/final"] = out[f"accuracy@{t.budgets[-1]}"]
    known = [[t.correct_MSJ[m, s, -1] for s in row if not np.isnan(t.correct_MSJ[m, s, -1])]
             for m, row in enumerate(there)]  # fmt: skip
    for k in (1, 2):
        some = [list(itertools.combinations(row, k)) for row in known if len(row) >= k]
        out[f"pass@{k}"] = float(np.mean([np.mean([max(c) for c in subsets]) for subsets in some]))
    out["solved"] = float(np.mean([max(row) > 0 for row in known]))
    out["truncated"] = over(lambda m, s: t.finish_MS[m, s] == FINISHES.index("length"))
    out["unknown"] = over(lambda m, s: np.isnan(t.correct_MSJ[m, s]).mean())
    out["no_answer"] = over(lambda m, s: t.status_MSJ[m, s, -1] == tables.NONE)
    lengths = [t.think_MSJ[m, s, -1] for m, row in enumerate(there) for s in row]
    out["think_tokens/median"] = float(np.quantile(lengths, 0.5))
    out["think_tokens/p95"] = float(np.quantile(lengths, 0.95))
    out["think_tokens/sd"] = float(np.std(lengths))
    for d in (0, 1):
        mine = [[t.correct_MSJ[m, s, -1] for s in row] for m, row in enumerate(there) if m % 2 == d]
        out[f"difficulty-{d}/accuracy"] = mean(mine)
    return out


@pytest.mark.parametrize("seed", range(6))
def test_every_metric_is_what_plain_loops_say(seed: int) -> None:
    table = ragged(seed)
    found = metrics.measure([table], LIGHT)
    truth = by_hand(table)
    assert truth["accuracy@inf"] not in (0, 1)
    for name, value in truth.items():
        assert found[f"t/{name}"].value == pytest.approx(value), name


def test_a_table_in_closed_form() -> None:
    """Two problems: one that knows at 10 and thinks 20 tokens, one that never gets there."""
    table = tables.made([[20, 20], [40, 40]], [[10, 10], [90, 90]], (5, 10, 30), answer=2)
    value = values(metrics.measure([table], LIGHT))
    assert [value[f"t/accuracy@{b}"] for b in (5, 10, 30, "inf")] == [0, 0.5, 0.5, 0.5]
    assert [value[f"t/tokens@{b}"] for b in (5, 10, 30, "inf")] == [7, 12, 27, 32]
    assert value["t/tokens_per_solve@inf"] == 64
    assert value["t/tokens_per_solve@5"] == math.inf
    assert value["t/overthinking/waste"] == 0.5  # of 20 tokens the second ten changed nothing
    assert value["t/overthinking/harm"] == value["t/underthinking/left"] == 0
    assert value["t/compression@0.01"] == pytest.approx(1 - 12 / 32)
    assert value["t/solved"] == 0.5
    assert value["t/cost_of_pass@inf"] == 22  # the other is never solved: the lower median
    assert value["t/cap_area"] == pytest.approx(0.5 * 81 / 100)
    assert value["t/majority@2/accuracy"] == 0.5
    assert value["t/majority@2/tokens"] == 64


def test_names_are_those_that_are_promised() -> None:
    names = set(metrics.measure([tables.random(6, 8, (8, 24))]))
    promised = {
        f"t/{name}"
        for name in (
            *(f"{kind}@{b}" for b in (8, 24, "inf") for kind in (
                "accuracy", "tokens", "think_tokens", "answer_tokens", "forced",
                "tokens_per_solve", "e3", "ockscore", "cost_of_pass")),
            *(f"anytime/{p}" for p in ("equal", "uniform", "log", "linear", "final")),
            *(f"{of}_tokens/{q}" for of in ("think", "answer")
              for q in ("mean", "median", "p95", "sd")),
            *(f"{name}@{k}/{q}" for k in (1, 2, 4, 8)
              for name in ("majority", "short_m", "best_of_n", "best_of_majority")
              for q in ("accuracy", "tokens", "latency")),
            *(f"compression@{d}" for d in (0.01, 0.02, 0.05)),
            *(f"stop/{rule}/{q}" for rule in ("consistency", "confidence")
              for q in ("accuracy", "tokens", "exited")),
            "overthinking/harm", "overthinking/waste", "underthinking/problems",
            "underthinking/left", "cap_area", "cap_accuracy@8", "pass@1", "pass@4", "solved",
            "truncated", "no_answer", "unparseable", "unknown", "repetition",
            "difficulty-0/accuracy", "difficulty-1/think_tokens", "anytime",
        )
    }  # fmt: skip
    assert promised <= names
    assert "t/pass@8" not in names  # of 8 samples it is one draw


@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
@settings(max_examples=8, deadline=None)
def test_order_of_problems_and_samples_means_nothing(seed: int, random: Any) -> None:
    table = ragged(seed % 50, problems=5, samples=4)
    problems, samples = list(range(5)), list(range(4))
    random.shuffle(problems)
    random.shuffle(samples)
    one = metrics.measure([table])
    two = metrics.measure([tables.taken(table, problems, samples)])
    assert list(one) == list(two)
    for name, m in one.items():
        other = two[name]
        # Two of equal length and score may change places where only one of them is returned.
        for field in ("value", "n", "samples", "se_fixed", "se_pop"):
            a, b = getattr(m, field), getattr(other, field)
            assert (a is None) == (b is None), (name, field)
            if a is not None:
                assert a == pytest.approx(b, nan_ok=True), (name, field)


def test_a_task_twice_is_the_same_with_a_smaller_error() -> None:
    table = tables.random(12, 4, GRID, seed=3)
    found = metrics.measure([table, replace(table, task="u")], LIGHT)
    for name in [n.removeprefix("t/") for n in found if n.startswith("t/")]:
        one, every = found[f"t/{name}"], found[f"all/{name}"]
        assert every.value == pytest.approx(one.value, nan_ok=True), name
        assert every.n == 2 * one.n
        if one.se_pop is not None:
            assert every.se_pop == pytest.approx(one.se_pop / math.sqrt(2)), name
            assert every.low <= every.value <= every.high
        if one.se_fixed is not None:
            assert every.se_fixed == pytest.approx(one.se_fixed / math.sqrt(2)), name


def test_all_tasks_speak_only_of_what_all_of_them_have() -> None:
    found = metrics.measure(
        [tables.random(6, 2, GRID), replace(tables.random(6, 2, GRID[:2]), task="u")], LIGHT
    )
    assert "all/accuracy@8" in found
    assert "all/accuracy@60" not in found
    assert found["all/accuracy@8"].value == pytest.approx(
        (found["t/accuracy@8"].value + found["u/accuracy@8"].value) / 2
    )


def test_a_column_nobody_could_grade_leaves_the_others_alone() -> None:
    table = tables.random(8, 3, GRID, seed=1)
    correct = table.correct_MSJ.copy()
    correct[..., 1] = np.nan
    clean = metrics.measure([table], LIGHT)
    dirty = metrics.measure([replace(table, correct_MSJ=correct)], LIGHT)
    assert math.isnan(dirty["t/accuracy@24"].value)
    assert dirty["t/accuracy@24"].n == 0
    assert math.isnan(dirty["t/tokens_per_solve@24"].value)
    assert dirty["t/unknown"].value == pytest.approx(1 / 4)
    for name in ("accuracy@8", "accuracy@inf", "tokens@24", "e3@inf", "pass@1", "cap_area"):
        assert dirty[f"t/{name}"] == clean[f"t/{name}"], name


def test_what_all_problems_agree_on_has_an_interval() -> None:
    """Thirty solved of thirty: how much of the rest is not solved is not known to be nothing."""
    table = tables.made(np.full((30, 4), 20), 10, (5, 15))
    found = metrics.measure([table])
    low = 0.025 ** (1 / 30)
    for name in ("accuracy@15", "cap_area", "pass@2", "solved", "majority@2/accuracy", "anytime"):
        m = found[f"t/{name}"]
        unlike = (m.value - m.low) / m.value
        assert unlike == pytest.approx(1 - low), name
        assert m.high == pytest.approx(m.value + (1 - m.value) * unlike), name
        assert (m.se_fixed in (0, None), m.se_pop) == (True, pytest.approx(0)), name
    assert found["t/truncated"].high == pytest.approx(1 - low)
    assert found["t/forced@15"].low == pytest.approx(low)
    for name in ("tokens@5", "forced@inf", "think_tokens/mean"):  # no shares, or known beforehand
        assert found[f"t/{name}"].half_width == 0, name
    other = replace(tables.random(30, 4, (5, 15)), task="u")
    both = metrics.measure([table, other], LIGHT)
    task, every = both["u/accuracy@15"], both["all/accuracy@15"]
    assert every.low == pytest.approx(every.value - math.hypot(1 - low, task.value - task.low) / 2)
    assert every.high == pytest.approx(every.value + (task.high - task.value) / 2)


def test_nothing_and_one_problem() -> None:
    one = metrics.measure([tables.random(1, 4, GRID)])
    assert math.isnan(one["t/accuracy@8"].low)
    assert one["t/accuracy@8"].se_pop is None
    assert one["t/accuracy@8"].se_fixed is not None
    single = metrics.measure([tables.random(5, 1, GRID)])
    assert single["t/accuracy@8"].se_fixed is None
    assert single["t/accuracy@8"].se_pop is not None
    assert metrics.measure([]) == {}


def test_a_problem_without_samples_is_not_there() -> None:
    table = tables.random(6, 3, GRID, seed=2)
    missing = np.zeros((6, 3), dtype=bool)
    missing[4] = True
    found = metrics.measure([tables.without(table, missing)], LIGHT)
    kept = metrics.measure([tables.taken(table, [0, 1, 2, 3, 5])], LIGHT)
    for name, m in kept.items():
        assert found[name].value == pytest.approx(m.value, nan_ok=True), name
        assert found[name].n == m.n


def test_errors_on_fixed_problems_are_the_spread_over_repeated_sampling() -> None:
    """Of a share, a ratio, a square over a mean and pass@k: rates fixed, samples drawn anew."""
    rng = np.random.default_rng(0)
    rates_M1 = rng.beta(0.8, 0.8, (25, 1))
    drawn: dict[str, list[Metric]] = {}
    for _ in range(400):
        right = rng.random((25, 6)) < rates_M1
        tokens = rng.poisson(40 + 60 * (1 - right), (25, 6)).astype(float)
        from trainer.eval import efficiency

        each = {
            "mean": metric.from_samples(right),
            "ratio": metric.of_means(efficiency.tokens_per_solve, right, tokens),
            "e3": metric.of_means(efficiency.e3, right, tokens),
            "pass@2": metric.pass_at_k(right, 2),
        }
        for name, m in each.items():
            drawn.setdefault(name, []).append(m)
    for name, some in drawn.items():
        spread = np.std([m.value for m in some])
        told = np.sqrt(np.mean([(m.se_fixed or math.nan) ** 2 for m in some]))
        # 400 draws tell a standard deviation to 3.5%; leaving one out errs upwards, by little.
        assert 0.87 < told / spread < 1.2, name


def test_errors_over_problems_are_the_spread_over_sets_of_problems() -> None:
    from trainer.eval import efficiency

    rng = np.random.default_rng(1)
    some: list[Metric] = []
    for _ in range(300):
        right = rng.random((60, 4)) < rng.beta(2, 1, (60, 1))
        tokens = rng.poisson(40 + 60 * (1 - right), (60, 4)).astype(float)
        some.append(metric.of_means(efficiency.tokens_per_solve, right, tokens))
    told = np.sqrt(np.mean([(m.se_pop or math.nan) ** 2 for m in some]))
    assert told == pytest.approx(np.std([m.value for m in some]), rel=0.15)


def test_the_error_of_a_share_is_the_one_of_statistics() -> None:
    right = tables.random(9, 5, seed=4).correct_MSJ[..., 0]
    told = metric.from_samples(right).se_fixed
    assert told == pytest.approx(statistics.fixed_set_error(right))
    assert metric.pass_at_k(right, 1).se_fixed == pytest.approx(told)
    assert metric.pass_at_k(right, 5).se_fixed is None  # nothing is left to leave out


def test_json_gives_metrics_back() -> None:
    found = metrics.measure([tables.random(5, 2, (8,))], LIGHT) | {
        "t/none": metric.NOTHING,
        "t/never": Metric(math.inf, 3.0, math.inf, 4, 8),
    }
    text = json.dumps(metric.as_json(found), allow_nan=False)
    again = metric.from_json(json.loads(text))
    assert list(again) == list(found)
    for name, m in found.items():
        assert str(again[name]) == str(m)  # NaN is no equal of itself


def test_training_and_evaluation_say_the_same() -> None:
    """The same rows, once by training's names and once by those of an evaluation."""
    result, _ = run(EvalConfig(budgets=(8, 20), samples=3, prior="linear"), unknown={"p1"})
    found = metrics.measure([replace(table_of(result.rows, (8, 20), CAP), task="t")], LIGHT)
    names = {"accuracy": "accuracy@inf", "anytime": "anytime/linear"} | {
        "tokens_per_solve": "tokens_per_solve@inf"
    }
    assert len(result.metrics) > 25
    for name, estimate in result.metrics.items():
        other = found[f"t/{names.get(name, name)}"].estimate
        assert str(other) == str(estimate), name


def test_one_real_folder_by_hand(tmp_path: Path) -> None:
    """Sampled by the shipped base model; accuracies from the files alone."""
    from tests import evaluated

    folder = open_folder(evaluated.copied("both", tmp_path))
    found = metrics.measure(folder.tables())
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    judged = {}
    for line in (tmp_path / "verdicts.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "id" in row:
            judged[row["id"], row["sample"], row["asked"]] = row["verdicts"]

    def share(asked: str, budget: int | str) -> float:
        right = []
        for row in rows:
            if row["asked"] == asked:
                at = [cut["budget"] for cut in row["cuts"]]
                j = at.index(budget) if budget in at else at.index("inf")
                right.append(judged[row["id"], row["sample"], asked][j][0] == "ok")
        return float(np.mean(right))

    for b in (32, 96):
        assert found[f"find/accuracy@{b}"].value == pytest.approx(share("", b))
        assert found[f"find/prompt/accuracy@{b}"].value == pytest.approx(share(str(b), b))
        assert found[f"find/prompt/soft_accuracy@{b}"].value == pytest.approx(share(str(b), "inf"))
        used = [row["think_tokens"] for row in rows if row["asked"] == str(b)]
        assert found[f"find/prompt/utilisation@{b}"].value == pytest.approx(np.mean(used) / b)
    assert found["find/accuracy@inf"].value == pytest.approx(share("", "inf"))
    assert found["find/prompt/rank_correlation"].low > 0.3  # the base was taught to listen
