"""Where time went: spans of all processes in one file that ui.perfetto.dev shows.

Nothing in the library knows that it is watched. A `Watch` puts itself around methods of living
objects and takes itself off again, so that a run without `--profile` pays nothing. Each process
writes a part, one line an event, at once: what a process did before it was killed is there. The
driver makes one file of the parts (the Trace Event Format of Chrome). Times are the wall clock's.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any

Event = dict[str, Any]
Around = Callable[[Callable[..., Any]], Callable[..., Any]]
PROCESSES = ("driver", "learner", "rollout", "grader")
"""From the top down."""
TOP = "steps"
"""The row above those of threads."""
NAMELESS = re.compile(r"(Thread|Dummy|ThreadPoolExecutor|AsyncIO)\b")
"""Threads that nobody gave a name."""


class Part:
    """The events of one process, in `folder`/`name`.jsonl. Thread-safe.

    A thread has a row while it is in a span: one of its name, or any that is free where it has
    none, as the many threads that serve calls. Times are nanoseconds: the wall clock when the part
    was opened, and a steady one from there.
    """

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._stream = (folder / f"{name}.jsonl").open("a", buffering=1, encoding="utf-8")
        self._offset = _offset()
        self._rows: dict[int, str] = {}
        """Of the threads that are in a span."""
        self._lock = threading.Lock()

    def now(self) -> int:
        return time.perf_counter_ns() + self._offset

    @contextmanager
    def span(self, name: str, facts: Mapping[str, Any] | None = None) -> Iterator[None]:
        """What happens inside, on the row of the thread that is in it."""
        row, first = self._row()
        self._write({"ph": "B", "tid": row, "name": name, "ts": self.now(), "args": facts or {}})
        try:
            yield
        finally:
            self._write({"ph": "E", "tid": row, "ts": self.now()})
            if first:
                with self._lock:
                    del self._rows[threading.get_ident()]

    def whole(self, row: str, name: str, began: int, ended: int) -> None:
        """A span that is over, on a row of its own."""
        self._write({"ph": "X", "tid": row, "name": name, "ts": began, "dur": ended - began})

    def count(self, name: str, at: int, values: Mapping[str, float]) -> None:
        """Quantities from `at` on, drawn as one stacked curve."""
        self._write({"ph": "C", "name": name, "ts": at, "args": dict(values)})

    def close(self) -> None:
        """No more events; late ones, of threads that are still inside a span, are dropped."""
        with self._lock:
            self._stream.close()

    def _row(self) -> tuple[str, bool]:
        """The row of this thread, and whether this is the outermost of its spans."""
        me, name = threading.get_ident(), threading.current_thread().name
        with self._lock:
            if me in self._rows:
                return self._rows[me], False
            label = "call" if NAMELESS.match(name) else name
            rows = (label if n == 1 else f"{label} {n}" for n in itertools.count(1))
            self._rows[me] = next(row for row in rows if row not in self._rows.values())
            return self._rows[me], True

    def _write(self, event: Event) -> None:
        line = json.dumps(event, separators=(",", ":")) + "\n"
        with self._lock:
            if not self._stream.closed:
                self._stream.write(line)


def _offset() -> int:
    """From the steady clock to the wall clock, ns; of several readings the least disturbed."""
    readings = []
    for _ in range(8):
        before, wall, after = time.perf_counter_ns(), time.time_ns(), time.perf_counter_ns()
        readings.append((after - before, wall - (before + after) // 2))
    return min(readings)[1]


class Watch:
    """Stands around methods of objects until it is closed, and has a part to write to."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.settle: Callable[[], None] = lambda: None
        """Called before a span ends: waits for a device that works on by itself."""
        self._undo: list[Callable[[], None]] = []

    def spans(self, thing: Any, names: Mapping[str, str]) -> None:
        """Every call of these methods of `thing` becomes a span. names: method -> span."""
        for method, name in names.items():
            self.around(thing, method, partial(self._spanned, name))

    def around(self, thing: Any, method: str, wrap: Around) -> None:
        """`thing.method` becomes `wrap(thing.method)`, for this one object."""
        own = vars(thing).get(method)
        wrapped = wrap(getattr(thing, method))
        setattr(thing, method, wrapped)

        def undo() -> None:
            if own is None:
                delattr(thing, method)
            else:
                setattr(thing, method, own)

        self._undo.append(undo)

    def at_close(self, do: Callable[[], None]) -> None:
        """`do` when the watch is closed, before what was put on earlier is taken off."""
        self._undo.append(do)

    def close(self) -> None:
        """Take everything off. Closing twice is fine."""
        while self._undo:
            self._undo.pop()()
        self.part.close()

    def _spanned(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part.span(name, _size(args)):
                result = call(*args, **kwargs)
                self.settle()
            return self._drawn(name, result) if isinstance(result, Iterator) else result

        return timed

    def _drawn(self, name: str, items: Iterator[Any]) -> Iterator[Any]:
        """What is made item by item is timed item by item."""
        end = object()
        while True:
            with self.part.span(name):
                item = next(items, end)
            if item is end:
                return
            yield item


def _size(args: Sequence[Any]) -> dict[str, int]:
    """How much a call was given, where that can be counted."""
    return {"items": len(args[0])} if args and isinstance(args[0], list | tuple) else {}


def merge(folder: Path, target: Path, title: str = "") -> None:
    """All parts in `folder` as one trace; `target` is replaced in one go.

    Spans that had not ended (the process was killed, or is still at it) end with the trace and
    say `unfinished`.
    """
    parts = {path.stem: _read(path) for path in sorted(folder.glob("*.jsonl"), key=_order)}
    times = [e["ts"] + e.get("dur", 0) for part in parts.values() for e in part if "ts" in e]
    first, last = min(times, default=0), max(times, default=0)
    events: list[Event] = []
    for pid, (name, part) in enumerate(parts.items(), 1):
        events += [
            _meta(pid, "process_name", name=name),
            _meta(pid, "process_sort_index", sort_index=pid),
        ]
        events += _finished(part, pid, first, last)
    whole = {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"run": title, "began": first / 1e9},
    }
    beside = target.with_suffix(".partial")
    beside.write_text(json.dumps(whole, separators=(",", ":")), encoding="utf-8")
    beside.replace(target)


