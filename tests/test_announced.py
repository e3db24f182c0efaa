"""Risk: what was announced, what was enforced and what was neither are mixed or misread."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from samplers.stopping import base as stopping
from tests import evaluated, tables
from trainer.eval import findings, metric, metrics
from trainer.eval.folder import open_folder
from trainer.eval.metrics import Options
from trainer.eval.table import FINISHES, Table

NONE = Options(selections=(), stopping=())


def told(budget: int, length: list[list[int]], answer: int = 3) -> Table:
    """Announced and cut at `budget`; every thought knows its answer at 30 tokens."""
    table = tables.made(length, np.full(np.shape(length), 30), (budget,), answer=answer)
    return replace(table, mode="prompt", asked=str(budget), target=budget)


def test_numbers_by_hand() -> None:
    short, long = told(20, [[10, 20], [30, 40]], answer=6), told(40, [[20, 40], [60, 80]])
    free = tables.made([[50, 50], [90, 90]], 30, (20,), answer=3)
    found = metrics.measure([free, short, long], NONE)
    value = {name.removeprefix("t/prompt/"): m.value for name, m in found.items()}
    assert value["accuracy@20"] == 0  # cut before 30
    assert value["soft_accuracy@20"] == 0.5
    assert value["accuracy@40"] == value["soft_accuracy@40"] == 0.75
    assert value["tokens@20"] == (10 + 20 + 20 + 20) / 4 + 6
    assert value["soft_tokens@20"] == (10 + 20 + 30 + 40) / 4 + 6
    assert value["violation@20"] == 0.5
    assert value["violation10@20"] == 0.5
    assert value["overshoot@20"] == (0.5 + 1) / 4
    assert value["deviation@20"] == (0.5 + 0 + 0.5 + 1) / 4
    assert value["utilisation@40"] == 50 / 40
    assert value["leak@20"] == 2
    assert value["leak@40"] == 1
    assert value["slope"] == pytest.approx(1)  # every thought is twice as long
    assert 0 < value["rank_correlation"] < 1
    assert found["t/prompt/violation@20"].se_fixed == pytest.approx(math.sqrt(0) / 2)
    assert found["t/prompt/deviation@20"].se_fixed == pytest.approx(0.25 / math.sqrt(2))


def test_experiments_are_never_mixed() -> None:
    """What was cut and told nothing does not change by what was told, nor the other way round."""
    free = tables.random(8, 4, (20, 40), seed=1)
    some = [replace(tables.random(8, 4, (b,), seed=b), mode="prompt", asked=str(b), target=b)
            for b in (20, 40)]  # fmt: skip
    alone, every = metrics.measure([free], NONE), metrics.measure([*some, free], NONE)
    for name, m in alone.items():
        assert str(every[name]) == str(m), name
    without = metrics.measure(some, NONE)
    assert "t/accuracy@20" not in without
    assert "t/prompt/leak@20" not in without  # nothing to leak against
    for name, m in without.items():
        assert str(every[name]) == str(m), name
    assert every["t/accuracy@20"].value != every["t/prompt/accuracy@20"].value


def effort(name: str, length: int, share: float, answer: int = 4) -> Table:
    """Ten problems, of which `share` are right."""
    need = np.where(np.arange(10) < 10 * share, 0, 1000)[:, None]
    made = tables.made(np.full((10, 2), length), need, cap=2000, answer=answer)
    return replace(made, mode="effort", asked=name)


def test_efforts_by_hand() -> None:
    """High is the measure of leak where nothing was run unasked; the badge is ThinkDial's."""
    some = [effort("low", 20, 0.8, answer=8), effort("medium", 40, 0.9), effort("high", 96, 0.9)]
    found = metrics.measure(some, NONE)
    assert found["t/effort/accuracy@low"].value == pytest.approx(0.8)
    assert found["t/effort/tokens@medium"].value == 44
    assert found["t/effort/leak@low"].value == 2
    assert "t/effort/leak@high" not in found
    assert found["t/effort/badge"].value == 0  # low saves 72%
    some[0] = effort("low", 10, 0.8)
    assert metrics.measure(some, NONE)["t/effort/badge"].value == 1
    some = [effort("low", 10, 0.5), effort("medium", 40, 0.6), effort("high", 96, 0.6)]
    drop = metrics.measure(some, NONE)  # ten points, which are a sixth of what high has
    assert (drop["t/effort/badge"].value, drop["t/effort/badge_relative"].value) == (1, 0)
    some[0] = effort("low", 10, 0.8)
    free = replace(effort("", 50, 0.9, answer=2), asked="")
    told = metrics.measure([free, *some], NONE)
    assert told["t/effort/leak@high"].value == 2
    assert told["t/accuracy@inf"].value == pytest.approx(0.9)
    assert "t/effort/badge" not in metrics.measure(some[1:], NONE)


