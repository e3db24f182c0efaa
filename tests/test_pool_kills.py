"""Kills in the verifier pool: the verdicts are those of a pool that nobody disturbs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from rewards.grader import Item, Spec
from rewards.service.crew import MAX_TRIES
from rewards.service.pool import VerifierPool
from rewards.verdict import Verdict
from tests.graders import BY_TEXT as SICK
from tests.graders import items
from tests.processes import alive, below, until
from tests.sandboxed import SQUARES, WALLED, fenced

ROOT = Path(__file__).parents[1]
CALLERS = 4


@pytest.fixture
def dying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A verifier: 'N name ANSWER' kills its worker N times and is then graded; tries are noted."""
    (tmp_path / "dying.py").write_text(
        "import os, pathlib, signal, time\n"
        f"NOTES = pathlib.Path({str(tmp_path)!r})\n"
        "def fn(text, gold, meta):\n"
        "    times, name, answer = text.split()\n"
        "    with open(NOTES / f'{name}.tries', 'a') as file: file.write('x')\n"
        "    if (NOTES / f'{name}.tries').stat().st_size <= int(times):\n"
        "        time.sleep(float(meta.get('after', 0)))\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return answer == gold\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "dying:fn"


def tries(folder: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_size for path in folder.glob("*.tries")}


def asked(pool: VerifierPool, wanted: Sequence[Item]) -> list[Verdict]:
    """Verdicts of `wanted`, asked for by several threads, a few at a time each."""
    with ThreadPoolExecutor(CALLERS) as callers:
        parts = callers.map(pool.grade, [wanted[i : i + 5] for i in range(0, len(wanted), 5)])
        return [verdict for part in parts for verdict in part]


def test_items_whose_workers_die_get_the_verdicts_of_an_undisturbed_pool(
    dying: str, tmp_path: Path
) -> None:
    """200 items, most of which lose one or two workers; each is tried once more than that, and once
    more again where nobody dies."""
    draw = random.Random(9)
    deaths = [draw.randrange(MAX_TRIES) for _ in range(200)]
    wanted: list[Item] = [
        (f"{n} item{i} {draw.choice(('yes', 'no'))}", "yes", {"after": draw.random() / 100})
        for i, n in enumerate(deaths)
    ]
    with VerifierPool(dying, workers=3, deadline=60.0) as pool:
        verdicts, stats = asked(pool, wanted), pool.stats()
    with VerifierPool(dying, workers=3, deadline=60.0) as undisturbed:  # all have died by now
        assert undisturbed.grade(wanted) == verdicts
        assert undisturbed.stats()["crashed"] == 0
    assert {v.status for v in verdicts} == {"ok", "wrong"}
    assert tries(tmp_path) == {f"item{i}": n + 2 for i, n in enumerate(deaths)}
    assert stats["crashed"] == stats["retried"] == sum(deaths)


def test_an_item_that_always_kills_its_worker_is_an_error_and_starves_nobody(
    dying: str, tmp_path: Path
) -> None:
    """It is tried exactly so often, each time after what waits for its first try."""
    with VerifierPool(dying, workers=1, deadline=60.0) as pool:
        sick = [(f"99 sick{i} yes", "yes", {}) for i in range(3)]
        well = [(f"0 well{i} yes", "yes", {}) for i in range(10)]
        verdicts = pool.grade([*sick, *well])
        stats = pool.stats()
    assert [v.status for v in verdicts] == ["error"] * 3 + ["ok"] * 10
    assert f"{MAX_TRIES} times its process ended under it" in verdicts[0].detail
    assert "SIGKILL" in verdicts[0].detail
    found = tries(tmp_path)
    assert {found[f"sick{i}"] for i in range(3)} == {MAX_TRIES}
    assert {found[f"well{i}"] for i in range(10)} == {1}
    assert (stats["crashed"], stats["retried"]) == (3 * MAX_TRIES, 3 * (MAX_TRIES - 1))


def test_an_idle_worker_that_died_is_replaced_without_blame() -> None:
    with VerifierPool(SICK, workers=1) as pool:
        pid = int(pool.grade(items("pid"))[0].answer or 0)
        os.kill(pid, signal.SIGKILL)
        assert until(lambda: not alive(pid))
        assert pool.grade(items("a yes"))[0].status == "ok"


PARENT = """
import json, os, sys, time
from rewards.service.pool import VerifierPool
pool = VerifierPool("tests.graders:by_text", workers=2, deadline=60.0)
children = [pool.grade([(f"leave a {what}", "yes", {})])[0].answer for what in ("child", "stray")]
if "fork" in sys.argv and not os.fork():
    time.sleep(60)  # holds a copy of every socket
print(json.dumps([*map(int, children), *pool.pids()]), flush=True)
texts = [text for text in sys.argv[1:] if text != "fork"]
pool.grade([(text, "yes", {}) for text in texts])
time.sleep(60)
"""


@pytest.mark.parametrize("texts", [(), ("fork",), ("hang", "hang in C"), ("fork", "hang")])
def test_nothing_outlives_a_killed_owner(texts: tuple[str, ...]) -> None:
    """Idle, in the middle of an item, and where a fork of the owner keeps its sockets open."""
    owner = subprocess.Popen(
        [sys.executable, "-c", PARENT, *texts],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
    )
    assert owner.stdout
    pids = json.loads(owner.stdout.readline())
    assert len(pids) >= 5
    time.sleep(0.3)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    try:
        assert until(lambda: not any(alive(pid) for pid in pids))
    finally:
        os.killpg(owner.pid, signal.SIGKILL) if "fork" in texts else None


def test_an_item_whose_worker_is_killed_each_time_is_an_error_and_the_others_are_well() -> None:
    with VerifierPool(SICK, workers=2, deadline=60.0) as pool:
        busy = pool.submit(items("after 30 yes"))
        done = 0
        while not busy.done() and done < 200:  # the busy one is among them sooner or later
            for pid in pool.pids()[1:]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert [v.status for v in pool.grade(items(f"{done} yes", f"{done} no"))] == [
                "ok", "wrong"
            ]  # fmt: skip
            done += 1
        assert busy.result()[0].status == "error"
        assert f"{MAX_TRIES} times" in busy.result()[0].detail
        assert pool.stats()["retried"] >= MAX_TRIES - 1


def test_a_killed_template_is_replaced_and_what_was_under_way_is_asked_again(
    dying: str, tmp_path: Path
) -> None:
    stays = {"after": 1e6}  # the first time
    with VerifierPool(dying, workers=2, deadline=60.0) as pool:
        before = pool.pids()
        under_way = pool.submit(
            [("1 a yes", "yes", stays), ("1 b no", "yes", stays), ("0 c yes", "yes", {})]
        )
        assert until(lambda: tries(tmp_path) == {"a": 1, "b": 1})
        os.kill(before[0], signal.SIGKILL)
        assert [v.status for v in under_way.result()] == ["ok", "wrong", "ok"]
        assert tries(tmp_path) == {"a": 2, "b": 2, "c": 1}
        assert not set(before) & set(pool.pids())
        assert not any(alive(pid) for pid in before)
        assert pool.stats()["retried"] == 2
        os.kill(pool.pids()[0], signal.SIGKILL)  # while nothing is asked
        again = pool.grade([("0 d yes", "yes", {}), ("0 e no", "yes", {})])
        assert [v.status for v in again] == ["ok", "wrong"]
        assert pool.stats()["crashed"] == 0  # these may have been asked before it was noticed


def test_an_item_that_kills_the_template_is_given_up() -> None:
    with VerifierPool(SICK, workers=1, deadline=60.0) as pool:
        verdict = pool.grade(items("kill the template"))[0]
        assert verdict.status == "error"
        assert "3 times" in verdict.detail
        assert pool.grade(items("a yes"))[0].correct


def test_no_process_is_left_after_many_deaths() -> None:
    """Neither running nor dead and not reaped; here or below the template."""
    mine = {child.pid for child in psutil.Process().children()}
    with VerifierPool(SICK, workers=2, deadline=0.2) as pool:
        pool.grade(items(*(f"{what} {i}" for i in range(6) for what in ("die", "crash", "hang"))))
        assert pool.grade(items("a yes"))[0].correct
        assert until(lambda: len(pids := pool.pids()) == 3 and below(pids) == sorted(pids))
        files = len(os.listdir("/proc/self/fd"))
        pool.grade(items(*(f"die {i}" for i in range(20))))
        assert until(lambda: len(pool.pids()) == 3)
        assert len(os.listdir("/proc/self/fd")) <= files
    assert {child.pid for child in psutil.Process().children()} <= mine


@pytest.mark.slow
def test_neither_files_nor_processes_grow_over_fifty_kills() -> None:
    """Of workers in the middle of an item; twice of the template."""
    mine = {child.pid for child in psutil.Process().children()}
    with VerifierPool(SICK, workers=2, deadline=60.0) as pool:
        counts = []
        for n in range(50):
            under_way = pool.submit(items(f"after 0.02 {n} yes"))
            assert until(lambda: len(pool.pids()) >= 2)
            os.kill(pool.pids()[0 if n in (5, 30) else 1], signal.SIGKILL)
            assert under_way.result()[0].status == "ok"
            assert until(lambda: below(pool.pids()) == sorted(pool.pids()))
            counts.append((len(os.listdir("/proc/self/fd")), len(below([os.getpid()]))))
    for kind in zip(*counts, strict=True):
        assert max(kind[10:]) <= max(kind[:10])
    assert {child.pid for child in psutil.Process().children()} <= mine


START = """
import os, pathlib, signal
deaths = pathlib.Path({folder!r}) / "deaths"
if os.getpid() != {owner}:
    with open(deaths, "a") as file: file.write("x")
    if deaths.stat().st_size <= {times}: os.kill(os.getpid(), signal.SIGKILL)
def fn(text, gold, meta): return text == gold
"""


@pytest.mark.slow
@pytest.mark.parametrize("times", [MAX_TRIES - 1, 99])
def test_a_pool_whose_start_is_cut_short_starts_again(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bounded number of times: it may be the verifier that cannot be imported."""
    source = START.format(folder=str(tmp_path), owner=os.getpid(), times=times)
    (tmp_path / f"start{times}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    if times > MAX_TRIES:
        with pytest.raises(ValueError, match=r"does not start: signal SIGKILL"):
            VerifierPool(f"start{times}:fn", workers=2)
        assert (tmp_path / "deaths").stat().st_size == MAX_TRIES
    else:
        with VerifierPool(f"start{times}:fn", workers=2) as pool:
            assert pool.grade(items("yes"))[0].correct


PROGRAMS = ("def solve(x): return x * x", "def solve(x): return x + x", "def solve(x: return x")
MIXED: dict[str, tuple[Spec, list[Item]]] = {
    "by_text": (SICK, items(*(f"after 0.01 {i} {'yes' if i % 3 else 'no'}" for i in range(160)))),
    "math": (
        "math",
        [(rf"\boxed{{\sqrt{{{n}}}+{n % 2}}}", rf"\sqrt{{{n}}}", {}) for n in range(2, 162)],
    ),
    "code": (
        {"name": "code", "seconds": 2.0},
        [(fenced(f"{source}  # {i}"), SQUARES, {}) for i in range(16) for source in PROGRAMS],
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [pytest.param("code", marks=WALLED), "by_text", "math"])
def test_kills_at_random_moments_change_no_verdict(name: str) -> None:
    """Two in each round, of any process of the pool: so no item can lose all its tries."""
    spec, wanted = MIXED[name]
    with VerifierPool(spec, workers=3, cache=0) as pool:
        undisturbed = asked(pool, wanted)
    assert all(verdict.known for verdict in undisturbed)
    assert len({verdict.status for verdict in undisturbed}) >= 2
    draw, size = random.Random(9), len(wanted) // 8
    with VerifierPool(spec, workers=3, cache=0) as pool, ThreadPoolExecutor(1) as ahead:
        began = time.monotonic()
        asked(pool, wanted[:size])
        round_seconds = time.monotonic() - began
        verdicts: list[Verdict] = []
        doomed: list[int] = []
        kills = 0
        for start in range(0, len(wanted), size):
            part = ahead.submit(asked, pool, wanted[start : start + size])
            for _ in range(MAX_TRIES - 1):
                time.sleep(draw.uniform(0, round_seconds / 2))
                with contextlib.suppress(ProcessLookupError, IndexError):  # none: all is graded
                    victim = draw.choice(below(pool.pids()))
                    doomed.extend(below([victim]))
                    os.kill(victim, signal.SIGKILL)
                    kills += 1
            verdicts += part.result()
            # or the next round's items would meet three kills
            assert until(lambda: not any(alive(pid) for pid in doomed))
    assert [pair for pair in zip(verdicts, undisturbed, strict=True) if pair[0] != pair[1]] == []
    assert kills > len(wanted) // size


@WALLED
@pytest.mark.slow
def test_a_program_in_the_sandbox_does_not_outlive_a_killed_owner() -> None:
    """Whether the owner alone is killed, or the template and the worker in the same moment."""
    sleeper = fenced("import time\ndef solve(x): time.sleep(1e6)")
    source = (
        "from rewards.service.pool import VerifierPool\n"
        "pool = VerifierPool({'name': 'code', 'seconds': 9e3, 'total': 1e4}, workers=1)\n"
        f"pool.grade([({sleeper!r}, {SQUARES!r}, {{}})])"
    )
    for count in (1, 3):
        owner = subprocess.Popen([sys.executable, "-c", source], cwd=ROOT)
        # the owner, template, worker, launcher, guest, process 1 and the program
        assert until(lambda pid=owner.pid: len(chain := below([pid])) == 7 and chain)
        processes = below([owner.pid])
        line = [owner.pid]
        while children := psutil.Process(line[-1]).children():
            line.append(children[0].pid)
        for pid in line[:count]:
            with contextlib.suppress(ProcessLookupError):  # it has gone with the one before
                os.kill(pid, signal.SIGKILL)
        owner.wait()
        assert until(lambda left=processes: not any(alive(pid) for pid in left))
