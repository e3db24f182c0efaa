"""`laconic reward grade|audit`: verdicts on responses that already exist, and who disagrees."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from launch import reward_tables as tables
from rewards.grader import Item, Spec, load
from rewards.service.pool import VerifierPool
from rewards.verdict import Verdict
from rewards.verify import context
from samplers import responses, seam
from samplers.render import ThinkingConfig
from samplers.responses import Dump, Response, ResponseColumns, Thinking
from trainer import components, foreign

if TYPE_CHECKING:
    from rewards.audit import Audit, Finding, Kind

DEFAULT = "math"
CALLS = 1024
"""Items under way at once, each a call of its own: the pool serves calls in turn, so the items of
larger ones would all be done last."""


def grade(args: argparse.Namespace) -> int:
    """Grade every response of the file, write the rows with verdicts to --out, print a table."""
    spec = verifier(args)
    dump = read(args)
    _heed_rows(spec, dump, args.file)
    done: list[Verdict] = []
    with _writer(args.out, args.file) as out, _pool(spec, args) as pool:
        start = time.perf_counter()
        try:
            with closing(graded(pool, items(dump))) as verdicts:
                for response, verdict in zip(dump.responses, verdicts, strict=True):
                    done.append(verdict)
                    if out:
                        row = _row(dump, response)
                        out.write(json.dumps(row | {"verdict": plain(asdict(verdict))}) + "\n")
                    _progress(len(done), len(dump.responses))
        finally:  # also after Ctrl-C: what was graded is worth telling
            seconds = time.perf_counter() - start
            result = _summary(dump, done, pool, seconds)
            print(json.dumps(plain(result), indent=1) if args.json else tables.grades(result))
    return 0


def audit(args: argparse.Namespace) -> int:
    """Grade with two verifiers; print where they differ, and which is likely wrong there."""
    from rewards.audit import Case
    from rewards.audit import audit as compare

    specs = [verifier(args), spec_of(args.against, "--against")]
    dump = read(args)
    asked = items(dump)
    sides: list[list[Verdict]] = [[], []]
    timing: list[dict[str, Any]] = []
    with _writer(args.out, args.file) as out:
        try:
            for spec, side in zip(specs, sides, strict=True):  # neither slows the other down
                _ask(spec, asked, args, side, timing)
        finally:
            cases = [
                Case(dump.name(response), response.answer, item[1], first, second)
                for response, item, first, second in zip(
                    dump.responses, asked, *sides, strict=False
                )
            ]
            found = compare(cases)
            if out:
                _write_findings(out, dump, found)
            if cases:  # none where the second grader was not reached
                result = _differences(found, timing, args.show)
                told = json.dumps(plain(result), indent=1)
                print(told if args.json else tables.differences(result))
    return 0


def _ask(
    spec: Spec,
    asked: Sequence[Item],
    args: argparse.Namespace,
    done: list[Verdict],
    timing: list[dict[str, Any]],
) -> None:
    """Add the verdicts of one grader to `done` as they come, and its timing in any case."""
    with _pool(spec, args) as pool:
        start = time.perf_counter()
        try:
            with closing(graded(pool, asked)) as verdicts:
                for verdict in verdicts:
                    done.append(verdict)
                    _progress(len(done), len(asked))
        finally:
            timing.append(_timing(pool, len(done), time.perf_counter() - start))


# What both read


def spec_of(text: str, option: str) -> str | dict[str, Any]:
    """A verifier as it is written on the command line, known to exist.

    Raises:
        ValueError: no YAML, or no such verifier.
    """
    try:
        spec = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(
            f"{option}: {text!r} is no YAML ({' '.join(str(error).split())[:80]}); write a name, "
            "'{name: math, rounded: 0}' or my_pkg.my_file:fn"
        ) from None
    if not isinstance(spec, str | dict) or not spec:
        raise ValueError(
            f"{option}: {text!r} names no verifier; write a name, '{{name: math, rounded: 0}}' or "
            "my_pkg.my_file:fn"
        )
    components.check("verifier", "rewards.verifiers", spec)
    return spec


def columns_of(text: str | None, example: str) -> dict[str, Any]:
    """The map of columns that --columns gives.

    Raises:
        ValueError: no YAML, or no map.
    """
    try:
        columns = yaml.safe_load(text) if text else {}
    except yaml.YAMLError:
        columns = None
    if not isinstance(columns, dict):
        raise ValueError(f"--columns: {text!r} is no map of columns; write '{example}'")
    return columns


def verifier(args: argparse.Namespace) -> str | dict[str, Any]:
    """That of --verifier, else of the run whose folder is graded, else math."""
    config = args.file / "config.yaml" if args.file else None
    if args.verifier is None and config and config.is_file():
        if told := foreign.code(args.file):
            warnings.warn(told, stacklevel=2)
        stages = yaml.safe_load(config.read_text(encoding="utf-8")).get("stages") or [{}]
        spec: str | dict[str, Any] = stages[-1].get("verifier", DEFAULT)
        components.check("verifier", "rewards.verifiers", spec)
        return spec
    return spec_of(args.verifier or DEFAULT, "--verifier")


def read(args: argparse.Namespace, needed: bool = True) -> Dump:
    """The file with its answers cut as --markers says.

    Raises:
        ValueError: whatever is wrong with file or columns, in one line.
    """
    try:
        named = ResponseColumns(**columns_of(args.columns, "{response: a, answer: b}"))
    except ValidationError as error:
        raise ValueError(components.explain(error, ResponseColumns, "--columns")) from None
    start, end = args.markers
    markers = None if args.no_thinking else ThinkingConfig(start=start, end=end)
    thinking = Thinking(markers, args.opened)
    dump = responses.load(args.file, named, thinking, needed)
    if needed and not dump.responses:
        raise ValueError(f"{args.file}: column '{dump.column}' holds no response in any row")
    if markers and not args.opened and (bare := responses.never_opened(dump.responses, markers)):
        warnings.warn(
            f"responses close thoughts that the prompt had opened, and {bare} never close theirs: "
            "they are graded whole; add --opened to call them unanswered",
            stacklevel=2,
        )
    return dump


def _heed_rows(spec: Spec, dump: Dump, path: Path) -> None:
    """Say so where rows ask for another verifier than they get, or lack what it may read."""
    name, _ = seam.split(spec)
    if path.is_dir() and load(spec).reads != frozenset():
        warnings.warn(
            f"a run's samples keep no columns of its data, and {name} may read some: answers that "
            "it then cannot judge are unknown",
            stacklevel=2,
        )
    other = next((p for p in dump.prompts if p.verifier not in ("", name)), None)
    if other and name != "by_row":
        warnings.warn(
            f"row {other.id} names verifier '{other.verifier}', and every row is graded by {name}; "
            "choose row by row with --verifier '{name: by_row, verifiers: [...]}'",
            stacklevel=2,
        )


def items(dump: Dump) -> list[Item]:
    return [
        (r.answer, dump.prompts[r.row].answer, context(dump.prompts[r.row])) for r in dump.responses
    ]


def _pool(spec: Spec, args: argparse.Namespace) -> VerifierPool:
    return VerifierPool(spec, workers(spec, args.workers), args.deadline)


def workers(spec: Spec, wanted: int | None) -> int | None:
    """Processes: as wanted, else one a core; None for verifiers that need none."""
    from trainer.preflight import cpus

    return wanted or (None if load(spec).quick else cpus())


def graded(
    pool: VerifierPool, asked: Sequence[Item], calls: int = CALLS, chunk: int = 1
) -> Generator[Verdict]:
    """Verdicts in order, as they come; `calls` calls of `chunk` items are under way at once.

    A sick item holds up its own call only. Closing the generator gives up what was not graded.
    """
    waiting: deque[Future[list[Verdict]]] = deque()
    try:
        for i in range(0, len(asked), chunk):
            waiting.append(pool.submit(asked[i : i + chunk]))
            while waiting and (waiting[0].done() or len(waiting) >= calls):
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _progress(done: int, total: int) -> None:
    """A line that overwrites itself, for people at a terminal only."""
    if sys.stderr.isatty() and (done % 64 == 0 or done == total):
        print(f"\r{done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


# What is written


@contextmanager
def _writer(path: Path | None, source: Path) -> Iterator[IO[str] | None]:
    """The file of --out, opened before any work.

    Raises:
        ValueError: it is the input itself, or cannot be written.
    """
    if path is None:
        yield None
        return
    if path.exists() and path.samefile(source):
        raise ValueError(f"--out: '{path}' is the file that is graded; write to another")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("w", encoding="utf-8", buffering=1)  # a line at a time
    except OSError as error:
        raise ValueError(f"--out: '{path}' cannot be written ({error.strerror})") from None
    with stream:
        yield stream


def _row(dump: Dump, response: Response) -> dict[str, Any]:
    """The row with this one response: such a file can be graded again."""
    values = dict(dump.rows[response.row].values)
    return plain(values | {dump.column: response.whole, "sample": response.sample})


def plain(value: Any) -> Any:
    """As JSON can hold it: NaN and infinities as null, what it does not know as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if value is None or isinstance(value, str | int) else str(value)


