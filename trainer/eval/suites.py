r"""Named tasks: how the rows of each usual set are read and graded, and how often they are sampled.

Sets are read from local files (JSONL, JSON list, Parquet), or from the hub where `datasets` is
installed and there is a network. The prompt is the raw problem and a request to box the answer, in
the user's turn of the model's own chat template.

Samples by size: what a set of few problems cannot say with one sample each, it says with many
(at most 40 problems 32 to 64, up to 700 eight, more four).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rewards.golds import check_golds, told
from rewards.grader import Spec
from samplers import data, files, seam
from samplers.data import DataConfig
from samplers.files import Columns, Row, nearest
from samplers.types import Prompt
from trainer.eval.problems import LABELS, SHUFFLE, Task, listed

BOXED = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
LETTER = "\n\nPlease reason step by step, and put the letter of your answer within \\boxed{}."
PROBLEMS = 256
"""Of a procedural task, which never ends, and of a file that is no suite."""
KINDS = (".jsonl", ".json", ".parquet")
Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Suite:
    hub: str
    """Where it is published, subset and split included: 'name', 'name subset' or 'name split=x'."""
    problems: int
    """How many it has; another number is told."""
    samples: int
    verifier: Spec = "math"
    suffix: str = BOXED
    columns: Mapping[str, tuple[str, ...]] | None = None
    """Columns that are looked for before the usual ones."""
    adapt: Callable[[Values], Values] | None = None
    """A row in the form that is read."""


def _olympiad(row: Values) -> Values:
    """Several answers are one list; a tolerance is that of the row."""
    gold = row.get("final_answer")
    if isinstance(gold, list):
        row["final_answer"] = ", ".join(str(part).strip().strip("$") for part in gold)
    return row


def _gpqa(row: Values) -> Values:
    """The right option first; every sample shows them in another order."""
    right, wrong = "Correct Answer", [f"Incorrect Answer {i}" for i in (1, 2, 3)]
    if right in row:
        options = [str(row.pop(name)).strip() for name in (right, *wrong) if row.get(name)]
        question, name = row.pop("Question", None), row.pop("Record ID", None)
        row |= {"question": question} | ({} if name is None else {"id": name})
    else:
        options = [str(option).strip() for option in row.pop("options", row.pop("choices", []))]
        gold = str(row.get("answer", "")).strip()
        at = LABELS.find(gold.upper()) if len(gold) == 1 else -1
        if not 0 <= at < len(options):
            at = options.index(gold) if gold in options else -1
        if at < 0:
            raise ValueError(f"answer {gold!r} is no letter of its options and none of them")
        options.insert(0, options.pop(at))
    text = f"{row.get('question') or row.get('problem')}\n\n{listed(options)}"
    return {**row, "question": text, "answer": "A", "options": options, SHUFFLE: 0}


_AIME = Suite("", 30, 64, "numeric", columns={"id": ("id", "problem_idx")})
# Golds are integers 0 to 999: 033 is 33 to `numeric`. One sample of 30 problems says nothing.
SUITES: Mapping[str, Suite] = {
    # The gold is `answer`, not the whole solution. Levels 1 to 5 are its difficulties.
    "math500": Suite("HuggingFaceH4/MATH-500 split=test", 500, 8),
    "aime24": replace(_AIME, hub="Maxwell-Jia/AIME_2024 split=train"),
    "aime25": replace(_AIME, hub="MathArena/aime_2025 split=train"),  # I and II; mirrors have 15
    "aime26": replace(_AIME, hub="MathArena/aime_2026 split=train"),
    # Not AI-MO/aimo-validation-amc, which has 83 problems, of 2022 too.
    "amc23": Suite("math-ai/amc23 split=test", 40, 32),
    # The gold follows ####. About one in a hundred is wrong: gsm8k_platinum corrects them.
    "gsm8k": Suite("openai/gsm8k main split=test", 1319, 4, "numeric"),
    # Text-only, English, maths, with final answers (OE_TO_maths_en_COMP). Several answers are a
    # list; a few ask for a number within a tolerance, which `math` does not grant.
    "olympiadbench": Suite(
        "Hothan/OlympiadBench OE_TO_maths_en_COMP split=train",
        674,
        8,
        columns={"answer": ("final_answer",)},
        adapt=_olympiad,
    ),
    # Golds are numbers with units and powers of ten: rounded to two digits they are the same.
    "minerva": Suite("math-ai/minervamath split=test", 272, 8, {"name": "math", "rounded": 2}),
    # Gated: log in to the hub. Where the right option stands moves answers (position bias).
    "gpqa": Suite(
        "Idavidrein/gpqa gpqa_diamond split=train", 198, 8, "choice", LETTER, None, _gpqa
    ),
    "hmmt": Suite(
        "MathArena/hmmt_feb_2025 split=train", 30, 64, columns={"id": ("id", "problem_idx")}
    ),
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line says of all tasks."""

    folder: Path | None = None
    """Holds NAME.jsonl, NAME.json or NAME.parquet of suites that name no file."""
    columns: Mapping[str, str] | None = None
    verifier: Spec | None = None
    """Of all of them; None: their own."""
    problems: int | None = None
    """The first so many; None: all (of what never ends, 256)."""
    bad_golds: str = "refuse"
    """refuse, drop or keep."""
    own: str = "exact"
    """The verifier of a file that is no suite, and of procedural tasks."""


