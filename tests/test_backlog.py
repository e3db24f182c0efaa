"""The backlog: turns, equal items, room, and callers that go away."""

from __future__ import annotations

import threading
import time

import pytest

from rewards.service import backlog
from rewards.service.backlog import Backlog, Batch
from rewards.verdict import Verdict

OK = Verdict(True, 1.0, "ok")
LATE = Verdict(False, 0.0, "timeout")
SILENT = Verdict(False, 0.0, "no_answer")


def ask(log: Backlog, *names: str, size: int = 1) -> Batch:
    batch = Batch(len(names), SILENT)
    for at, name in enumerate(names):
        if verdict := log.ask(batch, at, name.encode(), b"x" * size):
            batch.verdicts[at] = verdict
    log.asked(batch)
    return batch


def order(log: Backlog) -> list[str]:
    """Names in the order in which they are taken and answered."""
    names = []
    while job := log.take():
        names.append(job.key.decode())
        log.finish(job, OK)
    return names


def blocked(log: Backlog, *names: str, size: int = 1) -> threading.Thread:
    """A caller that waits for room."""
    thread = threading.Thread(target=ask, args=(log, *names), kwargs={"size": size})
    thread.start()
    until = time.monotonic() + 30
    while not log._blocked and time.monotonic() < until:
        time.sleep(0.001)
    assert log._blocked
    return thread


def test_callers_take_turns() -> None:
    log = Backlog(100, 0)
    batches = [ask(log, "a1", "a2", "a3", "a4"), ask(log, "b1"), ask(log, "c1", "c2")]
    assert order(log) == ["a1", "b1", "c1", "a2", "c2", "a3", "a4"]
    assert all(batch.future.done() for batch in batches)


def test_equal_items_are_taken_once_and_at_the_earliest_turn_of_anyone() -> None:
    log = Backlog(100, 0)
    first, second = ask(log, "a", "b", "same"), ask(log, "same", "same")
    assert order(log) == ["a", "same", "b"]
    assert first.future.result() == [OK] * 3
    assert second.future.result() == [OK] * 2
    assert second.shared == 2


def test_what_is_known_is_not_asked_and_what_is_unknown_is_asked_again() -> None:
    log = Backlog(100, 1)
    ask(log, "a", "b")
    assert order(log) == ["a", "b"]
    assert ask(log, "b").future.result() == [OK]
    assert log.waiting == 0
    ask(log, "a")  # the less recently used of one too many
    job = log.take()
    assert job
    log.finish(job, LATE)
    again = ask(log, "a")
    assert log.waiting == 1
    assert not again.future.done()


def test_what_is_put_back_comes_last_of_its_callers() -> None:
    """Once, though it stands in the lines of two; and of a caller that has gone, not at all."""
    log = Backlog(100, 0)
    first, _ = ask(log, "a", "b", "gone", "c"), ask(log, "x", "a", "y")
    job = log.take()
    assert job
    log.put_back(job)
    assert order(log) == ["x", "b", "a", "gone", "y", "c"]
    assert first.future.result() == [OK] * 4
    log = Backlog(100, 0)
    only = ask(log, "a")
    job = log.take()
    assert job
    log.drop(only)
    log.put_back(job)
    assert order(log) == []
    assert (log.waiting, log._bytes) == (0, 0)


def test_what_a_caller_gives_up_is_not_taken_unless_another_wants_it() -> None:
    log = Backlog(100, 0)
    gone, stays = ask(log, "taken", "a", "same", "b"), ask(log, "same", "c")
    taken = log.take()
    assert taken
    assert not log.abandon(taken)
    log.drop(gone)
    assert log.abandon(taken)
    assert order(log) == ["same", "c"]
    assert stays.future.result() == [OK] * 2
    assert log.waiting == 0


def test_a_full_backlog_makes_callers_wait_and_goes_on() -> None:
    log = Backlog(4, 0)
    ask(log, "a", "b", "c", "d")
    thread = blocked(log, *(str(n) for n in range(20)))
    most = 0
    while job := log.take():
        most = max(most, len(log._asked))
        log.finish(job, OK)
        time.sleep(0.002)  # the caller fills what becomes free
    thread.join(30)
    assert not thread.is_alive()
    assert most == 4
    assert order(log) == []


def test_room_is_counted_in_bytes_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """What alone is too large goes alone."""
    monkeypatch.setattr(backlog, "MAX_BYTES", 100)
    log = Backlog(1000, 0)
    ask(log, "a", "b", size=50)
    thread = blocked(log, "large", size=1000)
    assert order(log)[:2] == ["a", "b"]
    thread.join(30)
    assert order(log) in (["large"], [])
    assert log._bytes == 0


def test_closing_and_going_away_end_the_waiting() -> None:
    log = Backlog(1, 0)
    held = ask(log, "a")
    waits = Batch(1, SILENT)
    waits.future.add_done_callback(lambda _: log.drop(waits))
    thread = threading.Thread(target=log.ask, args=(waits, 0, b"b", b""))
    thread.start()
    waits.future.cancel()
    thread.join(30)
    assert not thread.is_alive()
    problems: list[Exception] = []

    def careful() -> None:
        try:
            ask(log, "c")
        except ValueError as problem:
            problems.append(problem)

    thread = threading.Thread(target=careful)
    thread.start()
    log.close(ValueError("closed"))
    thread.join(30)
    assert str(problems) == "[ValueError('closed')]"
    with pytest.raises(ValueError, match="closed"):
        held.future.result()
