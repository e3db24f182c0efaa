"""The verifier pool: what hangs, dies or lies costs its own item and nothing else."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from rewards.grader import load
from rewards.service.pool import VerifierPool
from rewards.service.worker import frame, verdict_of
from rewards.verdict import Verdict
from tests.graders import BY_TEXT as SICK
from tests.graders import items


@pytest.fixture(scope="module")
def sick() -> Iterator[VerifierPool]:
    with VerifierPool(SICK, workers=2, deadline=1.0, memory_mb=512) as pool:
        yield pool


@pytest.mark.parametrize(
    ("text", "status", "detail"),
    [
        ("hang", "timeout", "no verdict after 1 s"),
        ("hang in C", "timeout", "no verdict"),
        ("raise", "error", "RuntimeError: no judge today"),
        ("exit", "error", "SystemExit"),
        ("die", "error", "exit status 0"),
        ("crash", "error", "SIGSEGV"),
        ("fill memory", "error", "memory limit"),
        ("nan", "error", "could not judge"),
        ("none", "error", "could not judge"),
        ("two", "error", "outside [0, 1]"),
    ],
)
def test_trouble_is_unknown_and_costs_only_its_own_item(
    sick: VerifierPool, text: str, status: str, detail: str
) -> None:
    """The item is unknown, never a silent 0; every other item of the batch is graded, in order."""
    batch = [f"{i} yes" if i % 3 else f"{i} no" for i in range(30)]
    batch.insert(7, text)
    verdicts = sick.grade(items(*batch))
    bad = verdicts.pop(7)
    assert (bad.status, bad.known, bad.correct) == (status, False, False)
    assert detail in bad.detail
    assert [v.answer for v in verdicts] == batch[:7] + batch[8:]
    assert [v.correct for v in verdicts] == [bool(i % 3) for i in range(30)]
    assert all(v.known for v in verdicts)


def test_one_worker_survives_a_row_of_sick_items() -> None:
    with VerifierPool(SICK, workers=1, deadline=0.5) as pool:
        verdicts = pool.grade(items("die", "hang", "crash", "a yes", "die", "b no"))
        stats = pool.stats()
    assert [v.status for v in verdicts] == ["error", "timeout", "error", "ok", "error", "wrong"]
    assert stats["killed"] == 1
    assert stats["crashed"] == 6  # equal items are asked once, of three workers
    assert stats["retried"] == 4
    assert stats["verdicts/error"] == 3
    assert stats["verdicts/timeout"] == 1
    assert 0 < stats["latency_p50"] <= stats["latency_p99"] <= stats["latency_max"]


def test_results_keep_the_order_of_items_not_of_completion(sick: VerifierPool) -> None:
    batch = ["after 0.3 yes", *(f"after 0 {i}" for i in range(20)), "after 0.1 no"]
    assert [v.answer for v in sick.grade(items(*batch))] == batch


def test_no_answer_is_not_asked(sick: VerifierPool) -> None:
    asked = sick.stats()
    verdicts = sick.grade(items(None, None))
    assert [v.status for v in verdicts] == ["no_answer"] * 2
    assert verdicts[0].known
    assert verdicts[0].score == 0.0
    assert sick.grade([]) == []
    asked["verdicts/no_answer"] = asked.get("verdicts/no_answer", 0.0) + 2
    assert sick.stats() == asked


def test_what_a_verifier_prints_is_not_a_verdict(sick: VerifierPool) -> None:
    assert sick.grade(items("print"))[0].status == "wrong"


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"nonsense",
        b"[]",
        b"1",
        b"{}",
        b'{"correct": true, "score": 1.0, "status": "fine"}',
        b'{"correct": "yes", "score": 1.0, "status": "ok"}',
        b'{"correct": true, "score": "1", "status": "ok"}',
    ],
)
def test_replies_are_not_believed_blindly(reply: bytes) -> None:
    assert verdict_of(reply) is None


def test_large_items_pass_bounded_pipes(sick: VerifierPool) -> None:
    big = "x" * 3_000_000
    verdicts = sick.grade(items(f"{big} yes", f"{big} no", "a yes"))
    assert [v.status for v in verdicts] == ["ok", "wrong", "ok"]


def test_equal_items_are_graded_once_and_unknown_ones_again() -> None:
    with VerifierPool("tests.graders:counting", workers=1, cache=2) as pool:
        a, b, c = items("a")[0], items("b")[0], items("c")[0]
        assert [v.answer for v in pool.grade([a, b, a, b])] == ["1", "2", "1", "2"]
        assert [v.answer for v in pool.grade([b, a])] == ["2", "1"]
        assert pool.stats()["cached"] == 4
        pool.grade([c])  # b has not been used for longest: it goes
        assert [v.answer for v in pool.grade([a])] == ["1"]
        assert [v.answer for v in pool.grade([b])] == ["4"]
        assert pool.grade([("a", "another gold", {})])[0].answer == "5"
        assert pool.grade([("a", "yes", {"level": 1})])[0].answer == "6"
    with VerifierPool(SICK, workers=1, deadline=0.3) as pool:
        for _ in range(2):
            assert pool.grade(items("hang"))[0].status == "timeout"
        assert pool.stats()["killed"] == 2


def test_two_hundred_threads_get_their_own_verdicts() -> None:
    """Also where they must wait for room: 8 items at once are under way."""
    with VerifierPool(SICK, workers=2, pending=8) as pool:
        seen: dict[int, list[Verdict]] = {}

        def ask(n: int) -> None:
            seen[n] = pool.grade(items(*(f"{n} {i}" for i in range(5)), "the same for all yes"))

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for n in range(200):
            assert [v.answer for v in seen[n]] == [
                *(f"{n} {i}" for i in range(5)),
                "the same for all yes",
            ]
        stats = pool.stats()
    assert stats["verdicts/ok"] == 200
    assert stats["verdicts/wrong"] == 1000
    assert "wait_p99" in stats


def test_five_hundred_coroutines_get_their_own_verdicts() -> None:
    with VerifierPool(SICK, workers=2, pending=16) as pool:

        async def many() -> list[list[Verdict]]:
            return await asyncio.gather(*(pool.agrade(items(f"{n} yes")) for n in range(500)))

        verdicts = asyncio.run(many())
    assert [v[0].answer for v in verdicts] == [f"{n} yes" for n in range(500)]


def test_a_cancelled_coroutine_gives_up_what_it_asked_for() -> None:
    with VerifierPool(SICK, workers=1, deadline=60.0) as pool:

        async def impatient() -> list[Verdict]:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pool.agrade(items("after 50 yes", "after 49 yes")), 0.3)
            return await pool.agrade(items("a yes"))

        assert asyncio.run(impatient())[0].correct
        assert pool.stats()["killed"] == 0


def test_a_future_tells_when_all_is_graded_and_may_be_cancelled() -> None:
    with VerifierPool(SICK, workers=1, deadline=60.0) as pool:
        long, short = pool.submit(items("after 50 yes")), pool.submit(items("a yes", None))
        assert long.cancel()
        assert [v.status for v in short.result()] == ["ok", "no_answer"]
        asked_inside: list[BaseException | None] = []
        done = threading.Event()

        def careless(_: object) -> None:
            try:
                pool.grade(items("b yes"))
            except ValueError as problem:
                asked_inside.append(problem)
            done.set()

        later = pool.submit(items("after 0.2 yes"))
        later.add_done_callback(careless)
        assert later.result()[0].correct
        assert done.wait(30)
        assert "callback" in str(asked_inside[0])


def test_a_short_call_is_not_stuck_behind_a_long_one() -> None:
    """Callers take turns: the second is served long before the first has all it asked for."""
    with VerifierPool(SICK, workers=1, deadline=60.0) as pool:
        long = pool.submit(items(*(f"after 0.02 {i}" for i in range(200))))
        assert pool.grade(items("a yes"))[0].correct
        assert not long.done()
        long.cancel()


def test_items_that_hang_do_not_stop_the_others() -> None:
    """One worker, two items that hang: both times another takes its place long before the kill."""
    with VerifierPool(SICK, workers=1, deadline=4.0) as pool:
        sick = pool.submit(items("hang", "hang in C"))
        assert all(v.known for v in pool.grade(items(*(f"{i} yes" for i in range(50)))))
        assert not sick.done()
        assert pool.stats()["slow"] >= 2
        assert [v.status for v in sick.result()] == ["timeout"] * 2
        assert len(pool.pids()) <= 1 + 3
        assert pool.stats()["killed"] == 2


def test_what_takes_microseconds_is_graded_in_the_calling_thread() -> None:
    """The process knows the fast answers; the slow ones come from workers, once."""
    with VerifierPool("tests.graders", workers=1) as pool:
        here, there, again = pool.grade([("fast", "", {}), ("slow", "", {}), ("slow", "", {})])
        assert here.answer == str(os.getpid())
        assert there.answer == again.answer == str(pool.pids()[1])
        assert pool.stats()["at_once"] == 1
        # what the verdict does not depend on is not asked again
        assert pool.grade([("slow # remark", "", {"prompt": "?"})]) == [there]
        assert pool.stats()["cached"] == 2
        assert pool.grade([("slow", "", {"level": 2})])[0].detail == "level 2"
        # a broken `relevant` or `fast` costs nothing but itself
        assert pool.grade([("confused", "", {})])[0].status == "ok"


def test_equal_items_give_equal_requests() -> None:
    """Whichever of their equal parts are the same object."""
    one, other = "".join(["ab", "c"]), "".join(["a", "bc"])
    assert frame((one, one, {"prompt": one})) == frame((one, other, {"prompt": "abc"}))
    assert frame((1, "a", {})) != frame(("1", "a", {}))
    loop: list = []
    loop.append(loop)
    assert frame(("a", "b", {"loop": loop}))


def test_verdicts_say_which_grader_with_which_settings() -> None:
    """Other settings give other verdicts: they are told apart where results are kept."""
    specs: list[Any] = ["math", {"name": "math", "percent": "ignore"}, {"name": "math", "bare": 0}]
    names = [load(spec).name for spec in specs]
    assert len(set(names)) == 3
    assert names[1] == f"{names[0]} percent=ignore"
    for text in (r"\boxed{5}", r"\boxed{\sqrt{8}}", "no answer at all to be seen"):
        assert [load(spec)(text, "5", {}).grader for spec in specs] == names
        assert {v.grader for s in specs[1:2] if (v := load(s).at_once(text, "5", {}))} <= {names[1]}
    assert load({"name": "code", "prelude": "x" * 99}).name != load({"name": "code"}).name
    assert load({"name": SICK, "correct_at": 0.5})("pid", "", {}).grader == f"{SICK} correct_at=0.5"


def test_what_cannot_be_sent_is_an_error_of_its_own_item() -> None:
    with VerifierPool(SICK, workers=1) as pool:
        verdicts = pool.grade([("a yes", "yes", {"lock": threading.Lock()}), *items("b yes")])
    assert [v.status for v in verdicts] == ["error", "ok"]
    assert "cannot be sent" in verdicts[0].detail


def test_a_pool_outlives_the_thread_that_made_it() -> None:
    made: list[VerifierPool] = []
    thread = threading.Thread(target=lambda: made.append(VerifierPool(SICK, workers=1)))
    thread.start()
    thread.join()
    assert made[0].grade(items("a yes"))[0].correct
    made[0].close()


def test_mathematics_off_the_main_thread() -> None:
    """math-verify's own timeouts raise there; ours need no signal in the parent."""
    out: list[Verdict] = []

    def ask() -> None:
        with VerifierPool("math", workers=1) as pool:
            out.extend(pool.grade([(r"\boxed{\sqrt{8}}", r"2\sqrt{2}", {})]))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert out[0].status == "ok"