def task(text: str, wanted: Wanted) -> Task:
    """The task that NAME, NAME=FILE or a file names, its golds checked.

    Raises:
        ValueError: no such task, file or column; rows that cannot be read; golds that their
            verifier rejects.
    """
    name, _, file = text.partition("=")
    if name in SUITES:
        found = _suite(name, file, wanted)
    elif file and Path(name).suffix not in KINDS:
        raise ValueError(
            f"--tasks: no suite is named '{name}'{nearest(name, SUITES)}; there are "
            f"{', '.join(SUITES)}; a file of your own goes to --data"
        )
    elif name in seam.names("samplers.tasks") or text.lstrip().startswith("{"):
        found = _procedural(text, wanted)
    elif Path(text).suffix in KINDS:
        found = _file(text, wanted)
    else:
        known = [*SUITES, *seam.names("samplers.tasks")]
        raise ValueError(
            f"--tasks: no task is named '{text}'{nearest(text, known)}; there are "
            f"{', '.join(known)}"
        )
    return _checked(found, wanted.bad_golds)


def _suite(name: str, file: str, wanted: Wanted) -> Task:
    suite = SUITES[name]
    rows, source = _rows(name, file, wanted.folder)
    if suite.adapt is not None:
        rows = [_adapted(suite.adapt, row) for row in rows]
    if len(rows) != suite.problems:
        warnings.warn(
            f"{name} has {suite.problems} problems and {source} has {len(rows)}: it may be another "
            "set",
            stacklevel=3,
        )
    columns = dict(wanted.columns or {})
    for field, names in (suite.columns or {}).items():
        found = next((n for n in names if any(row.get(n) is not None for row in rows)), "")
        if found:
            columns.setdefault(field, found)
    prompts = _prompts(rows, columns, suite.suffix, wanted.problems)
    verifier = suite.verifier if wanted.verifier is None else wanted.verifier
    stream = int(data.digest(name), 16)
    return Task(name, source, prompts, verifier, suite.samples, stream)


def _file(path: str, wanted: Wanted) -> Task:
    rows = files.read(path, "--data")
    prompts = _prompts(rows, wanted.columns or {}, "", wanted.problems or PROBLEMS)
    return Task(Path(path).stem, path, prompts, wanted.verifier or wanted.own)


def _procedural(text: str, wanted: Wanted) -> Task:
    """A task's name, or its YAML with settings."""
    import yaml

    try:
        spec = yaml.safe_load(text)
        name, settings = seam.split(spec)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"--tasks: {text!r}: {' '.join(str(error).split())}") from None
    if wanted.columns:
        raise ValueError(f"--columns: task '{name}' has no columns; they belong to a file")
    dataset = data.load(DataConfig(task=spec), "test")
    prompts = tuple(dataset[i] for i in range(wanted.problems or PROBLEMS))
    own = prompts[0].verifier if name == "reasoning_gym" else wanted.own
    title = str(settings.get("dataset", name))
    return Task(title, text, prompts, wanted.verifier or own)


def _rows(name: str, file: str, folder: Path | None) -> tuple[list[Row], str]:
    """Rows of a suite, and where they are from."""
    if not file and folder is not None:
        beside = [folder / f"{name}{kind}" for kind in KINDS]
        file = next((str(path) for path in beside if path.is_file()), "")
        if not file:
            have = [path.stem for path in folder.glob("*")] if folder.is_dir() else []
            raise ValueError(
                f"--data-dir: {folder} holds no {name}.jsonl, .json or .parquet"
                f"{nearest(name, have)}; name the file: --tasks {name}=FILE"
            )
    if file:
        return files.read(file, f"--tasks {name}"), file
    hub, *rest = SUITES[name].hub.split()
    split = rest.pop().removeprefix("split=")
    config = DataConfig(hub=hub, subset=rest[0] if rest else None, split={"test": split})
    try:
        return data.rows(config, "test"), hub
    except ValueError as error:
        raise ValueError(
            f"--tasks: {name} needs its file: --tasks {name}=FILE or --data-dir FOLDER with "
            f"{name}.jsonl in it (from the hub: {error})"
        ) from None


def _adapted(adapt: Callable[[Values], Values], row: Row) -> Row:
    try:
        return replace(row, values=adapt(dict(row.values)))
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}") from None


def _prompts(
    rows: Sequence[Row], columns: Mapping[str, str], suffix: str, limit: int | None
) -> tuple[Prompt, ...]:
    known = Columns.model_fields
    for name in columns:
        if name not in known:
            raise ValueError(
                f"--columns: '{name}' is no kind of column{nearest(name, known)}; there are "
                f"{', '.join(known)}"
            )
    try:
        found = files.prompts(rows[:limit], Columns(**columns))
    except ValueError as error:  # which speaks of a recipe's fields
        raise ValueError(str(error).replace("data.columns.", "--columns ")) from None
    dressed = DataConfig(path="rows", suffix=suffix)
    return tuple(data.dress(dressed, prompt) for prompt in found)


def _checked(found: Task, bad_golds: str) -> Task:
    """A gold that is not right to its own verifier would make every answer wrong."""
    if bad_golds == "keep":
        return found
    bad = check_golds(found.prompts, found.verifier)
    if not bad:
        return found
    share = f"{len(bad)} of {len(found.prompts)} problems; {told(found.prompts, bad)}"
    if bad_golds == "refuse" or len(bad) == len(found.prompts):
        raise ValueError(
            f"task {found.name}: the verifier rejects the gold of {share}; choose another "
            "--verifier, correct them, or leave them out with --bad-golds drop"
        )
    warnings.warn(f"task {found.name}: left out, their golds are rejected: {share}", stacklevel=2)
    kept = (prompt for at, prompt in enumerate(found.prompts) if at not in bad)
    return replace(found, prompts=tuple(kept))
