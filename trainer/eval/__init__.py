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
        asks: how it is told of a budget (`samplers.budget.Asks`); None: as its folder says.
        wanted: of all tasks (`trainer.eval.suites.Wanted`).
        settings: fields of `trainer.eval.settings.EvalSettings`. Temperature, top_p, top_k and
            max_tokens are otherwise those of its generation_config.json; see README.md.

    Raises:
        ValueError: as `trainer.eval.run.fill`.
    """
    from samplers import seam
    from samplers.budget import Asks
    from samplers.render import ThinkingConfig
    from samplers.rollout import RolloutWorker
    from trainer.eval import defaults, run
    from trainer.eval.collect import ROUNDS
    from trainer.eval.settings import EvalSettings
    from trainer.eval.suites import Wanted, task
    from trainer.export import trained
    from trainer.modelfolder import ModelFolder, fetch, fingerprint

    asked, chosen = EvalSettings(**settings), Wanted(**(wanted or {}))
    found = [task(name, chosen) for name in tasks]
    name, spec = seam.split(engine or "torch")
    config = seam.find("samplers.engines", name).Config(**spec)
    markers = None if thinking == "none" else ThinkingConfig(**(thinking or {}))
    folder = ModelFolder(fetch(model))
    of_folder = {
        field: value
        for field, value in defaults.told(folder).items()
        if field not in settings and (field == "max_tokens" or asked.temperature)
    }
    worker = RolloutWorker.from_pretrained(str(folder.path), config, markers)
    bound = {"model_files": fingerprint(folder.path), "engine": name, "dtype": config.dtype}
    about = {"model": model, "identity": bound}
    said = trained.told(folder.path, worker.renderer) if asks is None else Asks(**asks)
    if "max_tokens" not in settings:
        most = defaults.room(found, asked, said, worker.renderer, worker.engine.context)
        of_folder["max_tokens"] = min(most, of_folder.get("max_tokens", most))
    asked, room = asked.model_copy(update=of_folder), ROUNDS * config.slots
    made = run.evaluate(worker, found, asked, Path(out), asks=said, about=about, room=room)
    return run.measured(made)