def _timing(pool: VerifierPool, done: int, seconds: float) -> dict[str, Any]:
    stats = pool.stats()
    figures = {k: v for k, v in stats.items() if not k.startswith("verdicts/")}
    return {"grader": pool.grader.name, "verdicts": done, "seconds": seconds, **figures}


def _summary(
    dump: Dump, done: Sequence[Verdict], pool: VerifierPool, seconds: float
) -> dict[str, Any]:
    """Figures of the verdicts so far. Unknown ones are in no accuracy."""
    from trainer.eval import statistics

    rows: dict[str, list[Verdict]] = {}  # several rows may be samples of one problem
    for response, verdict in zip(dump.responses, done, strict=False):
        if verdict.known:
            rows.setdefault(dump.prompts[response.row].id, []).append(verdict)
    means = [sum(v.correct for v in known) / len(known) for known in rows.values()]
    most = max(map(len, rows.values()), default=0)
    unknown = [
        {"row": dump.name(response), "status": verdict.status, "detail": verdict.detail}
        for response, verdict in zip(dump.responses, done, strict=False)
        if not verdict.known
    ]
    scores = [v.score for known in rows.values() for v in known]
    several = {
        "samples": most,
        "any": statistics.mean([any(v.correct for v in known) for known in rows.values()]).value,
        "majority": statistics.mean([_majority(known) for known in rows.values()]).value,
    }
    return {
        "rows": len(dump.rows),
        "responses": len(dump.responses),
        "problems": len({dump.prompts[response.row].id for response in dump.responses}),
        "columns": {"answer": dump.gold, "response": dump.column},
        "statuses": dict(Counter(verdict.status for verdict in done)),
        "accuracy": asdict(statistics.mean(means)),
        "score": sum(scores) / len(scores) if scores else None,
        **(several if most > 1 else {}),
        "timing": _timing(pool, len(done), seconds),
        "unknown": unknown,
    }


