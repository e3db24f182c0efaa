"""Asking a run to end, from a signal's handler or anywhere else, and what it does then.

Asked once, it ends with the step under way. Asked to end soon, it gives up what would take long
and can be made again (rollouts, an evaluation), and finishes what it cannot go back behind: once
learners have begun to learn a step, its weights are the only ones there are. Both end with a
checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from trainer.faults import Stopped


class Stop:
    """What a run was asked. One thread works; any other may ask, and `give_up`."""

    def __init__(self) -> None:
        self.asked = False
        """To end with the step under way."""
        self.soon = False
        """To give up what can be made again."""
        self.working = False
        """Something would be lost that is in no checkpoint: else there is nothing to wait for."""
        self.ended: Ended | None = None
        """What there was to keep is kept."""
        self._aborts: list[Callable[[], None]] = []

    def ask(self, soon: bool = False) -> None:
        self.asked, self.soon = True, self.soon or soon

    def give_up(self) -> None:
        """End what can be made again. What ends it may come too early: to be called repeatedly."""
        for abort in list(self._aborts):
            with suppress(Exception):  # who is already dead is ended
                abort()

    def gives_up(self, abort: Callable[[], None]) -> None:
        """`abort` ends something, in whatever thread, and may be called again and again."""
        self._aborts.append(abort)

    def forget(self, abort: Callable[[], None]) -> None:
        """What `gives_up` was told of is over."""
        with suppress(ValueError):
            self._aborts.remove(abort)

    @contextmanager
    def losing(self, abort: Callable[[], None]) -> Iterator[None]:
        """Around what is given up when the run is to end soon; `abort` as in `gives_up`.

        Raises:
            Stopped: it was, or what it made may not be whole.
        """
        if self.soon:
            raise Stopped
        self._aborts.append(abort)
        try:
            yield
        except Exception as error:
            if self.soon:
                raise Stopped from error
            raise
        finally:
            self._aborts.remove(abort)
        if self.soon:
            raise Stopped

    def end(self, step: int, kept: Path | None) -> NoReturn:
        """Raises Ended."""
        self.ended = Ended(step, kept)
        raise self.ended


class Ended(Exception):  # noqa: N818 - not an error
    """A run ended because it was asked to.

    Args:
        step: steps of the run that are done.
        kept: the checkpoint of exactly this step; None: there is none.
    """

    def __init__(self, step: int, kept: Path | None) -> None:
        how = "(checkpointed)" if kept else "(there is no checkpoint of it)"
        super().__init__(f"stopped at step {step} {how}" if step else "stopped in the first step")
        self.step, self.kept = step, kept
