"""The processes of the verifier pool: whatever is killed, the rest goes on and nothing is left."""

from __future__ import annotations

import json
import os
import resource
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError
from pathlib import Path

import psutil
import pytest

from launch import mistakes
from rewards.service.pool import VerifierPool
from tests.graders import BY_TEXT as SICK
from tests.graders import items
from tests.processes import alive, below, exists, until

ROOT = Path(__file__).parents[1]


def test_close_leaves_no_process_behind() -> None:
    pool = VerifierPool(SICK, workers=2, deadline=0.5)
    child = int(pool.grade(items("leave a child"))[0].answer or 0)
    stray = int(pool.grade(items("leave a stray"))[0].answer or 0)
    processes = [child, stray, *pool.pids()]
    assert len(processes) == 5
    assert all(alive(pid) for pid in processes)
    pool.close()
    pool.close()
    assert not any(exists(pid) for pid in processes)
    with pytest.raises(ValueError, match="closed"):
        pool.grade(items("a"))


def test_a_forgotten_pool_is_closed_by_the_garbage_collector() -> None:
    pool = VerifierPool(SICK, workers=1)
    pid = int(pool.grade(items("pid"))[0].answer or 0)
    del pool
    assert until(lambda: not alive(pid))


def test_an_interrupted_call_does_not_poison_the_next() -> None:
    with VerifierPool(SICK, workers=2, deadline=20.0) as pool:
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            pool.grade(items("after 5 yes", "after 5 no"))
        assert [v.answer for v in pool.grade(items("a yes", "b no"))] == ["a yes", "b no"]


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
    with pytest.raises(ValueError, match=r"does not start.*no licence") as caught:
        VerifierPool("fussy:fn", workers=2)
    assert mistakes.told(caught.value)  # the command line tells it in one line


def resident(pids: Sequence[int]) -> int:
    """Bytes of memory that these processes and nobody else hold."""
    return sum(psutil.Process(pid).memory_full_info().uss for pid in pids)


@pytest.mark.slow
def test_memory_does_not_grow_over_a_hundred_thousand_items() -> None:
    """Neither here nor in the workers: after the first tenth it stays what it is."""
    with VerifierPool(SICK, workers=2, cache=1000) as pool:
        sizes = []
        for start in range(0, 100_000, 10_000):
            texts = (f"{'x' * 1000} {n} yes" for n in range(start, start + 10_000))
            assert all(v.correct for v in pool.grade(items(*texts)))
            sizes.append(resident([os.getpid(), *pool.pids()]))
    assert max(sizes[1:]) < sizes[0] + (16 << 20)


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


