"""Kills in the sandbox: the verdict of a program stays what it is, and nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from rewards.sandbox import host, scratch
from rewards.sandbox.host import Guest, Limits
from rewards.service.pool import VerifierPool
from tests.processes import alive, until
from tests.sandboxed import SQUARES, WALLED, below, fenced, graded, guests

pytestmark = WALLED
ROOT = Path(__file__).resolve().parent.parent
CHAIN = ("launcher", "guest", "process 1", "child")
SLEEPER = "import time\ndef solve(x):\n    time.sleep({})\n    return x * x"


def chain() -> list[psutil.Process]:
    """The processes of a program that runs, from the launcher on; fewer where none does."""
    found = [psutil.Process(host.launcher().process.pid)]
    while below_it := found[-1].children():
        found += below_it
    return found


class Killer:
    """Kills one process of the chain each time that a program runs, `times` times."""

    def __init__(self, which: str, times: int, after: float = 0.05) -> None:
        self.kills, self.which, self.times = 0, CHAIN.index(which), times
        self.after = after
        self.ending = False
        self.thread = threading.Thread(target=self.work)
        self.thread.start()

    def work(self) -> None:
        seen: set[int] = set()
        while self.kills < self.times and not self.ending:
            try:
                found = chain()
                if len(found) == len(CHAIN) and found[-1].pid not in seen:
                    seen.add(found[-1].pid)
                    time.sleep(self.after)  # it is well under way
                    found[self.which].kill()
                    self.kills += 1
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.005)

    def close(self) -> int:
        self.ending = True
        self.thread.join()
        return self.kills


@pytest.mark.parametrize("which", [CHAIN[0], CHAIN[-1]])
def test_a_program_that_is_killed_is_run_again(which: str) -> None:
    """Whichever of its processes it is: the verdict is that of the undisturbed program."""
    graded("def solve(x): return x")  # the launcher stands
    gold = json.dumps({"inputs": [[3]], "outputs": [9], "fn_name": "solve"})
    for seconds in (0.3, 3.0):  # where it was over before it was found
        killer = Killer(which, times=1)
        verdict = graded(SLEEPER.format(seconds), gold, seconds=60)
        if killer.close():
            break
    assert killer.kills == 1
    assert verdict == graded(SLEEPER.format(0.0), gold, seconds=60)
    assert verdict.correct


@pytest.mark.parametrize("which", CHAIN)
def test_what_is_killed_each_time_is_tried_so_often_and_no_oftener(which: str) -> None:
    """A program may kill itself, and that is wrong; the others it cannot reach."""
    graded("def solve(x): return x")
    killer = Killer(which, times=host.TRIES + 1)
    verdict = graded(SLEEPER.format(1e6), seconds=20)
    status = "wrong" if which == "child" else "error"
    assert killer.close() == host.TRIES
    assert verdict.status == status
    assert ("gone" if status == "error" else "status -9") in verdict.detail
    assert graded("def solve(x): return x * x").status == "ok"


def test_a_test_that_kills_itself_is_run_so_often_among_all_tests_together() -> None:
    """The tests after it are run once, with what it left of the tries: none."""
    source = "import os\ndef f(x): os.kill(os.getpid(), 9)"
    with Guest(source, Limits()) as guest:
        first, second = (guest.call("f", (1,), {}, 5.0) for _ in range(2))
    assert (first.end, first.code, second.end, second.code) == ("signal", -9, "signal", -9)
    assert first.lost > 0
    assert second.lost < 1e-3


@pytest.mark.slow
def test_time_that_a_kill_took_is_given_back() -> None:
    """Killed twice in its first test, the program still has all of `total` for both."""
    graded("def solve(x): return x")
    killer = Killer("child", times=2, after=1.9)
    assert graded(SLEEPER.format(2.0), total=6.8, seconds=6.0).status == "ok"
    assert killer.close()


def test_the_guest_ends_with_its_owner() -> None:
    """Also when the owner is killed, with a program that waits in the middle of a test."""
    owner, started = waiting(Limits())
    owner.kill()
    owner.wait()
    assert until(lambda: not any(alive(pid) for pid in started))


def waiting(limits: Limits, folder: str = "") -> tuple[subprocess.Popen[bytes], list[int]]:
    """A process in the middle of a test, and those that it has started."""
    source = "import time\ndef f(): time.sleep(1e6)"
    owner = subprocess.Popen(
        [sys.executable, "-c", "from rewards.sandbox.host import *; "
         f"Guest({source!r}, {limits!r}).call('f', (), {{}}, 1e5)"],
        cwd=ROOT, env={**os.environ, **({"TMPDIR": folder} if folder else {})},
    )  # fmt: skip
    tree = psutil.Process(owner.pid)
    count = len(CHAIN)
    assert until(lambda: len(tree.children(recursive=True)) == count)
    return owner, [process.pid for process in tree.children(recursive=True)]


def test_a_deadline_of_the_pool_ends_the_guest_too() -> None:
    spec = {"name": "code", "seconds": 1e4, "total": 1e5}
    sleeper = fenced(SLEEPER.format(1e6))
    with VerifierPool(spec, workers=1, deadline=1.5) as pool:
        before = below()
        assert [v.status for v in pool.grade([(sleeper, SQUARES, {})])] == ["timeout"]
        assert until(lambda: not guests() and len(below()) <= len(before))
        right = fenced("def solve(x): return x * x")
        assert [v.status for v in pool.grade([(right, SQUARES, {})])] == ["ok"]


def test_folders_of_the_dead_are_cleared_and_those_of_the_living_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without walls a program has a folder where everybody's are."""
    owner, started = waiting(Limits(walls=False), str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (left,) = tmp_path.iterdir()
    os.utime(left, (1, 1))
    scratch.clear()
    assert left.exists()  # its owner lives
    owner.kill()
    owner.wait()
    assert until(lambda: not any(alive(pid) for pid in started))
    mine, young = scratch.Scratch(), tmp_path / f"{scratch.PREFIX}young"
    young.mkdir()
    os.utime(mine.path, (1, 1))
    host.close()
    host.launcher()  # as whoever runs a program next
    assert sorted(tmp_path.iterdir()) == sorted([Path(mine.path), young])
    mine.remove()
    assert [*tmp_path.iterdir()] == [young]
