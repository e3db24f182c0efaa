"""Evaluation at budgets: estimators, statistics, the code that serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from trainer.eval.metric import Metric


def evaluate(
    model: str,
    tasks: Sequence[str],
    out: Path | str,
    *,
    engine: Mapping[str, Any] | None = None,
    thinking: Mapping[str, str] | Literal["none"] | None = None,
    asks: Mapping[str, Any] | None = None,
    wanted: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Metric]:
    """What `laconic eval` does, for a notebook: metrics of a model, by name.

        evaluate("base/find", ["find"], "runs/e1", budgets=(0, 16), wanted={"problems": 64})

    Args:
        tasks: as --tasks: names, NAME=FILE, files.
        out: folder of samples; what is there is not made again.
        engine: settings of an engine, as {"name": "vllm"}; None: the embedded one.
        thinking: markers {"start": ..., "end": ...}; None: <think> and </think>; "none".
        asks: how it is told of a budget (`samplers.budget.Asks`); None: by its chat template.
        wanted: of all tasks (`trainer.eval.suites.Wanted`).
        settings: fields of `trainer.eval.settings.EvalSettings`.

    Raises:
        ValueError: as `trainer.eval.run.fill`.
    """
    from samplers import seam
    from samplers.budget import Asks
    from samplers.render import ThinkingConfig
    from samplers.rollout import RolloutWorker
    from trainer.eval import run
    from trainer.eval.collect import ROUNDS
    from trainer.eval.settings import EvalSettings
    from trainer.eval.suites import Wanted, task
    from trainer.modelfolder import fetch

    asked, chosen = EvalSettings(**settings), Wanted(**(wanted or {}))
    found = [task(name, chosen) for name in tasks]
    name, spec = seam.split(engine or "torch")
    config = seam.find("samplers.engines", name).Config(**spec)
    markers = None if thinking == "none" else ThinkingConfig(**(thinking or {}))
    worker = RolloutWorker.from_pretrained(str(fetch(model)), config, markers)
    about = {"model": model, "identity": {"model": model, "engine": name, "dtype": config.dtype}}
    said = None if asks is None else Asks(**asks)
    room = ROUNDS * config.slots
    folder = run.evaluate(worker, found, asked, Path(out), asks=said, about=about, room=room)
    return run.measured(folder)
