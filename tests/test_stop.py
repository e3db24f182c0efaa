"""What a run is asked by signals, and when; without a run."""

# ruff: noqa: PT012 - what happens between a signal and the end is the matter

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch.signals import Terminated, obeyed, shielded, stoppable
from tests.processes import alive, until
from trainer.faults import Stopped
from trainer.stop import Ended, Stop


def tell(number: int) -> None:
    os.kill(os.getpid(), number)


def test_what_is_given_up_is_told_again_until_it_ends() -> None:
    stop, told = Stop(), list[int]()
    with stop.losing(lambda: told.append(1)):
        stop.give_up()
    stop.give_up()
    assert told == [1], "it has ended"
    with pytest.raises(Stopped), stop.losing(lambda: None):
        stop.ask()
        stop.ask(soon=True)
        raise RuntimeError("rollouts were aborted")
    with pytest.raises(Stopped), stop.losing(lambda: told.append(2)):
        told.append(3)
    assert told == [1], "nothing is begun any more"


def test_only_what_was_asked_to_end_soon_is_given_up() -> None:
    stop = Stop()
    with stop.losing(lambda: None):
        stop.ask()
    with pytest.raises(RuntimeError, match="died"), stop.losing(lambda: None):
        raise RuntimeError("an engine died")
    cut_short = Stop()
    with pytest.raises(Stopped), cut_short.losing(lambda: None):
        cut_short.ask(soon=True)  # whatever it made may not be whole


def test_nothing_to_lose_is_left_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        before = signal.getsignal(number)
        with pytest.raises(SystemExit) as left, obeyed(tmp_path, 30):
            tell(number)
        assert left.value.code == 128 + number
        assert signal.getsignal(number) == before
        assert "interrupted; there is no checkpoint yet" in capfd.readouterr().err


def test_the_first_signal_is_heard_and_the_second_leaves(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left, obeyed(tmp_path, 30) as stop:
        stop.working = True
        tell(signal.SIGINT)
        assert (stop.asked, stop.soon) == (True, False)
        assert until(lambda: "finishing the step" in capfd.readouterr().err)
        tell(signal.SIGINT)
    assert left.value.code == 130
    with pytest.raises(SystemExit) as left, obeyed(tmp_path, 30) as stop:
        stop.working, told = True, list[int]()
        tell(signal.SIGINT)
        with pytest.raises(Stopped), stop.losing(lambda: told.append(1)):
            tell(signal.SIGTERM)
            tell(signal.SIGTERM)  # preemption may say so twice
            assert until(lambda: len(told) > 1)
        stop.end(12, tmp_path)
    assert left.value.code == 143
    assert "stopped at step 12 (checkpointed)" in capfd.readouterr().err


def test_grace_ends_whatever_is_under_way(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as left, obeyed(tmp_path, 0.1) as stop:
        stop.working = True
        tell(signal.SIGTERM)
        time.sleep(60)
    assert left.value.code == 143


def test_signals_are_not_ours_in_other_threads_and_under_nohup(tmp_path: Path) -> None:
    def run() -> None:
        with obeyed(tmp_path, 30) as stop:
            heard.append((stop.asked, signal.getsignal(signal.SIGTERM)))

    before, heard = signal.getsignal(signal.SIGTERM), list[object]()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert heard == [(False, before)]
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with obeyed(tmp_path, 30) as stop:
            tell(signal.SIGHUP)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, old)


def test_a_shield_keeps_signals_out_and_a_command_leaves_on_sigterm() -> None:
    with pytest.raises(Terminated) as left, stoppable():
        with shielded():
            for number in (signal.SIGINT, signal.SIGTERM):
                tell(number)
        tell(signal.SIGTERM)
    assert left.value.number == signal.SIGTERM


def test_who_has_no_patience_left_ends_everything(tmp_path: Path) -> None:
    """A third Ctrl-C, while what a run leaves behind hangs."""
    code = (
        "import os, signal, subprocess, sys, time; from pathlib import Path\n"
        "from launch.signals import obeyed\n"
        "with obeyed(Path('none'), 30) as stop:\n"
        "    child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True)\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    finally: os.kill(os.getpid(), signal.SIGINT); time.sleep(600)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert done.stderr == "laconic: interrupted; there is no checkpoint yet\n"
    assert until(lambda: not alive(int(done.stdout)))


def test_what_is_said_of_the_end() -> None:
    assert str(Ended(3, Path("x"))) == "stopped at step 3 (checkpointed)"
    assert str(Ended(3, None)) == "stopped at step 3 (there is no checkpoint of it)"
    assert str(Ended(0, None)) == "stopped in the first step"
