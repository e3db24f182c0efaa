"""Risk: what a selection is said to be worth is not what it would return, or not what it costs.

Every estimator is held against brute force: all subsets, and all orders of samples that tie.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.selection import (
    _subsets,
    _votes,
    base,
    best_of_majority,
    best_of_n,
    majority,
    short_m,
)
from tests.bench.coverage import published
from trainer.eval import statistics

Sample = tuple[int, int, int, float, float]
"""Answer (-1: none), thinking tokens, answer tokens, score (NaN: none), right (NaN: unknown)."""
NAN = float("nan")
EVERY = [
    (majority, majority.Config()),
    (short_m, short_m.Config(m=1)),
    (short_m, short_m.Config(m=2)),
    (short_m, short_m.Config(m=3)),
    (best_of_n, best_of_n.Config()),
    (best_of_n, best_of_n.Config(weighted=True)),
    (best_of_majority, best_of_majority.Config(tau=0.5)),
]
IDS = ["majority", "short_1", "short_2", "short_3", "best_of_n", "weighted", "best_of_majority"]


@st.composite
def problems(draw: st.DrawFn, most: int = 5) -> list[Sample]:
    """Few samples with many ties; verdicts follow answers, as grading does, or are unknown."""
    right = {-1: 0.0, 0: 1.0, 1: 0.0, 2: draw(st.sampled_from([0.0, 1.0, NAN]))}
    answers = draw(st.lists(st.integers(-1, 2), min_size=1, max_size=most))
    return [
        (
            answer,
            draw(st.integers(1, 3)),
            draw(st.integers(0, 2)),
            draw(st.sampled_from([0.0, 0.25, 0.5, NAN])),
            right[answer],
        )
        for answer in answers
    ]


def pool_of(samples: Sequence[Sample]) -> base.Pool:
    answer, think, said, score, _ = (np.array([column]) for column in zip(*samples, strict=True))
    return base.Pool(answer, think, think + said, score.astype(float))


def right_of(samples: Sequence[Sample]) -> list[float]:
    return [sample[4] for sample in samples]


# What each method returns of samples in an order that breaks ties, written down naively.
def votes(samples: Sequence[Sample]) -> dict[int, int]:
    return Counter(sample[0] for sample in samples if sample[0] >= 0)


def by_vote(samples: Sequence[Sample], order: Sequence[int]) -> Sample | None:
    """Ties: which answer is named first in `order`."""
    counted = votes(samples)
    tied = [a for a, n in counted.items() if n == max(counted.values())]
    winner = min(tied, key=order.index, default=None)
    return next((s for s in samples if s[0] == winner), None)


def by_shortest(samples: Sequence[Sample], order: Sequence[int]) -> Sample | None:
    counted = votes(samples)
    tied = [s for s in samples if counted.get(s[0]) == max(counted.values(), default=0)]
    return min(tied, key=lambda s: s[1], default=None)


def ranked(sample: Sample) -> float:
    return -math.inf if math.isnan(sample[3]) else sample[3]


def by_score(samples: Sequence[Sample], order: Sequence[int]) -> Sample | None:
    return max((s for s in samples if s[0] >= 0), key=ranked, default=None)


def by_sum(samples: Sequence[Sample], order: Sequence[int]) -> Sample | None:
    sums = {a: sum(s[3] for s in samples if s[0] == a and s[3] == s[3]) for a in votes(samples)}
    tied = [a for a, total in sums.items() if total == max(sums.values())]
    winner = min(tied, key=order.index, default=None)
    return next((s for s in samples if s[0] == winner), None)


def by_frequent(samples: Sequence[Sample], order: Sequence[int]) -> Sample | None:
    counted = votes(samples)
    least = min(0.5 * len(samples), max(counted.values(), default=0))
    return by_score([s for s in samples if counted.get(s[0], -1) >= least], order)


NAIVE: dict[str, tuple[Callable[..., Sample | None], int | None]] = {
    "majority": (by_vote, None),
    "short_1": (by_shortest, 1),
    "short_2": (by_shortest, 2),
    "short_3": (by_shortest, 3),
    "best_of_n": (by_score, None),
    "weighted": (by_sum, None),
    "best_of_majority": (by_frequent, None),
}


def brute(samples: Sequence[Sample], k: int, name: str) -> base.Expected:
    """Every subset, in every order of samples and of the names of answers."""
    choose, m = NAIVE[name]
    right = judged = tokens = latency = runs = 0.0
    orders = list(itertools.permutations(range(3))) if m is None else [(0, 1, 2)]
    # Orders of all samples and subsets in the order given are orders of the subsets.
    for shuffled in itertools.permutations(samples):
        for subset in itertools.combinations(shuffled, k):
            ended = sorted(subset, key=lambda s: s[1])[: m or k]  # stable
            stopped = sorted(s[1] for s in subset)[min(m or k, k) - 1]
            spent = sum(min(s[1], stopped) for s in subset) if m else sum(s[1] for s in subset)
            tokens += spent + sum(s[2] for s in ended)
            latency += max(s[1] + s[2] for s in ended)
            runs += 1
            for order in orders:
                got = choose(ended if m else subset, order)
                verdict = got[4] if got else 0.0
                if not math.isnan(verdict):
                    right += verdict / len(orders)
                    judged += 1 / len(orders)
    return base.Expected(right / judged if judged else NAN, tokens / runs, latency / runs)


@pytest.mark.parametrize(
    ("module", "config", "name"), [(*e, n) for e, n in zip(EVERY, IDS, strict=True)]
)
@given(samples=problems(), data=st.data())
@settings(max_examples=120, deadline=None)
def test_expected_is_brute_force(
    module: Any, config: Any, name: str, samples: list[Sample], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(samples)))
    got = base.expected(module, config, pool_of(samples), right_of(samples), k)
    want = brute(samples, k, name)
    assert got.accuracy == pytest.approx(want.accuracy, abs=1e-12, nan_ok=True)
    assert got.tokens == pytest.approx(want.tokens)
    assert got.latency == pytest.approx(want.latency)


@pytest.mark.parametrize(("module", "config"), EVERY, ids=IDS)
@given(samples=problems(12), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_a_choice_is_a_distribution_over_answers_and_blind_to_order(
    module: Any, config: Any, samples: list[Sample], seed: int
) -> None:
    pool = pool_of(samples)
    chance_PK = module.chosen(config, pool.take(np.tile(np.arange(len(samples)), (2, 1))))
    answered = pool.answer_PK >= 0
    assert (chance_PK[0] == chance_PK[1]).all()
    assert chance_PK[:, ~answered[0]].sum() == 0
    ended = samples if module is not short_m else sorted(samples, key=lambda s: s[1])[: config.m]
    assert chance_PK[0].sum() == pytest.approx(float(any(s[0] >= 0 for s in ended)))
    if module is short_m and len(samples) > config.m:
        return  # there the order says which of equal lengths ended first
    order = np.random.default_rng(seed).permutation(len(samples))
    moved = module.chosen(config, pool_of([samples[i] for i in order]))
    assert moved[0] == pytest.approx(chance_PK[0, order])


@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    silent=st.integers(0, 4),
    data=st.data(),
)
@settings(max_examples=300, deadline=None)
def test_closed_form_of_the_vote_is_that_of_all_subsets(
    counts: list[int], silent: int, data: st.DataObject
) -> None:
    answers = [a for a, count in enumerate(counts) for _ in range(count)] + [-1] * silent
    answers = answers[:12]
    k = data.draw(st.integers(1, max(1, len(answers) - 1)))
    pool = pool_of([(a, 1, 1, NAN, 0.0) for a in answers])
    index = _subsets.all_of(len(answers), k)
    drawn = majority.chosen(majority.Config(), pool.take(index))
    want = np.bincount(index.ravel(), drawn.ravel()) / len(index)
    closed = majority.chance(majority.Config(), pool, k)
    if k == len(answers):
        assert closed is None
        return
    assert closed == pytest.approx(want, abs=1e-12)


def test_closed_form_of_the_vote_keeps_its_digits_with_many_samples() -> None:
    """200 samples, 100 drawn: 9e58 subsets, counted in whole numbers."""
    sizes, silent, n, k = (80, 60, 40), 20, 200, 100
    won = [Fraction(0)] * 3
    for drawn in itertools.product(*(range(size + 1) for size in sizes)):
        rest = k - sum(drawn)
        if 0 <= rest <= silent:
            ways = math.prod(
                math.comb(s, d) for s, d in zip(sizes, drawn, strict=True)
            ) * math.comb(silent, rest)
            tied = [i for i in range(3) if drawn[i] == max(drawn)]
            for i in tied:
                won[i] += Fraction(ways, len(tied))
    want = [float(w / math.comb(n, k)) for w in won]
    got = _votes.shares(np.array(sizes), np.array([1, 1, 1]), n, k)
    assert got == pytest.approx(want, rel=1e-9, abs=1e-13)


def test_ties_that_decide_who_ends_first_are_weighed_as_all_orders_would() -> None:
    lengths = np.array([1, 2, 2, 2, 3, 3])
    n, m, k = len(lengths), 2, 4
    counted: Counter[tuple[int, ...]] = Counter()
    for order in itertools.permutations(range(n)):
        for subset in itertools.combinations(order, k):
            counted[tuple(sorted(sorted(subset, key=lambda i: lengths[i])[:m]))] += 1
    want = np.array([counted[tuple(row)] for row in _subsets.all_of(n, m)])
    assert _subsets.first_weights(lengths, m, k) == pytest.approx(want / want.sum())


def test_best_of_n_of_a_perfect_scorer_is_pass_at_k() -> None:
    """HumanEval's estimator, 1 - prod(1 - k / (n - c + 1 .. n)), as its repository computes it."""
    n, c = 20, 3
    right = np.array([1.0] * c + [0.0] * (n - c))
    pool = pool_of([(i, 1, 1, float(r), r) for i, r in enumerate(right)])
    for k in (1, 2, 5, 10, 20):
        got = base.expected(best_of_n, best_of_n.Config(), pool, right, k).accuracy
        published = 1.0 if n - c < k else 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))
        assert got == pytest.approx(published)
        assert statistics.pass_at_k(n, c, k) == pytest.approx(published)


