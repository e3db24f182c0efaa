"""The verifier pool: what hangs, dies or lies costs its own item and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rewards.pool import VerifierPool
from rewards.verdict import Verdict
from rewards.worker import verdict_of

SICK = "tests.graders:by_text"
ROOT = Path(__file__).parents[1]


def items(*texts: str | None, gold: str = "yes") -> list:
    return [(text, gold, {}) for text in texts]


def until(true: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Wait for what must happen; how long it takes is not what is tested."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


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
    assert stats["crashed"] == 2  # equal items are asked once
    assert stats["verdicts/error"] == 3
    assert stats["verdicts/timeout"] == 1
    assert 0 < stats["latency_p50"] <= stats["latency_p99"] <= stats["latency_max"]


def test_results_keep_the_order_of_items_not_of_completion(sick: VerifierPool) -> None:
    batch = ["after 0.3 yes", *(f"after 0 {i}" for i in range(20)), "after 0.1 no"]
    assert [v.answer for v in sick.grade(items(*batch))] == batch


def test_no_answer_is_not_asked(sick: VerifierPool) -> None:
    asked = len(sick._seconds)
    verdicts = sick.grade(items(None, None))
    assert [v.status for v in verdicts] == ["no_answer"] * 2
    assert verdicts[0].known
    assert verdicts[0].score == 0.0
    assert len(sick._seconds) == asked
    assert sick.grade([]) == []


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
        assert pool.stats()["cached"] == 2
        pool.grade([c])  # b has not been used for longest: it goes
        assert [v.answer for v in pool.grade([a])] == ["1"]
        assert [v.answer for v in pool.grade([b])] == ["4"]
        assert pool.grade([("a", "another gold", {})])[0].answer == "5"
        assert pool.grade([("a", "yes", {"level": 1})])[0].answer == "6"
    with VerifierPool(SICK, workers=1, deadline=0.3) as pool:
        for _ in range(2):
            assert pool.grade(items("hang"))[0].status == "timeout"
        assert pool.stats()["killed"] == 2


def test_close_leaves_no_process_behind() -> None:
    pool = VerifierPool(SICK, workers=2, deadline=0.5)
    child = int(pool.grade(items("leave a child"))[0].answer or 0)
    workers = {int(pool.grade(items("pid"))[0].answer or 0)}
    workers |= {w.process.pid for w in pool._crew._workers}  # type: ignore[union-attr]
    assert alive(child)
    assert all(alive(pid) for pid in workers)
    pool.close()
    pool.close()
    assert until(lambda: not any(alive(pid) for pid in (child, *workers)))
    with pytest.raises(ValueError, match="closed"):
        pool.grade(items("a"))


def test_a_forgotten_pool_is_closed_by_the_garbage_collector() -> None:
    pool = VerifierPool(SICK, workers=1)
    pid = int(pool.grade(items("pid"))[0].answer or 0)
    del pool
    assert until(lambda: not alive(pid))


PARENT = """
import sys
from rewards.pool import VerifierPool
pool = VerifierPool("tests.graders:by_text", workers=2, deadline=1.0)
print([w.process.pid for w in pool._crew._workers], flush=True)
pool.grade([(text, "yes", {}) for text in sys.argv[1:]])
"""


@pytest.mark.parametrize("texts", [(), ("after 3 yes",), ("hang", "hang in C")])
def test_workers_do_not_outlive_a_killed_parent(texts: tuple[str, ...]) -> None:
    """Also while an item hangs: the kernel's timer ends what no parent is left to kill."""
    script = PARENT + ("" if texts else "import time; time.sleep(60)")
    parent = subprocess.Popen(
        [sys.executable, "-c", script, *texts], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert parent.stdout
    pids = json.loads(parent.stdout.readline())
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert until(lambda: not any(alive(pid) for pid in pids))


def test_an_interrupted_call_does_not_poison_the_next() -> None:
    with VerifierPool(SICK, workers=2, deadline=20.0) as pool:
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            pool.grade(items("after 5 yes", "after 5 no"))
        assert [v.answer for v in pool.grade(items("a yes", "b no"))] == ["a yes", "b no"]


def test_an_idle_worker_that_died_is_replaced_without_blame() -> None:
    with VerifierPool(SICK, workers=1) as pool:
        pid = int(pool.grade(items("pid"))[0].answer or 0)
        os.kill(pid, signal.SIGKILL)
        assert until(lambda: not alive(pid))
        assert pool.grade(items("a yes"))[0].status == "ok"


def test_threads_and_event_loops_may_share_a_pool() -> None:
    with VerifierPool(SICK, workers=2) as pool:
        seen: dict[int, list[Verdict]] = {}

        def ask(n: int) -> None:
            seen[n] = pool.grade(items(*(f"{n} {i}" for i in range(25))))

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for n in range(4):
            assert [v.answer for v in seen[n]] == [f"{n} {i}" for i in range(25)]

        async def many() -> list[list[Verdict]]:
            calls = [asyncio.to_thread(pool.grade, items(f"async {n} yes")) for n in range(5)]
            return await asyncio.gather(*calls)

        assert [v[0].answer for v in asyncio.run(many())] == [f"async {n} yes" for n in range(5)]


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


def test_a_verifier_that_starts_here_and_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its import fails in the worker: the pool says so at once instead of trying for ever."""
    (tmp_path / "fussy.py").write_text(
        "import os\nif os.getppid() == int(os.environ['FUSSY']): raise OSError('no licence')\n"
        "def fn(text, gold, meta): return True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FUSSY", str(os.getpid()))
    with pytest.raises(ValueError, match=r"does not start.*no licence"):
        VerifierPool("fussy:fn", workers=2)


@pytest.mark.timeout(120)
def test_inside_a_ray_actor() -> None:
    """Where the parent has threads and torch loaded."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    try:

        @ray.remote(num_cpus=1)
        class Actor:
            def grade(self) -> list[str]:
                import torch

                torch.ones(64, 64) @ torch.ones(64, 64)
                with VerifierPool(SICK, workers=2, deadline=0.5) as pool:
                    return [v.status for v in pool.grade(items("hang", "a yes", "die"))]

        assert ray.get(Actor.remote().grade.remote(), timeout=90) == ["timeout", "ok", "error"]
    finally:
        ray.shutdown()
