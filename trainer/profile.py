"""`laconic train --profile`: what is watched of a run, process by process.

RUN/trace.json: spans of all processes, for ui.perfetto.dev. RUN/profile/: operators and memory of
one learner step and of a few engine steps of each learner and engine, by torch.profiler.
"""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.trace import TOP, Around, Part, Watch, merge

if TYPE_CHECKING:
    from trainer.stage import StageRun

TRACE, DETAIL, PARTS = "trace.json", "profile", "parts"
LINES = ("begin", "sample", "reward", "annotate", "credit", "pack", "finish")
"""Lines of trainer/loop.py; the others are phases of the clock, which are shown too."""
INTERVAL_NS = 50_000_000
"""Engine steps are too many to show one by one: they are summed over this long."""
OPERATORS = 40
"""Rows of an operator table."""
MICRO_BATCHES, ENGINE_STEPS = 4, 8
"""What torch.profiler looks at: of the learner's second step, and after four times as many."""
_busy = threading.Lock()
"""A process has one torch.profiler."""


class Profile:
    """The first `steps` steps of a run, traced. A context manager; `watch` each stage in turn.

    The trace is written after the last of them, or when the run ends, however it does.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self._folder, self._detail, self._left = folder, folder / DETAIL, steps
        self._watch: Watch | None = None
        if steps:
            shutil.rmtree(self._detail, ignore_errors=True)

    def watch(self, run: StageRun) -> None:
        """All that `run` does from here on, in every process of its World."""
        if not self._left:
            return
        if self._watch is not None:  # the stage before was shorter
            self._watch.close()
        part = Part(self._detail / PARTS, "driver")
        self._run, self._watch, self._since = run, Watch(part), part.now()
        self._watch.around(run.clock, "phase", self._phase)
        self._watch.spans(run, {line: line for line in LINES})
        self._watch.around(run, "begin", self._first)
        self._watch.around(run, "finish", self._step)
        run.world.profile(self._detail)

    def close(self) -> None:
        """Stop watching and write what there is. Closing twice is fine."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
            merge(self._detail / PARTS, self._folder / TRACE, self._folder.name)
            shutil.rmtree(self._detail / PARTS)
            self._run.tracker.say(
                f"trace: {self._folder / TRACE} (open it at ui.perfetto.dev); "
                f"operators: {self._detail}"
            )

    def _phase(self, phase: Callable[[str], Any]) -> Callable[[str], Any]:
        """Phases of the clock, on the row of the thread that is in them."""

        @contextmanager
        def spanned(name: str) -> Iterator[None]:
            assert self._watch is not None
            with self._watch.part.span(name), phase(name):
                yield

        return spanned

    def _first(self, begin: Callable[[], None]) -> Callable[[], None]:
        """The first step begins when what comes before it has ended."""

        def begun() -> None:
            begin()
            assert self._watch is not None
            self._since = self._watch.part.now()

        return begun

    def _step(self, finish: Callable[..., None]) -> Callable[..., None]:
        """A step ends when it is finished; after the last one, so does the profile."""

        def finished(*args: Any) -> None:
            finish(*args)
            assert self._watch is not None
            part, now = self._watch.part, self._watch.part.now()
            part.whole(TOP, f"step {self._run.at}", self._since, now)
            self._since, self._left = now, self._left - 1
            if not self._left:
                with self._run.clock.phase("profile"):  # written now: of no step's own time
                    self._run.world.profile(None)
                self.close()

        return finished

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Watches:
    """The watches of one OS process."""

    def __init__(self) -> None:
        self._watches: list[Watch] = []

    def profile(self, folder: Path | None, processes: Mapping[str, Iterable[Any]]) -> None:
        """Watch what works in each process, by the name that it gets; without a folder: end."""
        for watch in self._watches:
            watch.close()
        self._watches.clear()
        if folder is not None:
            for name, things in processes.items():
                self._watches.append(_watched(folder, name, things))


def _watched(folder: Path, name: str, things: Iterable[Any]) -> Watch:
    """A watch on those of `things` that are known here; operators go to `folder`/`name`.*"""
    watch = Watch(Part(folder / PARTS, name))
    for thing in things:
        known = _KNOWN.get(type(thing).__name__)
        if known is not None:
            known(watch, thing, folder / name)
    return watch


def _learner(watch: Watch, learner: Any, name: Path) -> None:
    if learner.device.type == "cuda":  # it works on after a call has returned
        import torch

        watch.settle = torch.cuda.synchronize
    watch.spans(learner.engine, {"backward": "backward", "step": "optimiser"})
    own = {"step": "train", "_update": "update", "_forward": "forward", "buckets": "gather"}
    watch.spans(learner, own | {name: name for name in ("score", "save", "load", "export")})
    operators = Operators(watch, name, MICRO_BATCHES)
    watch.around(
        learner, "step", _calls(lambda n: operators.begin() if n > 1 else None, operators.end)
    )
    watch.around(learner.engine, "backward", _calls(lambda n: None, operators.tick))