def sampled(seed: int, n: int = 24) -> tuple[base.Pool, np.ndarray]:
    rng = np.random.default_rng(seed)
    answer = rng.choice(4, n, p=[0.4, 0.3, 0.2, 0.1]) - (rng.random(n) < 0.1) * 9
    answer = np.maximum(answer, -1)
    think = rng.integers(50, 60, n) + 40 * answer
    pool = base.Pool(answer[None], think[None], think[None] + 5, rng.random((1, n)))
    return pool, (answer == 0).astype(float)


@pytest.mark.parametrize(("module", "config"), EVERY, ids=IDS)
def test_draws_agree_with_all_subsets(module: Any, config: Any) -> None:
    """C(20, 6) = 38760: all are gone through with 2000 draws, and 1000 are drawn with 1000."""
    pool, right = sampled(3, 20)
    k = 6
    exact = base.expected(module, config, pool, right, k, draws=2000)
    drawn = base.expected(module, config, pool, right, k, draws=1000, seed=5)
    assert drawn.accuracy == pytest.approx(exact.accuracy, abs=4 * 0.5 / math.sqrt(1000))
    assert drawn.tokens == pytest.approx(exact.tokens)
    assert drawn.latency == pytest.approx(exact.latency, rel=0.02)


def test_short_m_by_draws_breaks_ties_at_random() -> None:
    """More subsets of m than are gone through: 1,000 draws, lengths all alike."""
    answer = np.array([[0] * 20 + [1] * 20])
    think = np.full((1, 40), 7)
    pool = base.Pool(answer, think, think, np.full((1, 40), NAN))
    right = (answer[0] == 0).astype(float)
    got = base.expected(short_m, short_m.Config(m=5), pool, right, 9, draws=1000)
    assert math.comb(40, 5) > base.WORTH * 1000
    assert got.accuracy == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(1000))
    assert got.tokens == pytest.approx(63)


