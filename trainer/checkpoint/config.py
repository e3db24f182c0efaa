"""What a recipe says of checkpoints."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from samplers.seam import Component

if TYPE_CHECKING:
    from trainer.config import Stage


class CheckpointConfig(Component):
    every: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0: only at the end of a stage."""
    keep: int = Field(default=2, ge=1)
    """How many of the newest to keep."""
    best: str | None = None
    """A metric of metrics.jsonl (`eval/accuracy`, say): the checkpoint of the step where it was
    best is kept beside, and `checkpoints/best` leads there. null: none is."""
    best_mode: Literal["max", "min"] = "max"
    """Whether the highest or the lowest value is best; of equal ones, the later."""
    keep_best: int = Field(default=1, ge=1)
    """How many of the best to keep."""
    on_error: Literal["go_on", "stop"] = "go_on"
    """Where the disk refuses a checkpoint: go on without it and try again at the next, or stop."""
    patience: float = Field(default=600.0, ge=0)
    """Seconds in which the checkpoint that ends a stage is tried again before the run gives up."""
    grace: float = Field(default=30.0, gt=0)
    """Seconds in which a run that is asked to end (SIGTERM) makes its checkpoint."""

    @model_validator(mode="after")
    def _of_the_best(self) -> CheckpointConfig:
        for field in ("best_mode", "keep_best"):
            value = getattr(self, field)
            if self.best is None and value != type(self).model_fields[field].default:
                warnings.warn(
                    f"checkpoint.{field}={value} has no effect without checkpoint.best (a metric)",
                    stacklevel=2,
                )
        return self

    def after(self, step: int, steps: int) -> int:
        """The next step of a stage of `steps` that a checkpoint is made of."""
        return min(steps, step + self.every - step % self.every if self.every else steps)


def unmeasured(config: CheckpointConfig, stages: Sequence[Stage]) -> str | None:
    """Why `best` names a metric of evaluations that checkpoints hardly ever meet; None: they do."""
    if config.best is None or not config.best.startswith("eval/"):
        return None
    measured = [s for s in stages if s.evaluation is not None and s.evaluation.every]
    if not measured:
        return (
            f"checkpoint.best={config.best} has no effect: nothing is evaluated; set "
            "evaluation.every, or another metric"
        )
    for stage in measured:
        assert stage.evaluation is not None
        each = stage.evaluation.every
        if 0 < config.every < stage.steps <= math.lcm(config.every, each):
            return (
                f"checkpoint.best={config.best} is known of the last checkpoint of a stage only: "
                f"evaluation.every={each} meets checkpoint.every={config.every} at no step before; "
                "let one be a multiple of the other"
            )
    return None