def test_a_signal_does_not_cut_the_ending_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner's sockets close before the kernel says that it is dead: the template is at it."""
    (tmp_path / "late.py").write_text(
        "import os, signal\nfrom rewards.service.template import Nursery\n"
        "from tests.graders import by_text as fn\n"
        "def end(self, end=Nursery.end):\n    os.kill(os.getpid(), signal.SIGTERM)\n    end(self)\n"
        "Nursery.end = end\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with VerifierPool("late:fn", workers=1) as pool:
        stray = int(pool.grade(items("leave a stray"))[0].answer or 0)
    assert not alive(stray)


def test_what_an_item_leaves_behind_ends_with_its_worker() -> None:
    """Children in its group and daemons in a session of their own."""
    with VerifierPool(SICK, workers=1, deadline=1.0) as pool:
        left = [
            int(pool.grade(items(f"leave a {what}"))[0].answer or 0) for what in ("child", "stray")
        ]
        assert all(alive(pid) for pid in left)
        assert pool.grade(items("die"))[0].status == "error"
        assert until(lambda: not any(exists(pid) for pid in left))
        verdict = pool.grade(items("hang with a stray"))[0]
        assert verdict.status == "timeout"
        assert until(lambda: len(below(pool.pids())) == 2)


def test_a_program_in_a_sandbox_ends_with_its_worker() -> None:
    """Its processes are in sessions and namespaces of their own."""
    gold = json.dumps({"inputs": ["1"], "outputs": ["1"]})
    programs = [f"```python\n{line}\n```" for line in ("while True: pass", "print(input())")]
    try:
        pool = VerifierPool("code", workers=1, deadline=1.0)
    except ValueError as problem:
        pytest.skip(str(problem))
    with pool:
        running = pool.submit([(programs[0], gold, {})])
        assert until(lambda: len(below(pool.pids())) > 3)
        inside = set(below(pool.pids())) - set(pool.pids())
        assert running.result()[0].status == "timeout"
        assert until(lambda: not any(exists(pid) for pid in inside - set(pool.pids())))
        assert pool.grade([(programs[1], gold, {})])[0].correct


def test_a_fork_of_the_owner_is_refused_and_harmless() -> None:
    with VerifierPool(SICK, workers=1) as pool:
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                try:
                    pool.grade(items("a yes"))
                except ValueError as problem:
                    os.write(write, str(problem).encode())
                pool.close()
            finally:
                os._exit(0)
        os.close(write)
        os.waitpid(pid, 0)
        assert b"made in another process" in os.read(read, 1 << 12)
        os.close(read)
        assert pool.grade(items("a yes"))[0].correct


def test_closing_tells_those_who_wait() -> None:
    pool = VerifierPool(SICK, workers=1, deadline=60.0, pending=2)
    problems: list[BaseException] = []

    def ask(n: int) -> None:
        try:
            pool.grade(items(*(f"after 50 {n} {i}" for i in range(3))))
        except (ValueError, CancelledError) as problem:
            problems.append(problem)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    pool.close()
    for thread in threads:
        thread.join(30)
    assert ["closed" in str(problem) for problem in problems] == [True] * 4


def test_a_verifier_with_threads_is_not_forked(tmp_path: Path, monkeypatch) -> None:
    """Its lock is held by a thread that a fork would not have: workers import it themselves."""
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nlock = threading.Lock()\n"
        "def hold():\n    while True:\n        with lock: time.sleep(0.05)\n        "
        "time.sleep(0.001)\n"
        "threading.Thread(target=hold, daemon=True).start()\ntime.sleep(0.01)\n"
        "def fn(text, gold, meta):\n    with lock: return True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with VerifierPool("threaded:fn", workers=2, deadline=20.0) as pool:
        verdicts = pool.grade(items(*map(str, range(6))))
        pids = pool.pids()
    assert [v.status for v in verdicts] == ["ok"] * 6
    assert not any(exists(pid) for pid in pids)


def test_a_process_with_many_open_files() -> None:
    """As a trainer with data loaders is: numbers of files beyond what select(2) takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip(f"at most {hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with VerifierPool(SICK, workers=1) as pool:
            assert [v.status for v in pool.grade(items("a yes", "b no"))] == ["ok", "wrong"]
    finally:
        for file in held:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_want_of_files_passes() -> None:
    """A worker died while no file could be opened: another starts as soon as one can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with VerifierPool(SICK, workers=1) as pool:
        held = [os.open(os.devnull, os.O_RDONLY)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (held[0] + 1, hard))
        try:
            asked = pool.submit(items("die", "a yes"))
            time.sleep(0.3)
            assert not asked.done()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            os.close(held[0])
        assert [v.status for v in asked.result()] == ["error", "ok"]


def test_want_of_processes_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warm process cannot fork for a while; what waits is not given up."""
    (tmp_path / "forkless.py").write_text(
        "import errno, os, time\nreal, forks = os.fork, []\n"
        "def fork():\n"
        "    forks.append(time.monotonic())\n"
        "    if len(forks) > 1 and forks[-1] < forks[1] + 0.5:\n"
        "        raise BlockingIOError(errno.EAGAIN, 'none left')\n"
        "    return real()\n"
        "os.fork = fork\n"
        "def fn(text, gold, meta):\n    return text != 'die' or os._exit(0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(os, "fork", os.fork)  # this process imports it, too
    with VerifierPool("forkless:fn", workers=1) as pool:
        assert [v.status for v in pool.grade(items("die", "a", "b"))] == ["error", "ok", "ok"]


def test_an_item_that_does_not_fit_into_memory() -> None:
    with VerifierPool(SICK, workers=1, memory_mb=64) as pool:
        large, small = pool.grade(items(f"{'x' * 60_000_000} yes", "a yes"))
    assert small.correct
    assert (large.status, "memory limit" in large.detail) == ("error", True)
