"""`laconic eval`: samples of a model at budgets, verdicts, metrics, tables and a report."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from launch import asks, evaluate_model
from launch.reward import columns_of, spec_of
from launch.sampling import said
from rewards.golds import check_golds, told
from samplers.selection import base as selection
from samplers.stopping import base as stopping
from samplers.types import Prompt
from trainer import changes, runfolder
from trainer.eval import findings, metric, require, sides, summary
from trainer.eval.compare import compare
from trainer.eval.folder import METRICS, Folder, open_folder, write
from trainer.eval.judging import judge
from trainer.eval.metric import Metric
from trainer.eval.metrics import Options
from trainer.eval.problems import Task
from trainer.eval.progress import Progress
from trainer.eval.require import Requirement
from trainer.eval.run import errors, measured
from trainer.eval.samples import SETTINGS
from trainer.eval.settings import EvalSettings, told_as_options
from trainer.eval.suites import Wanted
from trainer.eval.suites import task as task_of

_REST = (": more", ": what right answers cost", ": by difficulty")
"""Tables that only summary.md has."""


@dataclass(frozen=True)
class _Wanted:
    """What the command line says of everything but the model."""

    options: Options
    requirements: tuple[Requirement, ...]


def evaluate(args: argparse.Namespace) -> int:
    """Evaluate, print a table (or JSON), and keep everything in --out.

    Returns:
        1 where a requirement does not hold, else 0.

    Raises:
        ValueError: whatever is wrong with what was asked, before the model is loaded.
    """
    asked = _Wanted(_options(args), tuple(map(require.requirement, args.require)))
    _warn_idle(args)
    if args.offline:
        return _offline(args, asked)
    if (Path(args.model) / SETTINGS).is_file():
        raise ValueError(
            f"{args.model} is an evaluation and no model; to grade, measure and draw it again: "
            f"laconic eval {args.model} --offline"
        )
    tasks, settings = _tasks(args), _settings(args)
    require.check(asked.requirements, [task.name for task in tasks], settings.budgets)
    most = settings.max_samples if settings.precision else settings.samples
    _check_ks(args.k, {task.name: most or task.samples for task in tasks})
    base = _base_folder(args.baseline, tasks)
    names = [args.model, *([args.baseline] if args.baseline and base is None else [])]
    made: list[evaluate_model.Prepared] = []
    for name in names:  # a baseline is evaluated in the very same way
        made.append(evaluate_model.prepare(args, name, tasks, settings, made[0] if made else None))
    if base is not None:
        _same_caps(base, made[0].settings)
    with ExitStack() as stack:
        out = args.out
        if out is None:
            out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="laconic-eval-")))
        folder = evaluate_model.run(made[0], tasks, out)
        if len(made) > 1:
            base = evaluate_model.run(made[1], tasks, out / "baseline")
            measured(base, asked.options)
        return _finish(args, folder, base, asked, keep=args.out is not None)


def _offline(args: argparse.Namespace, asked: _Wanted) -> int:
    """Grade saved samples again, and all that follows: no model is needed."""
    folder = open_folder(args.model)
    if args.verifier:
        spec = spec_of(args.verifier, "--verifier")
        for task in folder.settings["tasks"]:
            task["verifier"] = spec
        if args.bad_golds == "refuse":
            _readable(folder, spec)
    there = [b for b in folder.settings["budgets"] if isinstance(b, int)]
    require.check(asked.requirements, folder.tasks, there)
    if args.k:  # of a run that was killed too, which eval.json does not know the end of
        _check_ks(args.k, folder.most())
    base = open_folder(args.baseline) if args.baseline else None
    if base is not None:
        _same_problems(base, folder.settings["identity"]["tasks"])
    from trainer.preflight import cpus

    with runfolder.claim(folder.path, "folder"), Progress("judging", folder.size()) as bar:
        judge(folder, again=True, workers=min(4, cpus()), progress=bar.add)
        folder.settings["graders"] = folder.graders()
        write(folder.path / SETTINGS, folder.settings)
    return _finish(args, folder, base, asked, keep=True)


def _readable(folder: Folder, verifier: Any) -> None:
    """Refuse a verifier that rejects the golds: its verdicts would replace those that are there."""
    rows = folder.problems().values()
    prompts = [
        Prompt(i, row["id"], (), row["prompt"], row["gold"], row["verifier"], row["meta"])
        for i, row in enumerate(rows)
    ]
    if bad := check_golds(prompts, verifier):
        raise ValueError(
            f"--verifier: it rejects the gold of {len(bad)} of {len(prompts)} problems; "
            f"{told(prompts, bad)}; choose another, or grade all the same with --bad-golds keep"
        )


# What was asked


def _tasks(args: argparse.Namespace) -> list[Task]:
    names = [*args.tasks, *([args.data] if args.data else [])]
    if not names:
        raise ValueError(
            "--tasks: nothing to evaluate on; give --tasks math500=FILE, --data find or --data FILE"
        )
    wanted = Wanted(
        folder=args.data_dir,
        columns=columns_of(args.columns, "{prompt: question, answer: target}"),
        verifier=spec_of(args.verifier, "--verifier") if args.verifier else None,
        problems=args.problems,
        bad_golds=args.bad_golds,
    )
    tasks = [task_of(name, wanted) for name in names]
    if len({task.name for task in tasks}) < len(tasks):
        raise ValueError(f"--tasks: {', '.join(t.name for t in tasks)}: one is there twice")
    return tasks


def _settings(args: argparse.Namespace) -> EvalSettings:
    finite = tuple(sorted(b for b in args.budgets if b is not None))
    live = asks.spec(args.stopping, "--stopping")
    if live is not None:
        _resolved("--stopping", stopping, live)
    if args.temperature == 0 and (args.precision or (args.samples or 1) > 1):
        warnings.warn(
            "--samples: at temperature 0 all samples of a problem are the same; raise the "
            "temperature (reasoners loop when greedy) or take one",
            stacklevel=2,
        )
    with told_as_options():
        return EvalSettings(
            mode=args.budget_mode,
            budgets=finite,
            samples=args.samples,
            precision=args.precision,
            max_samples=args.max_samples,
            answer_tokens=args.answer_tokens,
            seed=args.seed,
            stopping=live,
            thoughts=args.save_thoughts,
        )


def _options(args: argparse.Namespace) -> Options:
    usual = Options() if args.out or args.offline else Options(selections=(), stopping=())
    chosen, rules = usual.selections, usual.stopping
    if args.selection is not None:
        chosen = tuple(asks.spec(text, "--selection") for text in args.selection)
    if args.stopping_offline is not None:
        rules = tuple(asks.spec(text, "--stopping-offline") for text in args.stopping_offline)
    for spec in chosen:
        _resolved("--selection", selection, spec)
    for spec in rules:
        rule = _resolved("--stopping-offline", stopping, spec)
        if not stopping.offline(rule):
            name = rule.__name__.rpartition(".")[2]
            warnings.warn(
                f"--stopping-offline: {name} has no effect: saved samples do not tell what it "
                "would have done; run it with --stopping",
                stacklevel=3,
            )
    return Options(chosen, usual.ks if args.k is None else args.k, rules, args.prior)


def _resolved(option: str, kind: ModuleType, spec: Any) -> ModuleType:
    """The component that an option names."""
    try:
        module: ModuleType = kind.resolve(spec)[0]
    except ValueError as error:
        why = str(error).removeprefix("stopping: ").removeprefix("selection: ")
        raise ValueError(f"{option}: {why}") from None
    return module


def _check_ks(ks: Sequence[int] | None, samples: Mapping[str, int]) -> None:
    """A selection of k is of samples drawn without replacement."""
    for task, have in samples.items():
        if ks and max(ks) > have > 0:
            raise ValueError(
                f"--k: {max(ks)} samples cannot be drawn of the {have} of each problem of {task}; "
                f"lower it, or set --samples {max(ks)}"
            )


def _warn_idle(args: argparse.Namespace) -> None:
    """Options that change nothing beside the others."""
    mode = args.budget_mode
    cuts = mode in ("truncate", "both") and any(b is not None for b in args.budgets)
    idle = {
        f"--budget-mode {mode}": {
            "--ask": args.ask if mode in ("truncate", "effort") else None,
            "--efforts": args.efforts if mode != "effort" else None,
        },
        "--base-url": {"--dtype": args.dtype} if args.base_url else {},
        "no finite --budgets": {} if cuts else {"--stopping-offline": args.stopping_offline},
        "no --base-url": {} if args.base_url else {"--served-name": args.served_name},
    }
    if args.offline:
        names = ("tasks", "data", "problems", "samples", "stopping", "base_url", "out")
        idle = {"--offline": {f"--{n.replace('_', '-')}": getattr(args, n) for n in names}}
        idle["--offline"]["--budgets"] = any(b is not None for b in args.budgets)
    for beside, options in idle.items():
        for option, value in options.items():
            if value:
                warnings.warn(f"{option} has no effect with {beside}", stacklevel=3)


# A baseline


def _base_folder(text: str | None, tasks: Sequence[Task]) -> Folder | None:
    """The evaluation that --baseline names; None: there is none, or it is a model."""
    if text is None or not (Path(text) / SETTINGS).is_file():
        return None
    folder = open_folder(text)
    here = {t.name: f"{len(t.prompts)} problems {t.fingerprint}" for t in tasks}
    _same_problems(folder, here)
    return folder


def _same_problems(base: Folder, here: dict[str, str]) -> None:
    for task, problems in here.items():
        there = base.settings["identity"]["tasks"].get(task)
        if there != problems:
            raise ValueError(
                f"--baseline: {base.path} is of other problems: task {task} has "
                f"{there or 'none'} there, {problems} here; evaluate the baseline on the same"
            )


def _same_caps(base: Folder, here: EvalSettings) -> None:
    """Refuse what could not be compared, before it is paid for."""
    for name in sides.MUST:
        there, asked = base.settings.get(name), getattr(here, name)
        if there != asked:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"--baseline: {base.path} is of {name} {there}, and {asked} is asked for here; "
                + (f"leave {option} out" if there is None else f"set {option} {there}")
            )


# What comes of it


def _finish(
    args: argparse.Namespace, folder: Folder, base: Folder | None, asked: _Wanted, keep: bool
) -> int:
    tables = folder.tables()
    found = measured(folder, asked.options, tables)
    notes = [*findings.findings(tables, found), *folder.settings.get("server", [])]
    reached = errors(tables) if args.precision else {}
    for task, error in reached.items():
        if error > args.precision:
            notes.append(
                f"{task}: --precision {args.precision} was not reached with --max-samples "
                f"{args.max_samples}: the standard error is {error:.4f}"
            )
    if base is not None and not (base.path / METRICS).is_file():
        measured(base, asked.options)
    against = None if base is None else compare(base.path, folder.path)
    words: dict[str, Sequence[str]] = {"adherence": findings.exceeded(tables)}
    if against is not None:
        words["noninferiority"] = against.inferior()
    if args.json:
        told = {**folder.settings, "metrics": metric.as_json(found), "notes": notes}
        told |= {} if against is None else {"compared": against.as_json()}
        print(json.dumps(told, indent=1))
    else:
        print(_text(found, notes, said(folder.settings), folder.path if keep else None))
        if against is not None:
            print("\n" + against.text())
    if keep:
        _report(folder, base, found, notes, draw=not args.no_report)
    failed = require.failures(asked.requirements, found, words)
    for line in failed:
        print(f"laconic: required: {line}", file=sys.stderr)
    return 1 if failed else 0


def _text(found: Mapping[str, Metric], notes: Sequence[str], used: str, kept: Path | None) -> str:
    """The main tables; all else is in summary.md."""
    blocks = [block for block in summary.blocks(found) if not block.title.endswith(_REST)]
    parts = [f"{block.title}\n{summary.aligned(block.cells)}" for block in blocks]
    tail = [*(f"finding: {line}" for line in notes), *([f"kept in {kept}"] if kept else [])]
    return "\n\n".join([*parts, "\n".join([summary.NOTE, f"Sampled at {used}.", *tail])])


def _report(
    folder: Folder,
    base: Folder | None,
    found: Mapping[str, Metric],
    notes: Sequence[str],
    draw: bool,
) -> None:
    """summary.md, environment.json, report.html and plots/."""
    path = folder.path
    text = f"{summary.markdown(found, notes)}\nSampled at {said(folder.settings)}.\n"
    write(path / "summary.md", text)
    write(path / "environment.json", changes.versions())
    if not draw:
        return
    from trainer.report import evaluation

    both = [path] if base is None else [path, base.path]
    evaluation.write(both, path / "report.html", None if base is None else base.path)
