"""Which engines are taken for hung: beats are counted here, and no clock runs."""

from __future__ import annotations

import random
from typing import Any

import pytest

from launch.heart import BEATS, Heart


class Engines:
    """What they say when they are asked, scripted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int = 3) -> None:
        self.says: list[Any] = [0] * count
        self.asked = [0] * count
        self.heart = Heart(self.pulse, lambda *_: None, patience=BEATS * 1.0)
        monkeypatch.setattr(self.heart, "_watch", lambda: None)

    def pulse(self, engine: int) -> Any:
        self.asked[engine] += 1
        return self.says[engine]

    def beats(self, count: int) -> list[int]:
        return [engine for _ in range(count) for engine in self.heart.beat()]


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    return Engines(monkeypatch)


def test_one_that_stands_still_for_the_patience_is_found_and_none_before(engines: Engines) -> None:
    engines.heart.begin(1)
    assert engines.beats(1 + BEATS - 1) == [], "the first word of an engine is news"
    assert engines.beats(1) == [1]
    assert engines.beats(BEATS - 1) == [], "the one in its place has the whole patience again"
    assert engines.asked[0] == engines.asked[2] == 0


def test_one_that_says_nothing_at_all_is_found(engines: Engines) -> None:
    engines.says[0] = None
    engines.heart.begin(0)
    assert engines.beats(BEATS) == [0]


def test_one_that_goes_on_is_never_found_however_slowly(engines: Engines) -> None:
    engines.heart.begin(0)
    for _ in range(50):
        assert engines.beats(BEATS - 1) == []
        engines.says[0] += 1
        assert engines.beats(1) == []


def test_without_work_nobody_is_asked(engines: Engines) -> None:
    engines.heart.begin(0)
    engines.heart.begin(0)
    engines.heart.end(0)
    assert engines.beats(BEATS) == []
    engines.heart.end(0)
    engines.heart.end(0)  # of one that is forgotten
    asked = list(engines.asked)
    assert engines.beats(3 * BEATS) == []
    assert engines.asked == asked
    engines.heart.begin(0)
    assert engines.beats(BEATS - 1) == [], "the beats before its rest do not count"
    assert engines.beats(1) == [0]
    engines.heart.forget()
    assert engines.beats(2 * BEATS) == []


def test_where_there_are_no_steps_an_answer_is_enough_and_silence_is_not(engines: Engines) -> None:
    engines.heart.begin(0)
    with engines.heart.answering([0, 1]):
        assert engines.beats(5 * BEATS) == []
        engines.says[1] = None
        assert engines.beats(BEATS) == [1]
        engines.says[1] = 0
    assert engines.beats(BEATS - 1) == []
    assert engines.beats(1) == [0]


def test_any_number_of_beats_that_a_stopped_driver_missed_counts_for_none() -> None:
    """Nothing reads a clock: only what was heard, and how often it was listened for."""
    names = Heart.beat.__code__.co_names
    assert not {"time", "monotonic", "perf_counter"} & set(names)


@pytest.mark.parametrize("seed", range(20))
def test_of_many_those_and_only_those_that_stand_still(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    engines = Engines(monkeypatch, 8)
    still = [0] * 8
    for engine in range(8):
        engines.heart.begin(engine)
    engines.beats(1)
    for _ in range(200):
        for engine in range(8):
            moved = rng.random() < 0.3
            engines.says[engine] += moved
            still[engine] = 0 if moved else still[engine] + 1
        expected = [engine for engine in range(8) if still[engine] == BEATS]
        assert engines.beats(1) == expected
        still = [0 if n == BEATS else n for n in still]
