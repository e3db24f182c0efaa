"""Risk: overlapped work that is counted twice, not at all, or taken for the step's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from trainer.metrics import Clock, summarise


class Hands:
    """Threads that enter and leave phases when told, on a clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        self.clock = Clock()

    def at(self, now: float) -> Clock:
        self.now = now
        return self.clock


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    return Hands(monkeypatch)


class Beside:
    """A thread in whose place phases are entered and left."""

    def __init__(self) -> None:
        self._todo: list[Callable[[], object]] = []
        self._asked, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            self._asked.acquire()
            self._todo.pop()()
            self._done.release()

    def do(self, action: Callable[[], object]) -> None:
        self._todo.append(action)
        self._asked.release()
        assert self._done.acquire(timeout=10)


def test_a_thread_beside_is_counted_and_leaves_the_rest_as_it_is(hands: Hands) -> None:
    """0-6 generate, 6-8 verify beside; the owner: 1-5 train, 5-7 wait, then 3 s of nothing."""
    producer, clock = Beside(), hands.clock
    generate, verify = clock.phase("generate"), clock.phase("verify")
    producer.do(generate.__enter__)
    with hands.at(1).phase("train"):
        hands.now = 5
    with clock.phase("wait"):
        hands.now = 6
        producer.do(lambda: generate.__exit__(None, None, None))
        producer.do(verify.__enter__)
        hands.now = 7
    hands.now = 8
    producer.do(lambda: verify.__exit__(None, None, None))
    times = hands.at(10).lap()
    assert times == {
        "train": 4, "wait": 2, "generate": 6, "verify": 2, "overlapped": 8, "step": 10,
    }  # fmt: skip
    out = summarise([], {"tokens": 40}, times)
    assert out["time/other_share"] == pytest.approx(0.4)  # 0-1 and 7-10 of the owner
    assert out["time/overlapped"] == 8


def test_a_phase_of_several_threads_is_counted_once(hands: Hands) -> None:
    one, other, clock = Beside(), Beside(), hands.clock
    first, second = clock.phase("generate"), clock.phase("generate")
    one.do(first.__enter__)
    hands.now = 2
    other.do(second.__enter__)
    hands.now = 3
    one.do(lambda: first.__exit__(None, None, None))
    with hands.at(4).phase("generate"):  # the owner too, as an evaluation would
        hands.now = 6
    other.do(lambda: second.__exit__(None, None, None))
    assert hands.at(7).lap() == {"generate": 6, "overlapped": 4, "step": 7}


def test_a_phase_goes_on_into_the_next_lap(hands: Hands) -> None:
    producer, clock = Beside(), hands.clock
    generate = clock.phase("generate")
    producer.do(generate.__enter__)
    assert hands.at(3).lap() == {"generate": 3, "overlapped": 3, "step": 3}
    hands.now = 4
    producer.do(lambda: generate.__exit__(None, None, None))
    assert hands.at(5).lap() == {"generate": 1, "overlapped": 1, "step": 2}
    assert hands.at(6).lap() == {"step": 1}


def test_each_thread_has_phases_of_its_own(hands: Hands) -> None:
    """A phase of one thread does not become the inner one of another's."""
    producer, clock = Beside(), hands.clock
    inner = clock.phase("verify")
    with clock.phase("train"):
        hands.now = 1
        producer.do(inner.__enter__)
        hands.now = 3
    producer.do(lambda: inner.__exit__(None, None, None))
    assert hands.at(4).lap() == {"train": 3, "verify": 2, "overlapped": 2, "step": 4}


def test_many_threads_lose_nothing() -> None:
    """Real threads, real time: laps add up to what passed, and no phase exceeds it."""
    clock, laps = Clock(), []
    stop = threading.Event()

    def work(name: str) -> None:
        while not stop.is_set():
            with clock.phase(name), clock.phase(name + "/inner"):
                pass

    threads = [threading.Thread(target=work, args=(f"p{i % 2}",)) for i in range(6)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for _ in range(50):
        with clock.phase("train"):
            time.sleep(0.001)
        laps.append(clock.lap())
    stop.set()
    for thread in threads:
        thread.join()
    passed = time.perf_counter() - began
    assert 0.05 <= sum(lap["step"] for lap in laps) <= passed
    for lap in laps:
        parts = {k: v for k, v in lap.items() if k not in ("step", "overlapped")}
        assert all(0 <= v <= lap["step"] + 1e-9 for v in parts.values())
        own = sum(parts.values()) - lap.get("overlapped", 0.0)
        assert own == pytest.approx(lap["train"], abs=1e-9)