def test_an_exit_pays_for_every_trial_answer() -> None:
    """The same answer at two looks running ends the thought; looks end where the thought does."""
    grid = (5, 10, 15, 20)
    table = tables.made([[12, 18, 30]], [[100, 100, 100]], grid, answer=2)
    classes = table.class_MSJ.copy()
    classes[0] = [[1, 2, 9, 9, 9], [1, 2, 2, 7, 7], [3, 3, 3, 3, 0]]
    correct = (classes == 2).astype(float)
    correct[0, 2, -1] = 1
    table = replace(table, class_MSJ=classes, correct_MSJ=correct)
    spec = {"name": "consistency", "runs": 2}
    found = metrics.measure([table], Options(selections=(), stopping=(spec,)))
    name = "t/stop/consistency(runs=2)"
    # 12 tokens: looks at 5 and 10 differ. 18: 5, 10, 15; leaves at 15. 30: leaves at 10.
    spent = [12 + 2 * 2 + 2, 15 + 3 * 2 + 2, 10 + 2 * 2 + 2]
    assert found[f"{name}/tokens"].value == pytest.approx(np.mean(spent))
    assert found[f"{name}/exited"].value == pytest.approx(2 / 3)
    assert found[f"{name}/accuracy"].value == pytest.approx(1 / 3)  # the second alone


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spec", ["consistency", "confidence"])
def test_exits_are_those_of_the_rule(seed: int, spec: str) -> None:
    table = tables.random(5, 3, (10, 20, 40, 60, 80), seed)
    rule, config = stopping.resolve(spec)
    found = metrics.measure([table], Options(selections=(), stopping=(spec,)))
    right, spent, left = [], [], []
    for m in range(5):
        for s in range(3):
            looks = [
                stopping.Look(b, str(table.class_MSJ[m, s, j]), table.confidence_MSJ[m, s, j])
                for j, b in enumerate(table.budgets)
                if b < table.think_MSJ[m, s, -1]
            ]
            at = stopping.exit_of(rule, config, looks)
            j, taken = (5, len(looks)) if at is None else (at, at + 1)
            right.append(table.correct_MSJ[m, s, j])
            trials = table.answer_MSJ[m, s, :taken].sum()
            spent.append(table.think_MSJ[m, s, j] + table.answer_MSJ[m, s, j] + trials)
            left.append(at is not None)
    assert 0 < sum(left) < len(left) or spec == "consistency"
    assert found[f"t/stop/{spec}/accuracy"].value == pytest.approx(np.mean(right))
    assert found[f"t/stop/{spec}/tokens"].value == pytest.approx(np.mean(spent))
    assert found[f"t/stop/{spec}/exited"].value == pytest.approx(np.mean(left))


def lines(*some: Table) -> list[str]:
    return findings.findings(some, metrics.measure(some, NONE))


def healthy(**changed: object) -> Table:
    table = tables.made(np.arange(10, 70).reshape(20, 3), 10, (20, 40))
    return replace(table, **changed)  # type: ignore[arg-type]


def test_a_healthy_table_has_no_findings() -> None:
    assert lines(healthy()) == []


