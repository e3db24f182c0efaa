"""Keeping a run while it trains: a disk that refuses a checkpoint does not end the training."""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.checkpoint import disk, files, keeping
from trainer.checkpoint.config import CheckpointConfig
from trainer.metrics import MACHINE

PAUSE_S = 3.0
"""Between two attempts at the checkpoint that ends a stage."""


class Keeper:
    """Makes the checkpoints of a run and drops those that are no longer wanted.

    Args:
        root: the run's folder `checkpoints`.
        say: tells people a line.
        about: facts that every manifest holds.
        texts: files that every checkpoint holds, by name.
        steps: the run's figures so far, by step.
        before: has the disk hold what a checkpoint counts on.
    """

    def __init__(
        self,
        root: Path,
        config: CheckpointConfig,
        say: Callable[[str], None],
        *,
        about: Mapping[str, Any] | None = None,
        texts: Mapping[str, str] | None = None,
        steps: Callable[[], Sequence[Mapping[str, Any]]] = list,
        before: Callable[[], object] = list,
    ) -> None:
        self.root, self.config, self._say, self._before = root, config, say, before
        self._about, self._texts, self._steps = dict(about or {}), dict(texts or {}), steps
        self._failing = self._told_metric = self._told_refused = False

    def save(
        self,
        step: int,
        fill: Callable[[Path], None],
        driver: Mapping[str, Any],
        metrics: Mapping[str, Any],
        *,
        due: int | None = None,
        last: bool = False,
        enough: Callable[[], bool] = lambda: False,
    ) -> Path | None:
        """A checkpoint after `step`; None: the disk refused it, which was said.

        Args:
            fill: puts the learners' part into a folder.
            driver: the driver's state.
            metrics: the step's figures: what `best` reads.
            due: the step of the next one; None: there is none that is sure to come.
            last: it ends a stage, and is tried again for `patience` seconds.
            enough: asked between two attempts; true: no more of them.

        Raises:
            ValueError: the disk refused it, and the run is to stop then, or cannot go on without.
        """
        own = figures(metrics) if metrics.get("step") == step else {}
        told = {**self._about, "metrics": own}
        self._before()
        until, waiting = time.monotonic() + self.config.patience, False
        while True:
            try:
                files.clean(self.root)
                disk.check(self.root)
                made = files.write(self.root, step, fill, driver, told, self._texts)
                break
            except Exception as error:
                refused = disk.refusal(error, self.root)
                if refused is None:
                    raise
                ending = enough()
                again = last and not ending and time.monotonic() < until
                must = not again and not ending and (last or self.config.on_error == "stop")
                what = self._refused(step, refused, None if ending else due, again, must, last)
                if not (again and waiting):
                    self._say(what)
                self._failing, waiting = True, again
            if not again:
                return None
            time.sleep(PAUSE_S)
        if self._failing:
            self._say(f"step {step}: the checkpoint is written")
        self._failing = False
        self._prune(step, own)
        return made

    def kept(self, step: int) -> Path | None:
        """The checkpoint of this very step, where it is the newest."""
        newest = files.newest(self.root)
        return newest if newest and files.step_of(newest) == step else None

    def _refused(
        self, step: int, error: OSError, due: int | None, again: bool, must: bool, last: bool
    ) -> str:
        """What to say of there being no checkpoint; raised where there `must` be one."""
        newest = files.newest(self.root)
        kept = f"the last checkpoint is step {files.step_of(newest)}" if newest else "there is none"
        what = f"step {step}: the checkpoint could not be written ({disk.why(error, self.root)})"
        remedy, patience = disk.remedy(error), f"{self.config.patience:g} s"
        if must:
            raise ValueError(
                f"{what}{f' in {patience}' if last else ''}; {kept}; {remedy}, and go on with: "
                f"laconic resume {self.root.parent}"
            ) from error
        if again:
            how = f"it ends the stage, and is tried again for {patience}; {kept}; {remedy}"
        elif due is None:
            how = kept
        else:
            how = f"training goes on from memory, {kept}; {remedy} before step {due}"
        return f"{what}; {how}"

    def _prune(self, step: int, metrics: Mapping[str, Any]) -> None:
        if self.config.best is not None and metrics and self.config.best not in metrics:
            self._no_metric(step, self.config.best, metrics)
        refused = keeping.prune(self.root, step, self.config)
        if refused and not self._told_refused:
            self._told_refused = True
            why = disk.why(refused[0], self.root)
            self._say(f"step {step}: an older checkpoint could not be removed ({why})")

    def _no_metric(self, step: int, name: str, metrics: Mapping[str, Any]) -> None:
        """Say once that the metric that `best` reads is not there, and when it is."""
        if self._told_metric:
            return
        self._told_metric = True
        having = [str(one["step"]) for one in self._steps() if name in one]
        near = difflib.get_close_matches(name, metrics, n=3, cutoff=0.5)
        hint = f"; near are {', '.join(near)}" if near else ""
        if having:
            hint = (
                f"; it is there at steps {', '.join(having[-5:])}: let checkpoint.every meet them"
            )
        self._say(f"step {step}: checkpoint.best={name} is no figure of this step{hint}")


def figures(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers among a step's metrics, but the machine's; what is not finite is null."""
    found: dict[str, float | None] = {}
    for name, value in metrics.items():
        if name.startswith(MACHINE):
            continue
        value = getattr(value, "item", lambda value=value: value)()
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value if math.isfinite(value) else None
        elif value is None:
            found[name] = None
    return found
