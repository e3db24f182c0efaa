"""W&B in a process of its own (`trainer/wandb_sink.py` starts it): nothing of it can stop a run.

It gets lines of JSON and answers with some; the first one says what to start. When the lines end it
finishes, whoever ended them. What W&B keeps in memory or drops it can be given again: metrics.jsonl
holds the truth, and here is who reads it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

ROOM = 1 << 16
"""Bytes that must be free beside an offline record, or W&B drops some of it and says nothing."""
GRACE = 5.0
"""Seconds that whoever started us has to end us, before we do."""


class Sender:
    """One W&B run. `wandb.init` once for an online one; for an offline one again to begin anew."""

    def __init__(self, told: Mapping[str, Any], answers: IO[str]) -> None:
        self._told, self._answers, self._folder = told, answers, Path(told["folder"])
        self._mode = told["mode"]
        self._sent = -1
        self._torn = False
        try:
            self._run = self._start()
        except Exception as error:
            if self._mode != "online":
                raise
            self.say(f"{_first(error)}; metrics go to an offline run; send them with `wandb sync`")
            self._mode = "offline"
            self._run = self._start()

    def _start(self) -> Any:
        """A run that holds what metrics.jsonl holds.

        Online W&B goes on with what it has, and takes no step twice: the first values of a step
        stay. An offline record is one folder; earlier ones of this run hold nothing else.
        """
        import wandb

        offline, patience = self._mode == "offline", {"init_timeout": self._told["patience"]}
        if "finish_timeout" in getattr(wandb.Settings, "model_fields", {}):  # newer than 0.18
            patience["finish_timeout"] = self._told["patience"]
        again = f"offline-run-%Y%m%d_%H%M%S-{self._told['known']['id']}"
        while (self._folder / "wandb" / time.strftime(again)).exists():
            time.sleep(0.1)  # W&B tells folders apart by the second
        run = wandb.init(
            **self._told["known"],
            resume=None if offline else "allow",
            dir=str(self._folder),
            mode=self._mode,
            settings=wandb.Settings(console="off", silent=True, disable_git=True, **patience),
        )
        self._run, self._sent = run, getattr(run, "starting_step", 0)
        here = Path(run.dir).parent
        for record in _history(self._folder / self._told["metrics"]):
            self.log(record)
        for other in (self._folder / "wandb").glob(f"offline-run-*-{run.id}"):
            if other != here:
                shutil.rmtree(other, ignore_errors=True)
        _answer(self._answers, "dir", str(here))
        return run

    def log(self, record: Mapping[str, Any]) -> None:
        """A step, unless W&B has a later one; what is added to its last one joins it."""
        if record["step"] < self._sent:
            return
        self._sent = record["step"]
        values = {k: v for k, v in record.items() if v is not None and k != "step"}
        self._run.log(values, step=self._sent)

    def check(self) -> None:
        """An offline record that found no room is made anew once there is some."""
        if self._mode != "offline":
            return
        disk = os.statvfs(self._folder)
        torn = disk.f_bavail * disk.f_frsize < ROOM or bool(disk.f_flag & os.ST_RDONLY)
        if torn and not self._torn:
            self.say("no room for its offline record, which is made anew when there is")
        elif self._torn and not torn:
            self.anew()
        self._torn = torn

    def anew(self) -> None:
        """metrics.jsonl holds other steps than before."""
        if self._mode == "offline":
            self._run.finish()
            self._run = self._start()

    def alert(self, title: str, text: str) -> None:
        self._run.alert(title=title, text=text, level="WARN")

    def finish(self) -> None:
        import wandb

        self._run.finish()
        if hasattr(wandb, "teardown"):
            wandb.teardown()

    def say(self, text: str) -> None:
        _answer(self._answers, "say", text)


def _answer(answers: IO[str], what: str, text: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        answers.write(json.dumps([what, text]) + "\n")
        answers.flush()


def _history(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of metrics.jsonl; one may be at its writing."""
    with contextlib.suppress(OSError), path.open(encoding="utf-8") as lines:
        for line in lines:
            with contextlib.suppress(ValueError):
                yield json.loads(line)


def _first(error: Exception) -> str:
    text = str(error).strip().splitlines()[:1] or [""]
    return f"{type(error).__name__}: {text[0]}"


def _streams() -> tuple[IO[str], IO[str]]:
    """Ours alone: W&B may ask for keys on standard input, and print."""
    lines, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w")
    for number in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    return lines, answers


def _end(code: int, temporary: str) -> None:
    """Leave at once: what W&B would still wait for at exit has had its time."""
    import psutil

    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.kill()
    psutil.wait_procs(children, timeout=1)
    shutil.rmtree(temporary, ignore_errors=True)
    os._exit(code)


def main() -> None:
    lines, answers = _streams()
    told = json.loads(lines.readline())
    code = 0
    try:
        sender = Sender(told, answers)
        for line in lines:
            what, *given = json.loads(line)
            getattr(sender, what)(*given)
            sender.check()
        late = threading.Timer(told["patience"] + GRACE, _end, (1, told["temporary"]))
        late.daemon = True
        late.start()
        sender.finish()
    except Exception as error:
        _answer(answers, "failed", _first(error))
        code = 1
    _end(code, told["temporary"])
