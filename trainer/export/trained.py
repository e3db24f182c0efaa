"""How a model is told of a budget: as its export says, as its run told it, or by its template."""

from __future__ import annotations

from pathlib import Path

from samplers.budget import Asks, asks_of
from samplers.budgets.base import Asking
from samplers.render import Renderer
from trainer import export
from trainer.export import ways
from trainer.export.source import stage_of


def told(model: Path, renderer: Renderer) -> Asks:
    """How the model in a folder is asked, where nobody says.

    Raises:
        ValueError: a budget_config.json or a run's config.yaml that cannot be read.
    """
    return export.asks(model) or asks(model) or asks_of(renderer)


def asks(model: Path) -> Asks | None:
    """As its training evaluated it; None for a model that is in no run's checkpoint.

    Raises:
        ValueError: the run's config.yaml cannot be read.
    """
    stage = stage_of(model)
    if stage is None:
        return None
    own = ways.of_stage(stage)
    ends = {"close": own.close, "after_close": own.after_close}

    def whole(asking: Asking) -> Asking:
        return asking.model_copy(update=ends)

    return Asks(
        default=whole(own.default),
        budget=None if own.budget is None else whole(own.budget),
        efforts={name: whole(asking) for name, asking in own.efforts.items()},
    )