def _majority(verdicts: Sequence[Verdict]) -> bool:
    """Whether the commonest canonical answer is right; the first of equally common ones."""
    votes = Counter(v.answer for v in verdicts if v.answer is not None)
    if not votes:
        return False
    chosen = votes.most_common(1)[0][0]
    return next(v.correct for v in verdicts if v.answer == chosen)


def _differences(found: Audit, timing: Sequence[Mapping[str, Any]], show: int) -> dict[str, Any]:
    kinds: tuple[Kind, ...] = ("false accept", "false reject", "unknown")
    return {
        "table": [[a, b, count] for (a, b), count in sorted(found.table.items())],
        "cases": found.cases,
        "known": found.known,
        "agree": found.agree,
        "kappa": found.kappa,
        "timing": timing,
        "answers": {kind: sum(len(f.where) for f in found.of(kind)) for kind in kinds},
        "findings": {
            kind: {
                "different": len(found.of(kind)),
                "shown": [_finding(f) for f in found.of(kind)[:show]],
            }
            for kind in kinds
        },
    }


def _finding(finding: Finding) -> dict[str, Any]:
    case = finding.case
    return {
        "weight": finding.weight,
        "why": finding.why,
        "gold": case.gold,
        "written": finding.written,
        "first": case.first.status,
        "second": case.second.status,
        "detail": "; ".join(v.detail for v in (case.first, case.second) if v.detail),
        "where": finding.where,
    }


def _write_findings(out: IO[str], dump: Dump, found: Audit) -> None:
    """The rows of every disagreement, worst first."""
    by_name = {dump.name(response): response for response in dump.responses}
    for finding in found.findings:
        judged = {"kind": finding.kind, "weight": finding.weight, "why": finding.why}
        verdicts = {"first": finding.case.first, "second": finding.case.second}
        for where in finding.where:
            row = _row(dump, by_name[where])
            both = {name: asdict(verdict) for name, verdict in verdicts.items()}
            out.write(json.dumps(row | {"audit": plain(judged | both)}) + "\n")
