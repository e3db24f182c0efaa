"""The `laconic` command. Imports nothing heavy: each command imports what it needs.

Exit codes: 0 done, 1 failed, 2 the user's mistake (one line each on stderr), 130 interrupted, and
143 where a SIGTERM ended a run.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import launch.arguments.common
import launch.arguments.compare
import launch.arguments.doctor
import launch.arguments.evaluate
import launch.arguments.export
import launch.arguments.generate
import launch.arguments.launch
import launch.arguments.resume
import launch.arguments.reward
import launch.arguments.serve
from launch import values
from launch.signals import Terminated, stoppable

SETTINGS = "a.b=c: change any field, e.g. optim.lr=1e-3, stages.0.steps=5"


def train(args: argparse.Namespace) -> int:
    """Train a recipe."""
    from launch.run import train as run

    print(run(args.recipe, *args.settings, address=args.address, profile=args.profile))
    return 0


def resume(args: argparse.Namespace) -> int:
    """Go on with a run that stopped, from its newest checkpoint."""
    from launch.resume import resume as run

    print(run(args.folder, *args.settings, address=args.address))
    return 0


def submit(args: argparse.Namespace) -> int:
    """Train a recipe at a place: on this machine, in a Ray cluster, on Slurm, on Kubernetes."""
    from launch.submit import launch as run

    return run(args)


def job(args: argparse.Namespace) -> int:
    """Look after a launched job."""
    from launch.submit import job as run

    return run(args, args.what)


def sweep(args: argparse.Namespace) -> int:
    """Arms x seeds in parallel one-core processes, one table at the end. Resumable."""
    from launch.sweep import sweep as run

    arms = [text for text in args.arms if "=" not in text]
    settings = [text for text in args.arms if "=" in text]
    return run(
        arms, args.seeds, settings, jobs=args.jobs, output=args.output, options=_options(args)
    )


def plan(args: argparse.Namespace) -> int:
    """Resolve a recipe and say what it would run where, whether it fits and what it costs; starts
    nothing. Of a run's folder also what it took."""
    from launch import throughputs
    from launch.hardware import described
    from launch.plan import plan as make

    more = [node for nodes in args.node for node in nodes]
    hardware = described(args.nodes, args.gpus_per_node, args.gpu_memory, more)
    table = throughputs.read(args.throughputs)
    made = make(args.recipe, args.settings, hardware, table, args.response_tokens)
    print(made.json() if args.json else made)
    for line in made.deficits:
        print(f"laconic: does not fit: {line}", file=sys.stderr)
    return 1 if made.deficits else 0


def evaluate(args: argparse.Namespace) -> int:
    """Accuracy of a model at thinking budgets."""
    from launch.evaluate import evaluate as run

    return run(args)


def compare(args: argparse.Namespace) -> int:
    """Two evaluations of the same problems: what the second gains and loses."""
    from launch.compare import compare as run

    return run(args)


def generate(args: argparse.Namespace) -> int:
    """Generate with a thinking budget, as training and evaluation do."""
    from launch.generate import generate as run

    return run(args)


def serve(args: argparse.Namespace) -> int:
    """Serve a model by an engine's own server, so that thinking budgets hold."""
    from launch.serve import serve as run

    return run(args)


def export(args: argparse.Namespace) -> int:
    """Write a model folder that obeys budgets in plain engines."""
    from launch.export import export as run

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
    """Check that this machine, or every node of a cluster, has what is needed."""
    from launch.doctor import doctor as check

    return check(args.recipe, args.settings, address=args.address, deep=args.deep)


def recipes(args: argparse.Namespace) -> int:
    """List the recipes that ship."""
    from trainer import config

    print("\n".join(config.shipped()))
    return 0


class _Parser(argparse.ArgumentParser):
    """Mistakes in one line, without the list of all options on top of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = _Parser(
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
        one.add_argument("settings", nargs="*", default=[], metavar="a.b=c", help=SETTINGS)
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
            launch.arguments.launch.address(one)
        else:
            launch.arguments.common.cluster(one)
            launch.arguments.common.cost(one)
    launch.arguments.resume.add(add("resume", resume))
    one = add("launch", submit)
    one.add_argument("recipe", help="a recipe that ships (see `laconic recipes`), or a file")
    one.add_argument("settings", nargs="*", default=[], metavar="a.b=c", help=SETTINGS)
    launch.arguments.launch.add(one)
    for what, text in launch.arguments.launch.JOBS.items():
        one = commands.add_parser(what, help=text, description=text, allow_abbrev=False)
        launch.arguments.launch.job(one, what)
        one.set_defaults(run=job, what=what)
    one = add("sweep", sweep)
    one.add_argument("arms", nargs="+", metavar="RECIPE | a.b=c", help="arms; " + SETTINGS)
    one.add_argument("--seeds", type=values.seeds, default=(0,), help="0-4, 3 or 0,2,5 (default 0)")
    one.add_argument("--jobs", type=values.count, help="processes at once (default: cores)")
    one.add_argument("--output", help="folder of runs, logs and report.html")
    launch.arguments.common.report(one)
    launch.arguments.evaluate.add(add("eval", evaluate))
    launch.arguments.compare.add(add("compare", compare))
    launch.arguments.generate.add(add("generate", generate))
    launch.arguments.serve.add(add("serve", serve))
    launch.arguments.export.add(add("export", export))
    launch.arguments.reward.add(add("reward", reward))
    one = add("report", report)
    one.add_argument("runs", nargs="+", type=Path, metavar="FOLDER", help="runs, or evaluations")
    one.add_argument("--out", type=Path, default=Path("report.html"), help="the page to write")
    launch.arguments.common.report(one)
    launch.arguments.doctor.add(add("doctor", doctor))
    add("recipes", recipes)
    return main


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arms and settings may also stand after options, where argparse alone does not take them;
    what stands after -- is the engine's, where there is one to hand it to."""
    arguments, words, extra = parser(), list(sys.argv[1:] if argv is None else argv), []
    if words[:1] == ["serve"] and "--" in words:
        at = words.index("--")
        words, extra = words[:at], words[at + 1 :]
    args, rest = arguments.parse_known_args(words)
    args.extra = extra
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
        with stoppable(), _plain_warnings():
            return args.run(args)
    except KeyboardInterrupt as interrupt:
        print("laconic: interrupted", file=sys.stderr)
        terminated = isinstance(interrupt, Terminated) and args.run in (train, resume, submit)
        return 143 if terminated else 130
    except SystemExit as stop:  # a run ended as it was asked to, and has said so
        return stop.code if isinstance(stop.code, int) else 1
    except BrokenPipeError:  # `laconic plan ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except RuntimeError as error:
        from trainer.faults import Unmended

        if not isinstance(error, Unmended):
            raise
        print(f"laconic: {error}", file=sys.stderr)
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
    code = main()
    if code > 128:  # everything is closed; Ray crashes at times if it is freed half started
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


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