def test_cheap_verifiers_may_run_in_the_calling_process() -> None:
    with VerifierPool("exact", workers=0) as pool:
        assert [
            v.status for v in pool.grade([("B", "B", {}), ("C", "B", {}), (None, "B", {})])
        ] == [
            "ok",
            "wrong",
            "no_answer",
        ]
        assert pool.stats()["verdicts/ok"] == 1
    assert VerifierPool("exact").stats() == {}  # by default no process for these
    with VerifierPool({"name": SICK, "quick": True}, workers=0) as pool:
        assert [v.status for v in pool.grade(items("raise", "a yes"))] == ["error", "ok"]
        assert int(
            VerifierPool({"name": SICK, "quick": True}).grade(items("pid"))[0].answer or 0
        ) == (os.getpid())


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        ("math", {"workers": 0}, r"workers=0.*may hang"),
        (SICK, {"workers": 0}, r"workers=0.*may hang"),
        ("maths", {}, "did you mean 'math'"),
        ("exact", {"deadline": 0.0}, "deadline=0.0"),
        ("exact", {"workers": -1}, "workers=-1"),
        ("no_such_package.grade:fn", {}, "PYTHONPATH"),
        ("tests.graders:nothing", {}, "cannot be imported"),
        ({"name": "exact", "colour": 1}, {}, "colour"),
    ],
)
def test_mistakes_are_named(spec: object, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VerifierPool(spec, **settings)  # type: ignore[arg-type]
