"""A console whose lines can be read."""

from __future__ import annotations

import io

from trainer.console import Console


def console() -> tuple[Console, io.StringIO]:
    from rich.console import Console as Terminal

    stream = io.StringIO()
    return Console(0, "run", terminal=Terminal(file=stream, width=400)), stream


def said(stream: io.StringIO) -> list[str]:
    """All lines but those of steps."""
    lines = [line.removeprefix("run  ") for line in stream.getvalue().splitlines()]
    return [line for line in lines if not line.startswith("step ")]