def _rollout(watch: Watch, worker: Any, name: Path) -> None:
    watch.spans(worker, {"generate": "generate"})
    names = ("load_weights", "receive", "score", "sleep", "wake")
    watch.spans(worker.engine, {n: n for n in names if hasattr(worker.engine, n)})
    watch.around(worker.engine, "step", Steps(watch.part, worker.engine).around)
    operators = Operators(watch, name, ENGINE_STEPS)
    warm = 4 * ENGINE_STEPS
    watch.around(
        worker.engine,
        "step",
        _calls(lambda n: operators.begin() if n > warm else None, operators.tick),
    )


_KNOWN: dict[str, Callable[[Watch, Any, Path], None]] = {
    "Learner": _learner,
    "Publisher": lambda watch, publisher, _: watch.spans(publisher, {"publish": "publish"}),
    "RolloutWorker": _rollout,
    "VerifierPool": lambda watch, pool, _: watch.spans(pool, {"grade": "verify"}),
}
"""Class -> what is watched of it."""


class Steps:
    """What an engine's steps amount to per interval: requests, tokens, and what time went to.

    A step that admits requests counts as prefill, also what it decodes.
    """

    def __init__(self, part: Part, engine: Any) -> None:
        self._part, self._engine = part, engine
        self._began = self._last = self._steps = self._requests = 0
        self._spent = {"prefill": 0, "decode": 0}
        self._before = dict(engine.counters)

    def around(self, step: Callable[[], Any]) -> Callable[[], Any]:
        def timed() -> Any:
            began, prefilled = self._part.now(), self._engine.counters["prefilled"]
            if began - self._last > INTERVAL_NS:  # nothing was asked of it for a while
                if self._steps:
                    self._tell()
                self._began = began
            self._steps += 1
            self._requests += self._engine.pending
            try:
                return step()
            finally:
                self._last = self._part.now()
                fresh = self._engine.counters["prefilled"] > prefilled
                self._spent["prefill" if fresh else "decode"] += self._last - began
                if self._last - self._began >= INTERVAL_NS or not self._engine.pending:
                    self._tell()

        return timed

    def _tell(self) -> None:
        """The interval up to the last step; and a line back to zero, which the next may lift."""
        passed, counters = self._last - self._began, dict(self._engine.counters)
        made = {name: counters[name] - self._before[name] for name in ("sampled", "prefilled")}
        shares = {name: spent / passed for name, spent in self._spent.items()}
        curves = {
            "requests": {"in flight": self._requests / self._steps},
            "tokens per s": {name: tokens * 1e9 / passed for name, tokens in made.items()},
            "time": shares | {"idle": max(0.0, 1 - sum(shares.values()))},
        }
        for name, values in curves.items():
            self._part.count(name, self._began, values)
            self._part.count(name, self._last, dict.fromkeys(values, 0.0))
        self._began, self._before = self._last, counters
        self._steps = self._requests = 0
        self._spent = dict.fromkeys(self._spent, 0)


class Operators:
    """torch.profiler, once, over a few ticks: a table by time and by memory, and a trace.

    They are written when the watch is closed: at most of a millisecond an operator, that takes
    longer than what they tell of.
    """

    def __init__(self, watch: Watch, name: Path, ticks: int) -> None:
        self._part, self._name, self._left = watch.part, name, ticks
        self._profiler: Any = None
        self._thread: int | None = None
        """That it runs in; it has to be ended there."""
        watch.at_close(self._write)

    def begin(self) -> None:
        """Unless it has been before, or another one runs in this process."""
        if self._profiler is None and _busy.acquire(blocking=False):
            from torch.profiler import profile

            with self._part.span("torch.profiler begins"):
                self._profiler = profile(profile_memory=True, acc_events=True)
                self._profiler.start()
            self._thread = threading.get_ident()

    def tick(self) -> None:
        """After the last one it ends by itself."""
        self._left -= self._thread == threading.get_ident()
        if not self._left:
            self.end()

    def end(self) -> None:
        if self._thread == threading.get_ident():
            try:
                with self._part.span("torch.profiler ends"):
                    self._profiler.stop()
            finally:
                self._thread = None
                _busy.release()

    def _write(self) -> None:
        """NAME.txt and NAME.json.gz."""
        self.end()
        if self._profiler is None or self._thread is not None:
            return
        averages = self._profiler.key_averages()
        device = "device" if any(a.device_time_total for a in averages) else "cpu"
        tables = [
            averages.table(sort_by=key, row_limit=OPERATORS, max_name_column_width=60)
            for key in (f"self_{device}_time_total", f"self_{device}_memory_usage")
        ]
        self._name.with_suffix(".txt").write_text("\n\n".join(tables))
        self._profiler.export_chrome_trace(str(self._name.with_suffix(".json.gz")))


def _calls(before: Callable[[int], None], after: Callable[[], None]) -> Around:
    """Around a method: `before` gets the number of the call, from 1."""

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        numbers = itertools.count(1)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before(next(numbers))
            try:
                return call(*args, **kwargs)
            finally:
                after()

        return wrapped

    return wrap