def test_draws_are_without_replacement_and_shared() -> None:
    index = _subsets.drawn(16, 10, 300, 0)
    assert all(len(set(row)) == 10 for row in index.tolist())
    assert _subsets.drawn(16, 10, 300, 0) is index
    assert np.bincount(index.ravel()) / 300 == pytest.approx(np.full(16, 10 / 16), abs=0.12)
    assert [base.draws_for(m) for m in (0, 30, 200, 500, 1000, 10**6)] == [2000] * 3 + [
        800,
        400,
        400,
    ]


def test_published_best_of_n_with_replacement_is_not_what_n_samples_give() -> None:
    """verl's best@N draws with replacement: at n = k = 8 and p = 0.2 it says 0.684 for 0.832.

    A copy drawn twice is no second chance. Its mean over resamples is 1 - (1 - c / n)^k.
    """
    true, ours, resampled = published(0.2, 8, 8)
    assert ours == pytest.approx(true)
    assert true == pytest.approx(0.832, abs=5e-4)
    assert resampled == pytest.approx(0.684, abs=5e-4)
    rng = np.random.default_rng(0)  # as verl does it: copies of the samples, and their best
    right = rng.random((2000, 8)) < 0.2
    drawn = np.take_along_axis(right, rng.integers(0, 8, (2000, 8)), axis=1).any(axis=1)
    assert drawn.mean() == pytest.approx(resampled, abs=4 * 0.5 / math.sqrt(2000))


def test_published_vote_by_first_seen_scores_a_tie_by_its_order() -> None:
    """verl's `max(counts, key=counts.get)`: of a tie it returns whatever was inserted first."""

    def first_seen(answers: Sequence[int]) -> int:
        counts: dict[int, int] = {}
        for answer in answers:
            counts[answer] = counts.get(answer, 0) + 1
        return max(counts, key=lambda a: counts[a])

    tie, turned = [0, 1, 1, 0], [1, 0, 0, 1]
    assert (first_seen(tie), first_seen(turned)) == (0, 1)
    for answers in (tie, turned):
        pool = pool_of([(a, 1, 1, NAN, float(a == 0)) for a in answers])
        right = [float(a == 0) for a in answers]
        assert base.expected(majority, majority.Config(), pool, right, 4).accuracy == 0.5


