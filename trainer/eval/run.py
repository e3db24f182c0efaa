"""Evaluate: collect samples, judge them, and where a precision is wanted go on until it is met."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewards.grader import load
from samplers.budget import Asks, asks_of
from samplers.check import check_plan
from samplers.render import Renderer
from trainer.eval import metric, metrics, statistics
from trainer.eval.collect import Store, Worker, collect, lots, shown_of
from trainer.eval.folder import METRICS, Folder, write
from trainer.eval.judging import judge
from trainer.eval.metric import Metric
from trainer.eval.metrics import Options
from trainer.eval.problems import Task, posed
from trainer.eval.progress import Progress
from trainer.eval.samples import SETTINGS
from trainer.eval.settings import EvalSettings, Way, identity, told_as_options, ways
from trainer.eval.table import Table

GROWTH = 2.0
"""A round has at most so many times the samples of all before it."""
LEAST = 4
"""Samples that a precision is first judged by: two that agree look as if nothing ever varied."""


def evaluate(
    worker: Worker, tasks: Sequence[Task], settings: EvalSettings, out: Path, **more: Any
) -> Folder:
    """`fill` with a worker that is there: an engine's (`samplers.rollout.RolloutWorker`), or a
    server's (`samplers.served`)."""
    holder = getattr(worker, "engine", worker)
    context = getattr(holder, "context", None)
    return fill(
        lambda: worker, worker.renderer, tasks, settings, out, **{"context": context, **more}
    )


def fill(
    start: Callable[[], Worker],
    renderer: Renderer,
    tasks: Sequence[Task],
    settings: EvalSettings,
    out: Path,
    *,
    context: int | None = None,
    asks: Asks | None = None,
    room: int = 1024,
    about: Mapping[str, Any] | None = None,
    graders: int | None = None,
) -> Folder:
    """Samples and verdicts of `tasks` in the folder `out`; what is there is not made again.

    Args:
        start: the worker; not called where nothing is left to make.
        renderer: that of the worker.
        context: longest prompt and response that the model takes; None: any.
        asks: how the model is told of a budget; None: by its chat template's own variables.
        room: rollouts under way at once; four times the engine's slots never starve it.
        about: what else is known of the model and the engine; it stands in eval.json, and what
            lies in its `identity` must be the same where the folder is gone on with.
        graders: processes of verifiers that may hang; None: two.

    Raises:
        ValueError: no problems; a budget that does not fit or that the model is not told of; a
            folder that was made with other settings.
    """
    asks = asks_of(renderer) if asks is None else asks
    found = ways(settings, asks, renderer.thinking is not None)
    check(renderer, tasks, found, context)
    described = describe(settings, tasks, found, asks, about or {})
    worker: Worker | None = None
    with Store(out, described, tasks) as store:
        counts = {task.name: settings.samples or task.samples for task in tasks}
        if settings.precision is not None:
            least = min(LEAST, settings.max_samples)
            counts = {name: max(least, count) for name, count in counts.items()}
        while True:
            done, missing = _state(store, found, counts)
            if missing:
                worker = worker or start()
                shown = None if settings.thoughts else shown_of(tasks, settings.shown)
                work = lots(store, found, settings, counts)
                with Progress("sampling", done + missing, done) as bar:
                    collect(store, worker, work, room, shown, bar.add)
            with Progress("judging", len(store.done)) as bar:
                judge(store.folder, workers=graders, progress=bar.add)
            more = _more(store.folder, settings, counts)
            if not more:
                same = len(set(counts.values())) == 1
                store.settings["samples"] = next(iter(counts.values())) if same else counts
                write(out / SETTINGS, store.settings)
                return store.folder
            counts |= more


