"""How far a long command is: a bar on a terminal, a plain line now and then else."""

from __future__ import annotations

import sys
import time
from typing import Any, Self

from trainer.console import duration

EVERY = 10.0
"""Seconds between plain lines."""


class Progress:
    """Counts to `total` on standard error. A context manager."""

    def __init__(self, what: str, total: int, done: int = 0, terminal: Any = None) -> None:
        from rich.console import Console as Terminal

        self.what, self.total, self.done, self.tokens = what, total, done, 0
        self._first, self._began = done, time.monotonic()
        self._told = self._began
        self._terminal = terminal or Terminal(file=sys.stderr, soft_wrap=True, highlight=False)
        self._bar: Any = None

    def __enter__(self) -> Self:
        if self._terminal.is_terminal:
            from rich.live import Live

            self._bar = Live(console=self._terminal, refresh_per_second=4, transient=True)
            self._bar.start()
        return self

    def add(self, count: int, tokens: int = 0) -> None:
        self.done += count
        self.tokens += tokens
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._drawn())
        elif now - self._told >= EVERY:
            self._told = now
            self._terminal.print(self.line(), markup=False)

    def line(self) -> str:
        """What was done, the tokens a second, and the time left."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        parts = [f"{self.what} {self.done}/{self.total} ({self.done / max(self.total, 1):.0%})"]
        if self.tokens:
            parts.append(f"{self.tokens / seconds:,.0f} tokens/s")
        if self._first < self.done < self.total:
            left = seconds / (self.done - self._first) * (self.total - self.done)
            parts.append(f"left {duration(left)}")
        return "  ".join(parts)

    def _drawn(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        bar = Table.grid(padding=(0, 2))
        bar.add_row(ProgressBar(total=self.total, completed=self.done, width=32), self.line())
        return bar

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