def test_unknown_verdicts_vote_and_cost_but_are_in_no_accuracy() -> None:
    samples: list[Sample] = [(0, 1, 1, NAN, 1.0), (1, 2, 1, NAN, NAN), (1, 3, 1, NAN, NAN)]
    pool, right = pool_of(samples), right_of(samples)
    alone = base.expected(majority, majority.Config(), pool, right, 1)
    assert alone.accuracy == 1.0
    assert alone.tokens == 3.0
    assert math.isnan(base.expected(majority, majority.Config(), pool, right, 3).accuracy)
    assert base.expected(short_m, short_m.Config(m=1), pool, right, 3).accuracy == 1.0


def test_live_the_shortest_of_tied_answers_wins_and_late_thoughts_do_not_vote() -> None:
    pool = pool_of([(5, 9, 1, NAN, 0), (5, 8, 1, NAN, 0), (4, 2, 1, NAN, 0), (6, 3, 1, NAN, 0)])
    assert short_m.chosen(short_m.Config(m=3), pool).tolist() == [[0, 0, 1, 0]]
    assert short_m.chosen(short_m.Config(m=4), pool).tolist() == [[0, 1, 0, 0]]
    assert short_m.enough(short_m.Config()) == 3


def test_scores_that_cannot_be_used() -> None:
    pool = pool_of([(0, 1, 1, -0.5, 0.0), (1, 1, 1, NAN, 1.0), (1, 1, 1, -0.7, 1.0)])
    with pytest.raises(ValueError, match=r"weighted: a score of -0\.7 .* weighted: false"):
        best_of_n.chosen(best_of_n.Config(weighted=True), pool)
    assert best_of_n.chosen(best_of_n.Config(), pool).tolist() == [[1, 0, 0]]
    unscored = pool_of([(0, 1, 1, NAN, 0.0), (1, 1, 1, NAN, 1.0)])
    assert best_of_n.chosen(best_of_n.Config(), unscored).tolist() == [[0.5, 0.5]]


def test_a_threshold_is_met_by_exactly_that_share() -> None:
    """0.28 * 25 is 7.000000000000001: seven of twenty-five are enough."""
    pool = pool_of([(a, 1, 1, 1.0 - a / 4, 0.0) for a in [0] * 7 + [1] * 18])
    chance = best_of_majority.chosen(best_of_majority.Config(tau=0.28), pool)
    assert chance[0, :7].sum() == pytest.approx(1)


def test_answers_of_equal_sums_share_evenly_however_many_samples_they_have() -> None:
    pool = pool_of([(0, 1, 1, 0.5, 0.0), (1, 1, 1, 0.25, 0.0), (1, 1, 1, 0.25, 0.0)])
    chance = best_of_n.chosen(best_of_n.Config(weighted=True), pool)
    assert chance.tolist() == [[0.5, 0.25, 0.25]]


def test_more_than_was_sampled_is_refused() -> None:
    pool, right = sampled(0, 8)
    for k in (0, 9):
        with pytest.raises(ValueError, match=rf"k: {k} is not in 1\.\.8"):
            base.expected(majority, majority.Config(), pool, right, k)


def test_names_of_papers_and_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(spec: Any) -> tuple[str, dict[str, Any]]:
        module, config = base.resolve(spec)
        return module.__name__.rsplit(".", 1)[-1], config.model_dump() if config else {}

    assert found("majority") == found("maj@k") == found("cons@64") == ("majority", {})
    assert found("short-m@k") == found("short_m") == found("short-3") == ("short_m", {"m": 3})
    assert found("short-1@8") == found({"name": "short-m", "m": 1}) == ("short_m", {"m": 1})
    assert found("best-of-n") == found("bon") == ("best_of_n", {"weighted": False})
    assert found({"name": "bom", "tau": 0.1}) == ("best_of_majority", {"tau": 0.1})
    with pytest.raises(ValueError, match=r"selection: no component named 'majorty'.*majority"):
        base.resolve("majorty")
    with pytest.raises(ValueError, match="selection: m: "):
        base.resolve("short-0")
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "last.py").write_text(
        "import numpy as np\n"
        "def enough(config):\n    return 2\n"
        "def chosen(config, pool):\n    return np.eye(pool.answer_PK.shape[1])[[0]]"
        ".repeat(len(pool.answer_PK), 0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module, config = base.resolve("own_package.last")
    pool = pool_of([(0, 5, 1, NAN, 1.0), (1, 2, 1, NAN, 0.0), (2, 9, 1, NAN, 0.0)])
    got = base.expected(module, config, pool, [1.0, 0.0, 0.0], 3)
    assert got == base.Expected(0.0, 2 + 5 + 5 + 1 + 1, 6.0)  # the shorter of two that ended
    del sys.modules["own_package.last"]
