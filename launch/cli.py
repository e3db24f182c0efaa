"""The `laconic` command. Imports nothing heavy: each command imports what it needs.

Exit codes: 0 done, 1 failed, 2 the user's mistake (one line each on stderr), 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launch import values

SETTINGS = "a.b=c: change any field, e.g. optim.lr=1e-3, stages.0.steps=5"


def train(args: argparse.Namespace) -> int:
    """Train a recipe."""
    from launch.run import train as run

    print(run(args.recipe, *args.settings, profile=args.profile))
    return 0


def sweep(args: argparse.Namespace) -> int:
    """Arms x seeds in parallel one-core processes, one table at the end. Resumable."""
    from launch.sweep import sweep as run

    arms = [text for text in args.arms if "=" not in text]
    settings = [text for text in args.arms if "=" in text]
    return run(
        arms, args.seeds, settings, jobs=args.jobs, output=args.output, options=_options(args)
    )


def plan(args: argparse.Namespace) -> int:
    """Resolve a recipe and say what it would run where, and whether it fits; starts nothing."""
    from launch.hardware import described
    from launch.plan import plan as make

    hardware = described(args.nodes, args.gpus_per_node, args.gpu_memory)
    made = make(args.recipe, args.settings, hardware)
    print(made.json() if args.json else made)
    for line in made.deficits:
        print(f"laconic: does not fit: {line}", file=sys.stderr)
    return 1 if made.deficits else 0


def evaluate(args: argparse.Namespace) -> int:
    """Accuracy of a model at thinking budgets."""
    from launch.evaluate import evaluate as run

    return run(args)


def generate(args: argparse.Namespace) -> int:
    """Generate with a thinking budget, as training and evaluation do."""
    from launch.generate import generate as run

    return run(args)


def reward(args: argparse.Namespace) -> int:
    """Grade responses, audit a verifier against another, or measure its speed."""
    from launch.reward import audit, grade
    from launch.reward_bench import bench

    return {"grade": grade, "audit": audit, "bench": bench}[args.what](args)


def report(args: argparse.Namespace) -> int:
    """Write report.html of finished runs and print their table."""
    from launch.sweep import summarise

    summarise(args.runs, args.out, _options(args))
    return 0


def _options(args: argparse.Namespace) -> Any:
    from trainer.report.options import Options

    return Options(args.against, args.reach, args.at_tokens, args.show)


def doctor(args: argparse.Namespace) -> int:
    """Check that this machine has what the library needs."""
    from launch.doctor import doctor as check

    return check(deep=args.deep)


def recipes(args: argparse.Namespace) -> int:
    """List the recipes that ship."""
    from trainer import config

    print("\n".join(config.shipped()))
    return 0


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a model folder, base/find, or a hub name")
    parser.add_argument("--temperature", type=values.temperature, default=1.0, help="0 is greedy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--max-tokens", type=values.count, default=192, help="cap of a whole response"
    )
    parser.add_argument("--answer-tokens", type=values.count, help="cap of the answer")
    _marker_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _marker_arguments(parser: argparse.ArgumentParser) -> None:
    markers = parser.add_mutually_exclusive_group()
    markers.add_argument(
        "--markers",
        nargs=2,
        metavar=("START", "END"),
        default=["<think>", "</think>"],
        help="of thoughts (default: <think> </think>)",
    )
    markers.add_argument("--no-thinking", action="store_true", help="all of a response is answer")


def _reward_arguments(parser: argparse.ArgumentParser) -> None:
    whats = parser.add_subparsers(dest="what", required=True, metavar="grade | audit | bench")
    about = {
        "grade": "Verdicts of a file's responses: a table, and with --out the rows with verdicts.",
        "audit": "Two verifiers over the same responses: likely false accepts and rejects.",
        "bench": "Speed of a verifier on this machine, in verdicts per second and core.",
    }
    for what, text in about.items():
        one = whats.add_parser(what, help=text, description=text, allow_abbrev=False)
        kind = "JSONL, JSON or Parquet of golds and responses, or a run's folder"
        optional: dict[str, Any] = {"nargs": "?"} if what == "bench" else {}
        one.add_argument("file", type=Path, metavar="FILE", help=kind, **optional)
        text = "exact, '{name: math, rounded: 0}', my_file:fn (default: the run's, or math)"
        one.add_argument("--verifier", metavar="SPEC", help=text)
        text = "'{response: output, answer: target}', answer is the gold (default: usual names)"
        one.add_argument("--columns", metavar="MAP", help=text)
        _marker_arguments(one)
        text = "the prompt had opened the thought: without an end marker there is no answer"
        one.add_argument("--opened", action="store_true", help=text)
        one.add_argument(
            "--workers", type=values.count, metavar="N", help="processes (default: cores)"
        )
        text = "that one answer may take (default: 10, or the verifier's own)"
        one.add_argument("--deadline", type=values.seconds, metavar="SECONDS", help=text)
        one.add_argument("--json", action="store_true", help="print JSON")
        if what == "bench":
            text = "verdicts to time (default: 2000)"
            one.add_argument("--items", type=values.count, default=2000, metavar="N", help=text)
            text = "also with this share of answers that never end, as 0.01"
            one.add_argument(
                "--hang-share", type=values.share, default=0.0, metavar="SHARE", help=text
            )
            continue
        rows = "rows and verdicts" if what == "grade" else "rows on which they disagree"
        text = f"{rows} as JSONL, in this file"
        one.add_argument("--out", type=Path, metavar="FILE", help=text)
        if what == "audit":
            one.add_argument("--against", required=True, metavar="SPEC", help="the second verifier")
            text = "findings of each kind (default: 10)"
            one.add_argument("--show", type=values.count, default=10, metavar="N", help=text)


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    text = "compare all others with this arm (default: all pairs; of many arms, the first)"
    parser.add_argument("--against", metavar="ARM", help=text)
    text = "tell the generated tokens until the area under caps is this, as 0.7"
    parser.add_argument("--reach", type=values.area, metavar="AREA", help=text)
    text = "compare area, accuracy and thinking tokens after so many generated tokens"
    parser.add_argument("--at-tokens", type=values.count, metavar="N", help=text)
    text = "more metrics of evaluations, as think_tokens/sd,truncated"
    parser.add_argument("--show", type=values.metrics, default=(), metavar="METRIC,...", help=text)


def _cluster_arguments(parser: argparse.ArgumentParser) -> None:
    text = "plan for a cluster of so many nodes (default: this machine as it is)"
    parser.add_argument("--nodes", type=values.count, metavar="N", help=text)
    parser.add_argument("--gpus-per-node", type=int, metavar="M", help="GPUs of a node; 0: none")
    parser.add_argument(
        "--gpu-memory", type=values.memory, metavar="80GB", help="memory of one GPU"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = argparse.ArgumentParser(
        "laconic", description="RL post-training for efficient reasoners.", allow_abbrev=False
    )
    commands = main.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        text = run.__doc__
        one = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        one.set_defaults(run=run)
        return one

    for name, run in (("train", train), ("plan", plan)):
        one = add(name, run)
        one.add_argument("recipe", help="a recipe that ships (see `laconic recipes`), or a file")
        one.add_argument("settings", nargs="*", metavar="a.b=c", help=SETTINGS)
        if name == "train":
            text = "trace the first STEPS steps (5) into RUN/trace.json, for ui.perfetto.dev"
            one.add_argument(
                "--profile",
                nargs="?",
                type=values.steps,
                const=5,
                default=0,
                metavar="STEPS",
                help=text,
            )
        else:
            _cluster_arguments(one)
    one = add("sweep", sweep)
    one.add_argument("arms", nargs="+", metavar="RECIPE | a.b=c", help="arms; " + SETTINGS)
    one.add_argument("--seeds", type=values.seeds, default=(0,), help="0-4, 3 or 0,2,5 (default 0)")
    one.add_argument("--jobs", type=values.count, help="processes at once (default: cores)")
    one.add_argument("--output", help="folder of runs, logs and report.html")
    _report_arguments(one)
    one = add("eval", evaluate)
    _model_arguments(one)
    one.add_argument("--data", required=True, help="a dataset file, or a task (find)")
    one.add_argument("--columns", help="of the file: '{prompt: question, answer: target}'")
    one.add_argument("--budgets", type=values.budgets, default=(None,), help="0,8,16,inf")
    one.add_argument("--problems", type=values.count, default=256)
    one.add_argument("--samples", type=values.count, default=1, help="per problem and budget")
    one.add_argument("--verifier", default="exact")
    one.add_argument("--out", type=Path, help="folder for rows and figures")
    one = add("generate", generate)
    _model_arguments(one)
    one.add_argument("prompt", help="one user message")
    one.add_argument(
        "--thinking-budget", type=values.budget, help="tokens, 0 for none of it, or none"
    )
    one.add_argument("--samples", type=values.count, default=1)
    _reward_arguments(add("reward", reward))
    one = add("report", report)
    one.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    one.add_argument("--out", type=Path, default=Path("report.html"), help="the page to write")
    _report_arguments(one)
    add("doctor", doctor).add_argument("--deep", action="store_true", help="also start Ray")
    add("recipes", recipes)
    return main


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arms and settings may also stand after options, where argparse alone does not take them."""
    arguments = parser()
    args, rest = arguments.parse_known_args(argv)
    takes = next((name for name in ("settings", "arms") if name in args), "")
    unknown = [text for text in rest if text[:1] == "-" or not takes]
    if unknown:
        arguments.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        setattr(args, takes, [*getattr(args, takes), *rest])
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        args = _parse(argv)
    except SystemExit as stop:  # argparse: 0 after --help, 2 after a mistake
        return stop.code if isinstance(stop.code, int) else 2
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if os.getcwd() not in sys.path:  # people's own modules; last, so that they shadow nothing
        sys.path.append(os.getcwd())
    try:
        with _stoppable(), _plain_warnings():
            return args.run(args)
    except KeyboardInterrupt:
        print("laconic: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `laconic plan ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ValueError as error:
        from launch import mistakes

        if not mistakes.told(error) and type(error).__name__ != "ValidationError":
            raise
        for line in mistakes.text(error).splitlines():
            print(f"laconic: {line}", file=sys.stderr)
        return 2


def run() -> None:
    """Console entry point: `python -m launch.cli` and `laconic`."""
    sys.exit(main())


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM leaves as cleanly as Ctrl-C does."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: somebody else owns the signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Our warnings as one line; a library's keep their place in the code."""

    def show(message: Any, category: Any, filename: str, *rest: Any, **more: Any) -> None:
        if category is UserWarning:
            print(f"laconic: warning: {message}", file=sys.stderr)
        else:
            before(message, category, filename, *rest, **more)

    before = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


if __name__ == "__main__":
    run()
