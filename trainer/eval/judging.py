"""Verdicts of saved samples, in their order; what is equal is asked once, and nothing is held."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rewards.grader import Item, load
from rewards.service.pool import VerifierPool
from rewards.verdict import Verdict
from trainer.eval import problems, samples
from trainer.eval.folder import Folder
from trainer.eval.samples import VERDICTS, Row

LOT = 256
"""Samples that are asked for in one call."""
AHEAD = 4
"""Calls under way while another is written."""
KNOWN = 400_000
"""Verdicts that are remembered, of different answers."""
Told = tuple[str, str | None]
"""Status and canonical answer."""


@dataclass
class _Lot:
    """Samples whose verdicts are on their way."""

    rows: list[Row]
    keys: list[list[Any]] = field(default_factory=list)
    """By sample and cut: what its verdict is known by."""
    asked: dict[str, list[Any]] = field(default_factory=dict)
    """By task: keys in the order of its items."""
    futures: dict[str, Future[list[Verdict]]] = field(default_factory=dict)
    told: dict[Any, Told] = field(default_factory=dict)


def judge(
    folder: Folder,
    *,
    again: bool = False,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Write verdicts.jsonl for all samples; how many samples were judged now.

    Verdicts that are there stay, if they are by the same graders and of these samples.

    Args:
        again: judge all of them once more.
        workers: processes of a verifier that may hang; None: two.
        progress: told of every lot of samples.
    """
    path, graders = folder.path / VERDICTS, folder.graders()
    rows = folder.rows()
    if again or not _kept(path, graders, rows):
        path.write_text(samples.line({"graders": graders}), encoding="utf-8")
        rows = folder.rows()
    judged = 0
    with ExitStack() as stack, path.open("a", encoding="utf-8") as out:
        judges = _Judges(folder, workers, stack)
        for lot in judges.judged(rows):
            out.write("".join(map(samples.line, lot)))
            out.flush()
            judged += len(lot)
            progress(len(lot))
    return judged


def _kept(path: Path, graders: Mapping[str, str], rows: Iterator[Row]) -> bool:
    """Whether the verdicts stay that are there; then `rows` goes on with those that have none."""
    samples.mend(path)
    saved = samples.read(path)
    if next(saved, {}).get("graders") != graders:
        return False
    for verdict in saved:
        row = next(rows, None)
        if row is None or samples.key_of(verdict) != samples.key_of(row):
            return False  # somebody took lines out
    return True


class _Judges:
    """The pools of all tasks; a verifier that several tasks name has one."""

    def __init__(self, folder: Folder, workers: int | None, stack: ExitStack) -> None:
        self.problems = folder.problems()
        self.known: dict[Any, Told] = {}
        self.pools: dict[str, VerifierPool] = {}
        made: dict[str, VerifierPool] = {}
        for task in folder.settings["tasks"]:
            spec = task["verifier"]
            if repr(spec) not in made:
                processes = None if load(spec).quick else workers
                pool = VerifierPool(spec, workers=processes)
                made[repr(spec)] = stack.enter_context(pool)
            self.pools[task["name"]] = made[repr(spec)]

    def judged(self, rows: Iterator[Row]) -> Iterator[list[Row]]:
        """Lots of verdicts, in order; some are under way while another is taken."""
        waiting: deque[_Lot] = deque()
        while some := list(islice(rows, LOT)):
            waiting.append(self._ask(some))
            if len(waiting) > AHEAD:
                yield self._take(waiting.popleft())
        while waiting:
            yield self._take(waiting.popleft())

    def _ask(self, rows: list[Row]) -> _Lot:
        lot, items = _Lot(rows), dict[str, dict[Any, Item]]()
        for row in rows:
            problem, task = self.problems[row["task"], row["id"]], row["task"]
            relevant = self.pools[task].grader.relevant
            posed = row["sample"] if problems.SHUFFLE in problem["meta"] else None
            keys = []
            for cut in row["cuts"]:
                text = cut["text"]
                if text is not None:
                    with suppress(Exception):  # of a user's: then all of the text counts
                        text = relevant(text)
                key = task, row["id"], posed, text
                keys.append(key)
                if key in self.known:
                    lot.told[key] = self.known[key]
                else:
                    wanted = items.setdefault(task, {})
                    if key not in wanted:
                        wanted[key] = problems.item_of(problem, row["sample"], text)
            lot.keys.append(keys)
        for task, wanted in items.items():
            lot.asked[task] = list(wanted)
            lot.futures[task] = self.pools[task].submit(list(wanted.values()))
        return lot

    def _take(self, lot: _Lot) -> list[Row]:
        for task, future in lot.futures.items():
            for key, verdict in zip(lot.asked[task], future.result(), strict=True):
                lot.told[key] = self.known[key] = self._told(key, verdict)
        if len(self.known) > KNOWN:
            self.known.clear()
        return [
            {
                **{name: row[name] for name in ("task", "id", "sample", "asked")},
                "verdicts": [lot.told[key] for key in keys],
            }
            for row, keys in zip(lot.rows, lot.keys, strict=True)
        ]

    def _told(self, key: Sequence[Any], verdict: Verdict) -> Told:
        task, name, sample, _ = key
        answer = verdict.answer
        if sample is not None:
            answer = problems.unshuffled(self.problems[task, name], sample, answer)
        return verdict.status, answer