def _read(path: Path) -> list[Event]:
    """Events in the order written; a line that a kill cut off is left out."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


def _finished(part: Sequence[Event], pid: int, first: int, last: int) -> list[Event]:
    """Beginnings and ends as whole spans; rows as numbers with names; times in us from `first`."""
    out: list[Event] = []
    opened: dict[Any, list[Event]] = {}
    rows: dict[str, int] = {}

    def span(event: Event, end: int, **more: Any) -> None:
        if event["tid"] not in rows:
            rows[event["tid"]] = 0 if event["tid"] == TOP else len(rows) + 1
            out.append(_meta(pid, "thread_name", rows[event["tid"]], name=event["tid"]))
        tid = rows[event["tid"]]
        args = event.get("args", {}) | more
        began = event["ts"]
        out.append(
            {"ph": "X", "pid": pid, "tid": tid, "name": event["name"], "args": args}
            | {"ts": (began - first) / 1e3, "dur": (end - began) / 1e3}
        )

    for event in part:
        match event["ph"]:
            case "B":
                opened.setdefault(event["tid"], []).append(event)
            case "E":
                span(opened[event["tid"]].pop(), event["ts"])
            case "X":
                span(event, event["ts"] + event["dur"])
            case "C":
                out.append(event | {"pid": pid, "ts": (event["ts"] - first) / 1e3})
    for stack in opened.values():
        for event in stack:
            span(event, last, unfinished=True)
    return out


def _meta(pid: int, what: str, tid: int = 0, **args: Any) -> Event:
    return {"ph": "M", "pid": pid, "tid": tid, "name": what, "args": args}


def _order(path: Path) -> tuple[int, str]:
    role = path.stem.rpartition("-")[0] or path.stem
    return PROCESSES.index(role) if role in PROCESSES else len(PROCESSES), path.stem
