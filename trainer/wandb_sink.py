"""W&B as one sink of a run's metrics: told and forgotten, so that no step ever waits for it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

COMMAND = "import sys; sys.path[:] = sys.argv[1:]; from trainer.wandb_process import main; main()"
PREFIX = "laconic-wandb-"
"""Of temporary folders."""
ALONE = "metrics.jsonl goes on without it"


class Sink:
    """A process that holds the W&B run (`trainer/wandb_process.py`), at the end of a pipe.

    It fails once at most: that is said, and the run goes on without it.

    Args:
        known: what `wandb.init` is given: id, project, name, ...
        metrics: name of the file in `folder` that holds the steps of the run so far.
        patience: seconds it may take to start.
    """

    def __init__(
        self,
        folder: Path,
        mode: str,
        known: Mapping[str, Any],
        metrics: str,
        patience: float,
        say: Callable[[str], None],
    ) -> None:
        self._patience, self._say = patience, say
        self._where = folder
        self._pending = bytearray()
        self._said = b""
        self._started, self._sign = False, time.monotonic()
        # its sockets and what else it leaves behind when it is killed; W&B's own is nobody's here
        self._temporary, self._lock = _temporary()
        environment = {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"}
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment | {"TMPDIR": self._temporary},
            pass_fds=(self._lock,),  # it may live on for a moment
            start_new_session=True,  # Ctrl-C is ours
        )
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
        self._line(
            {
                "folder": str(folder.absolute()),
                "mode": mode,
                "known": known,
                "metrics": metrics,
                "patience": patience,
                "temporary": self._temporary,
            }
        )

    def log(self, record: Mapping[str, Any]) -> None:
        """A step's figures, `step` among them; of one that is there already, what is new."""
        self._line(["log", record])

    def alert(self, title: str, text: str) -> None:
        self._line(["alert", title, text])

    def anew(self) -> None:
        """The metrics file holds other steps than were logged."""
        self._line(["anew"])

    def _line(self, message: Any) -> None:
        if self._process is not None:
            self._pending += json.dumps(message).encode() + b"\n"
            self._pump()

    def _pump(self) -> None:
        """Hand over what the pipe takes, and hear what is said. Never waits."""
        assert self._process is not None
        before = len(self._pending)
        gone = None
        try:
            self._write()
        except OSError as error:
            gone = error.strerror
        self._hear()
        if self._process is None:
            return
        if gone or self._process.poll() is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
            self._give_up(f"its process ended ({self._process.returncode})")
            return
        now = time.monotonic()
        if self._started and (not self._pending or len(self._pending) < before):
            self._sign = now
        elif now - self._sign > 3 * self._patience:
            self._give_up(f"no answer within {now - self._sign:.0f} s")

    def _write(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BlockingIOError):
            while self._pending:
                del self._pending[: os.write(self._process.stdin.fileno(), self._pending)]

    def _hear(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._process.stdout.fileno(), 1 << 16):
                self._said += data
        *lines, self._said = self._said.split(b"\n")
        for what, text in map(json.loads, lines):
            if what == "dir":
                self._where, self._started = Path(text), True
            elif what == "say":
                self._say(f"W&B: {text}")
            else:
                self._give_up(text)
                return

    def finish(self, patience: float) -> None:
        """Wait for the upload at most so many seconds; the files stay for `wandb sync`."""
        until = time.monotonic() + patience
        while self._process is not None and self._pending and time.monotonic() < until:
            self._pump()
            time.sleep(0.01)
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._hear()
            late = f"not finished within {patience:g} s"
            self._give_up(late, f"the rest is in {self._where}: send it with `wandb sync`")
            return
        self._hear()
        if self._process is not None and self._process.returncode:
            self._give_up(f"its process ended ({self._process.returncode})")
        self._end()

    def _give_up(self, why: str, then: str = ALONE) -> None:
        if self._process is not None:
            self._end()
            self._say(f"W&B: {why}; {then}")

    def _end(self) -> None:
        """Nothing of it stays behind."""
        if self._process is None:
            return
        import psutil

        process, self._process = self._process, None
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    child.kill()
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)  # one that waits for a hung disk dies when that answers
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        shutil.rmtree(self._temporary, ignore_errors=True)
        os.close(self._lock)
        self._pending.clear()


def _temporary() -> tuple[str, int]:
    """A folder with its lock: one that nobody holds was left by processes that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            os.close(_locked(path))
            shutil.rmtree(path, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=f".{PREFIX}"))
    lock = _locked(new)
    return str(new.rename(new.with_name(new.name[1:]))), lock  # locked before it is seen


def _locked(folder: Path) -> int:
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock
