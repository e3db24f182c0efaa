"""What signals do to a command, and to a run: Ctrl-C, preemption, a terminal that goes away.

A handler runs in the main thread between any two instructions of it: it only notes what was asked,
and raises where nothing is under way that should be finished. Whatever takes locks (printing,
calling actors) is left to a thread.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.stop import Stop

CLOSING_S = 10.0
"""Seconds for leaving in order; then everything is killed."""
AGAIN_S = 0.25
"""Between two calls of what ends rollouts: the first may come before the rollouts do."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C's ends the process: `number`."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM leaves as cleanly as Ctrl-C does."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Terminated(number)

    with _handlers(dict.fromkeys((signal.SIGTERM,), stop)):
        yield


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Nothing interrupts this: it is short, and ends what would otherwise stay."""
    with _handlers(dict.fromkeys(SIGNALS, lambda *_: None)):
        yield


@contextlib.contextmanager
def _handlers(new: dict[Any, Any]) -> Iterator[None]:
    """Only where signals are ours: in the main thread, and those that are not ignored (nohup)."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        heard = [n for n in new if signal.getsignal(n) not in (signal.SIG_IGN, None)]
        before = {number: signal.signal(number, new[number]) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def obeyed(folder: Path, grace: float) -> Iterator[Stop]:
    """For the time of a run: what it is asked by signals.

    Ctrl-C once: it finishes the step and makes a checkpoint. Again: it leaves at once. SIGTERM and
    SIGHUP: a checkpoint within `grace` seconds. Then the process exits with 128 + the signal's
    number. In a notebook, and in any thread but the main one, signals stay what they are.

    Args:
        folder: the run's, as people would name it.

    Raises:
        SystemExit: the run ended because it was asked to.
    """
    from trainer.stop import Ended, Stop

    if threading.current_thread() is not threading.main_thread() or _interactive():
        yield Stop()
        return
    obeying = _Obeying(Stop(), folder, grace)
    try:
        with _handlers(dict.fromkeys(SIGNALS, obeying.hear)):
            yield obeying.stop
    except Ended:
        obeying.tell()
        raise SystemExit(obeying.code) from None
    except KeyboardInterrupt as interrupt:
        if obeying.number is None and isinstance(interrupt, Terminated):  # while Ray started
            obeying.number = interrupt.number
        if obeying.number is None:  # not ours
            raise
        obeying.tell()
        raise SystemExit(obeying.code) from None
    finally:
        obeying.close()


class _Obeying:
    def __init__(self, stop: Stop, folder: Path, grace: float) -> None:
        self.stop, self._folder, self._grace = stop, folder, grace
        self.number: int | None = None
        """Of the signal that it ends for."""
        self._leaving = self._late = False
        self._main = threading.get_ident()
        self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]
        self._due: list[tuple[float, Callable[[], object]]] = []
        self._errands: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="signals", daemon=True)
        self._thread.start()

    @property
    def code(self) -> int:
        return 128 + (self.number or signal.SIGINT)

    def hear(self, number: int, _: FrameType | None) -> None:
        """The handler."""
        stop, urgent = self.stop, number != signal.SIGINT
        if number == signal.SIGHUP:  # writing to a terminal that is gone is an error
            _redirect(self._terminals)
        if self._leaving or stop.ended:
            if not urgent:  # somebody has no patience left
                self._errands.put(self._at_once)
        elif stop.working and not (stop.soon if urgent else stop.asked):
            self.number = number
            stop.ask(soon=urgent)
            if urgent:
                self._after(self._grace, self._overdue)
                self._say(f"ending: a checkpoint within {self._grace:g} s")
            else:
                self._say("finishing the step, then a checkpoint; Ctrl-C again leaves at once")
        elif not urgent or not stop.soon or self._late:
            self._leaving, self.number = True, number
            self._after(CLOSING_S, self._at_once)
            raise KeyboardInterrupt

    def _overdue(self) -> None:
        """The grace is over."""
        if self.stop.ended:
            self._at_once()
        self._late = True
        self._after(CLOSING_S, self._at_once)
        signal.pthread_kill(self._main, self.number or signal.SIGTERM)

    def _at_once(self) -> None:
        """Nothing else helped: end everything ourselves."""
        from launch import cluster

        with contextlib.suppress(Exception):
            cluster.abandon()
        with contextlib.suppress(OSError):
            if 1 in self._terminals:
                os.write(1, b"\x1b[?25h")  # the cursor that a live view hid
            os.write(2, f"{self._line()}\n".encode())
        os._exit(self.code)

    def tell(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody there to read it
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        what = self.stop.ended or "interrupted"
        on = f"laconic resume {self._folder}"
        kept = any(self._folder.glob("checkpoints/step-*/COMPLETE"))
        return f"laconic: {what}; " + (
            f"go on with: {on}" if kept else "there is no checkpoint yet"
        )

    def _say(self, text: str) -> None:
        def say() -> None:
            if not self._leaving:
                print(f"laconic: {text}", file=sys.stderr, flush=True)

        self._errands.put(say)

    def _after(self, seconds: float, do: Callable[[], object]) -> None:
        self._due.append((time.monotonic() + seconds, do))
        self._errands.put(lambda: None)  # it is looked at then

    def _serve(self) -> None:
        """What a handler may not do: errands, what is due, and ending what is to be given up."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # all go to the main thread
        while True:
            ending = self.stop.soon and not self.stop.ended
            waits = [at - time.monotonic() for at, _ in self._due] + [AGAIN_S] * ending
            with contextlib.suppress(queue.Empty):
                errand = self._errands.get(timeout=max(0.0, min(waits)) if waits else None)
                if errand is None:
                    return
                with contextlib.suppress(Exception):  # a terminal that is gone
                    errand()
            for entry in [e for e in self._due if e[0] <= time.monotonic()]:
                self._due.remove(entry)
                entry[1]()
            if ending:
                self.stop.give_up()

    def close(self) -> None:
        self._errands.put(None)
        self._thread.join(1.0)  # it may be writing to a terminal that stands still


def _redirect(fds: Iterable[int]) -> None:
    """To nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for fd in fds:
        os.dup2(nowhere, fd)
    os.close(nowhere)


def _interactive() -> bool:
    """Whether people go on in this process after an interrupt."""
    python = sys.modules.get("IPython")
    return hasattr(sys, "ps1") or bool(python and python.get_ipython())