def describe(
    settings: EvalSettings,
    tasks: Sequence[Task],
    found: Sequence[Way],
    asks: Asks,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """What eval.json says."""
    used = set[str]()
    if settings.mode != "truncate":
        used = {"efforts" if settings.mode == "effort" else "budget"}
    said = asks.model_dump(mode="json", exclude_defaults=True, include=used)
    problems = {t.name: f"{len(t.prompts)} problems {t.fingerprint}" for t in tasks}
    bound = {
        **identity(settings),
        **about.get("identity", {}),
        "asks": said,
        "tasks": problems,
    }
    return {
        "version": 1,
        **{name: value for name, value in about.items() if name != "identity"},
        **identity(settings),
        "samples": settings.samples,
        "precision": settings.precision,
        "tasks": [task.described for task in tasks],
        "graders": {task.name: load(task.verifier).name for task in tasks},
        "asked": [way.described for way in found],
        "asks": said,
        "identity": bound,
    }


def check(
    renderer: Renderer, tasks: Sequence[Task], found: Sequence[Way], context: int | None
) -> None:
    """Refuse what cannot be asked, before anything is generated: every prompt is rendered once, and
    the longest of each task in every way.

    Raises:
        ValueError: no problems, a prompt beyond the model's context, a chat template that ignores
            what it is told.
    """
    for task in tasks:
        if not task.prompts:
            raise ValueError(f"task {task.name}: there is nothing to evaluate on; got 0 problems")
        longest, most = task.prompts[0], -1
        for prompt in task.prompts:
            ids = renderer.render(prompt, found[0].plan)
            with told_as_options():
                check_plan(found[0].plan, prompt, ids, renderer, context)
            longest, most = (prompt, len(ids)) if len(ids) > most else (longest, most)
        plain = renderer.render(posed(longest, 0), found[0].plan)
        for way in found[1:]:
            ids = renderer.render(posed(longest, 0), way.plan)
            with told_as_options():
                check_plan(way.plan, longest, ids, renderer, context)
            # An effort may be the template's default; one that it ignores was refused above.
            said = way.plan.prefill or way.plan.template
            if not said and np.array_equal(ids, plain):
                raise ValueError(
                    f"'{way.name}' would have no effect: the prompt is the same without it; say "
                    "how this model is asked with --ask or --efforts"
                )


def _state(store: Store, found: Sequence[Way], counts: Mapping[str, int]) -> tuple[int, int]:
    """How many of the wanted samples are there, and how many are not."""
    total = sum(counts[task.name] * len(task.prompts) for task in store.tasks) * len(found)
    done = sum(sample < counts[task] for task, _, sample, _ in store.done)
    return done, total - done


def _more(folder: Folder, settings: EvalSettings, counts: Mapping[str, int]) -> dict[str, int]:
    """Samples that tasks need for the precision that is wanted; none where it is reached."""
    if settings.precision is None:
        return {}
    more = {}
    for task, error in errors(folder.tables()).items():
        have = counts[task]
        if error > settings.precision and have < settings.max_samples:
            need = 1 + (have - 1) * (error / settings.precision) ** 2
            most = min(settings.max_samples, int(GROWTH * have))
            more[task] = max(have + 1, min(most, int(np.ceil(need))))
    return more


def measured(
    folder: Folder, options: Options | None = None, tables: Sequence[Table] | None = None
) -> dict[str, Metric]:
    """Metrics of what is there (`tables`, if they were made); they are written to metrics.json.

    Raises:
        ValueError: there are no samples; as `Folder.tables`.
    """
    tables = folder.tables() if tables is None else tables
    if not tables:
        raise ValueError(f"{folder.path} holds no samples; collect them first")
    found = metrics.measure(tables, options)
    write(folder.path / METRICS, {"metrics": metric.as_json(found)})
    return found


def errors(tables: Sequence[Table]) -> dict[str, float]:
    """Of each task, the largest standard error on these very problems: of the accuracy at any
    budget, uncut, and in any way of asking. NaN where a problem has one sample only."""
    worst: dict[str, float] = {}
    for table in tables:
        for j in range(len(table.budgets) + 1):
            correct_MS = table.correct_MSJ[..., j]
            known_M = (~np.isnan(correct_MS)).sum(axis=1) > 1
            error = statistics.fixed_set_error(correct_MS[known_M]) if known_M.any() else np.nan
            worst[table.task] = float(np.fmax(worst.get(table.task, np.nan), error))
    return worst