def test_a_hard_budget_that_was_exceeded() -> None:
    """As a server that ignores it would answer: more thought than was allowed."""
    think = healthy().think_MSJ.copy()
    think[:3, :, 0] = 26
    found = lines(healthy(think_MSJ=think))
    assert len(found) == 1
    assert found[0].startswith("t: adherence: the hard budget of 20 was exceeded in 15.0%")
    assert "by up to 6 tokens" in found[0]
    assert findings.exceeded([healthy()]) == []


def test_samples_that_count_as_wrong_for_other_reasons() -> None:
    finish = healthy().finish_MS.copy()
    finish[:2] = FINISHES.index("length")
    assert (
        "truncated: 10.0% of samples ran into the cap of 100" in lines(healthy(finish_MS=finish))[0]
    )
    finish[:2] = FINISHES.index("repetition")
    assert "10.0% of samples went in circles" in lines(healthy(finish_MS=finish))[0]
    correct = healthy().correct_MSJ.copy()
    correct[0] = np.nan
    assert "unknown: 5.0% of verdicts" in lines(healthy(correct_MSJ=correct))[0]
    assert "one problem" in lines(tables.made([[10, 20]], 5))[0]


def test_budgets_that_change_nothing() -> None:
    lengths = [[10 + m + s for s in range(3)] for m in range(12)]
    same = lines(told(20, lengths), told(40, lengths))
    assert len(same) == 1
    assert "the announced budgets (20, 40) have no effect at all" in same[0]
    rng = np.random.default_rng(0)
    noise = lines(*(told(b, rng.integers(20, 60, (12, 3)).tolist()) for b in (20, 40)))
    assert len(noise) == 1
    assert "thoughts do not grow with the announced budgets (20, 40)" in noise[0]
    deaf = lines(*(effort(name, 40, 0.5) for name in ("low", "high")))
    assert len(deaf) == 1
    assert "the efforts (low, high) have no effect at all" in deaf[0]
    assert lines(effort("low", 20, 0.5), effort("high", 40, 0.5)) == []
    longer = np.add(lengths, 25).tolist()
    assert lines(told(20, lengths), told(40, longer)) == []


def test_answers_that_leak() -> None:
    free = tables.made([[50, 60]] * 4, 30, answer=3)
    free, leaky = (replace(t, task="t") for t in (free, told(20, [[10, 20]] * 4, answer=5)))
    assert lines(free, leaky) == [
        "t: prompt/leak@20: answers are 1.7 times as long as without it: thinking leaks into them"
    ]


def test_draws_from_few_samples() -> None:
    table = tables.made(np.full((4, 8), 20), 10)
    found = metrics.measure([table], replace(NONE, ks=(2, 4, 8)))
    assert findings.findings([table], found) == [
        "t: pass@k at k = 8 of 8 samples is noisy; take 2 k or more"
    ]


def test_selections_read_scores_where_there_are_some() -> None:
    """Best of n follows an outside scorer; without one the model's own confidence."""
    table = tables.random(6, 4, seed=2)
    right = table.correct_MSJ[..., -1]
    options = Options(selections=("best_of_n",), ks=(4,), stopping=())
    knows = metrics.measure([replace(table, score_MS=right)], options)
    assert knows["t/best_of_n@4/accuracy"].value == pytest.approx((right.sum(axis=1) > 0).mean())
    own = metrics.measure([table], options)["t/best_of_n@4/accuracy"]
    sure = table.confidence_MSJ[..., -1] + np.where(table.class_MSJ[..., -1] < 0, -9, 0)
    best = np.take_along_axis(right, sure.argmax(axis=1)[:, None], axis=1)
    assert own.value == pytest.approx(best.mean())
    nothing = replace(table, confidence_MSJ=np.full(table.confidence_MSJ.shape, np.nan))
    assert "t/best_of_n@4/accuracy" not in metrics.measure([nothing], options)


def test_efforts_of_a_real_model(tmp_path: Path) -> None:
    found = metrics.measure(open_folder(evaluated.copied("effort", tmp_path)).tables(), NONE)
    spent = [found[f"find/effort/tokens@{name}"].value for name in ("none", "low", "high")]
    assert spent == sorted(spent)
    assert found["find/effort/accuracy@high"].n == 12
    assert isinstance(found["find/effort/badge"], metric.Metric)
