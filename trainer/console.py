"""The live view of a run: a table and a progress bar on a terminal, one plain line a step else."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.bound import Adviser

COLUMNS = (
    ("accuracy", "accuracy", "{:.3f}"),
    ("reward/total", "reward", "{:.3f}"),
    ("think_tokens/mean", "thinking", "{:.1f}"),
    ("truncated", "truncated", "{:.1%}"),
    ("gradient/effective_prompts", "mixed", "{:.0%}"),
    ("entropy", "entropy", "{:.3f}"),
    ("loss", "loss", "{:.3g}"),
    ("time/step", "s", "{:.1f}"),
)
"""(metric, heading, format). A column is shown once its metric has appeared."""
EVALUATED = (
    ("eval/accuracy", "accuracy", "{:.3f}"),
    ("eval/think_tokens/mean", "thinking", "{:.1f}"),
    ("eval/anytime", "any-time", "{:.3f}"),
)
RECENT = 8


class Console:
    """Shows steps as they are logged, as long as there is somewhere to show them.

    Args:
        total: steps of the run; 0 if unknown.
        terminal: a `rich.console.Console`; by default standard output.
    """

    def __init__(self, total: int, name: str, terminal: Any = None) -> None:
        self._total, self._name, self._done = total, name, 0
        self._terminal = terminal or _terminal()
        self._failed = False
        self._recent: deque[Mapping[str, Any]] = deque(maxlen=RECENT)
        self._ticks: deque[tuple[float, int]] = deque(maxlen=10)
        self._doing = ""
        self._adviser: Adviser | None = None
        self._live: Any = None
        if self._terminal.is_terminal:
            self._open()

    def step(self, record: Mapping[str, Any]) -> None:
        """Show a step, or the evaluation that belongs to the step shown last."""
        same = self._recent and self._recent[-1]["step"] == record["step"]
        if same:
            self._recent[-1] = {**self._recent[-1], **record}
        else:
            self._done = record["step"]
            self._ticks.append((time.monotonic(), self._done))
            self._recent.append(record)
        if self._live is None:
            self._show(lambda: self._terminal.print(self.line(record)))
        self._tell(self._adviser.step(record) if self._adviser else None)
        if self._live is not None:
            self._refresh()

    def rewind(self, step: int) -> None:
        """Go on after `step`, whatever was shown beyond it."""
        kept = [record for record in self._recent if record["step"] <= step]
        self._recent, self._done = deque(kept, maxlen=RECENT), step
        self._ticks.clear()
        if self._live is not None:
            self._refresh()

    def advise(self, adviser: Adviser | None) -> None:
        """Say what bounds the steps of the stage that begins; of the last one, at its end."""
        if self._adviser is not None:
            self._tell(self._adviser.end(), stays=True)
        self._adviser = adviser

    def _tell(self, advice: str | None, stays: bool = False) -> None:
        """The live view shows advice below its bar."""
        if advice and (stays or self._live is None):
            self.say(advice)

    def note(self, text: str) -> None:
        """What is going on right now. Plain lines leave it out."""
        self._doing = text
        if self._live is not None:
            self._refresh()

    def say(self, text: str) -> None:
        """A line that stays: above the live view, or among the plain lines."""
        self._show(lambda: self._terminal.print(f"{self._name}  {text}", markup=False))

    def _show(self, how: Callable[[], object]) -> None:
        """A full disk may have room for the next line; a reader that has left does not return."""
        try:
            how()
        except (OSError, ValueError) as error:
            closed = self._terminal.file.closed
            if isinstance(error, ValueError) and not closed:
                raise
            self._terminal.quiet = True
            self._terminal.print()  # forgets what could not be shown
            room = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN)
            gone = closed or getattr(error, "errno", None) not in room
            self._terminal.quiet, self._failed = gone, True
            if gone:
                self._let_go()
        else:
            self._failed = False

    def _let_go(self) -> None:
        """What else is printed goes nowhere: the interpreter fails at it when it ends."""
        if self._terminal.file is sys.__stdout__:
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)

    def close(self) -> None:
        self.advise(None)
        if self._live is not None:
            self._doing = ""
            self._refresh()
            self._show(self._live.stop)
            self._live = None
        if self._failed:
            self._let_go()

    def line(self, record: Mapping[str, Any]) -> str:
        """One step as text: position, main figures, evaluation, time left."""
        parts = [f"{self._name}  step {record['step']}"]
        if self._total:
            parts[0] += f"/{self._total} ({record['step'] / self._total:.0%})"
        parts += [f"{head} {text}" for head, text in figures(record).items()]
        parts += evaluation(record)
        left = self.seconds_left()
        if left is not None:
            parts.append(f"left {duration(left)}")
        return "  ".join(parts)

    def seconds_left(self) -> float | None:
        """At the pace of the last steps; None before there is one, and after the last."""
        if len(self._ticks) < 2 or self._done >= self._total:
            return None
        (began, first), (now, last) = self._ticks[0], self._ticks[-1]
        return (now - began) / (last - first) * (self._total - self._done)

    def _open(self) -> None:
        from rich.live import Live

        self._live = Live(console=self._terminal, refresh_per_second=4, transient=False)
        self._show(self._live.start)
        self._refresh()

    def _refresh(self) -> None:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        heads = {head: None for record in self._recent for head in figures(record)}
        table = Table("step", *heads, "evaluation", box=None, header_style="dim", pad_edge=False)
        for column in table.columns[:-1]:
            column.justify = "right"
        for record in self._recent:
            shown = figures(record)
            cells = [shown.get(head, "") for head in heads]
            table.add_row(str(record["step"]), *cells, "  ".join(evaluation(record)))
        left = self.seconds_left()
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            self._name,
            ProgressBar(total=self._total or None, completed=self._done, width=32),
            f"{self._done}/{self._total or '?'}",
            f"left {duration(left)}" if left is not None else "",
            self._doing,
        )
        advice = [Text(self._adviser.now, "dim")] if self._adviser and self._adviser.now else []
        view = Group(*([table] if self._recent else []), bar, *advice)
        self._show(lambda: self._live.update(view))


def _terminal() -> Any:
    """Standard output. rich would end the process when nobody reads it any more."""
    from rich.console import Console as Rich

    class Terminal(Rich):
        def on_broken_pipe(self) -> None:
            raise

    return Terminal(soft_wrap=True, highlight=False)


def figures(record: Mapping[str, Any]) -> dict[str, str]:
    """The main figures of a step that are there, formatted, by heading."""
    return {
        head: form.format(record[key])
        for key, head, form in COLUMNS
        if isinstance(record.get(key), int | float)
    }


def evaluation(record: Mapping[str, Any]) -> list[str]:
    """The evaluation of a step in a few words; empty where there was none."""
    shown = [
        f"{head} {form.format(record[key])}"
        for key, head, form in EVALUATED
        if isinstance(record.get(key), int | float)
    ]
    return ["eval:", *shown] if shown else []


def duration(seconds: float) -> str:
    """75 -> '1:15', 3700 -> '1:01:40'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
