"""Responses that some model has already given, from a file: gold, text, where the answer begins.

Dumps of other tools are read as they are: a response may be text, a chat message, a list of
messages, or a list of any of these (several samples of one problem).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samplers import files
from samplers.files import Columns, Row
from samplers.render import ThinkingConfig, answer_part
from samplers.types import Prompt

GOLDS = (
    "gold", "gold_answer", "ground_truth", "reward_model.ground_truth", "gts", "gt", "target",
    "reference_answer", "reference", "expected", "answer", "label", "solution",
)  # fmt: skip
"""In dumps `answer` is often the model's own: every other name goes first."""
RESPONSES = (
    "response", "responses", "completion", "completions", "output", "outputs", "generation",
    "generations", "generated_text", "generated", "choices", "model_output", "resps", "prediction",
    "predictions", "pred", "text", "messages",
)  # fmt: skip
"""Whole responses before what somebody has cut out of them."""
USUAL: Mapping[str, tuple[str, ...]] = {
    **files.USUAL,
    "prompt": (*files.USUAL["prompt"], "input", "full_prompt"),
    "answer": GOLDS,
    "response": RESPONSES,
    "id": (*files.USUAL["id"], "uid", "doc_id", "custom_id", "problem_id", "question_id"),
}


class ResponseColumns(Columns):
    """As of a dataset, and the column of what the model wrote. `answer` is the gold answer. Rows
    with one id (without ids: with one prompt and gold) are samples of one problem."""

    response: str = ""
    """Text, messages {role, content} that end with the assistant's, or a list of several such.
    Usual: response, completion, output, generation, choices, resps, prediction, text, messages."""


@dataclass(frozen=True, slots=True)
class Thinking:
    """Where the answer part of a response begins. `markers` None: all of it is the answer."""

    markers: ThinkingConfig | None
    opened: bool = False
    """The prompt had opened the thought: a response without an end marker never closed it."""

    def answer(self, text: str | None) -> str | None:
        """The answer part; None where there is none."""
        if text is None or self.markers is None:
            return text
        if self.opened and self.markers.end not in text:
            return None
        return answer_part(text, self.markers)


@dataclass(frozen=True, slots=True)
class Response:
    """One sample of one row."""

    row: int
    """Index of its row."""
    sample: int
    """Index among the responses of its row."""
    whole: str | None
    """As it stands in the file; None: nothing was written."""
    answer: str | None
    """Its answer part; None: none was reached."""


@dataclass(frozen=True, slots=True)
class Dump:
    """What a file held."""

    rows: Sequence[Row]
    prompts: Sequence[Prompt]
    """One a row; the gold is '' where the row has none."""
    responses: Sequence[Response]
    """Row by row."""
    gold: str
    """Column of the golds."""
    column: str
    """Column of the responses; '' where there is none."""
    unique: bool
    """No two rows have one id: they are no samples of one problem."""

    def name(self, response: Response) -> str:
        """What people call it: the id of its row (else its place in the file), and the sample."""
        row = response.row
        name = self.prompts[row].id if self.unique else self.rows[row].name
        return f"{name}#{response.sample}"


def load(path: Path, columns: ResponseColumns, thinking: Thinking, needed: bool = True) -> Dump:
    """The responses of a JSONL, JSON or Parquet file, or of a run's folder (its rollouts/).

    Args:
        needed: refuse a file without responses; else such a dump has none.

    Raises:
        ValueError: no file, a broken row, a missing column, or a value that is no response.
    """
    rows = _rows(path)
    found = {
        name: files.candidates(rows, usual, getattr(columns, name), f"--columns: {name}")
        for name, usual in USUAL.items()
    }
    golds = [c for c in found["answer"] if c != columns.response]
    # One column of golds: where it is empty, another of these names may be the model's own answer.
    gold = golds[0] if golds else ""
    named = bool(columns.response)
    texts = [c for c in found["response"] if c != gold and (named or _answered(rows, c))]
    column = texts[0] if texts else ""
    for name, what, there in (("answer", "golds", gold), ("response", "responses", column)):
        if not there and (needed or name == "answer"):
            raise ValueError(
                f"{path}: no column of {what} among {', '.join(files.columns_of(rows))}; "
                f"name it: --columns '{{{name}: ...}}'"
            )
    found |= {"answer": (gold,)}
    first: dict[bytes, str] = {}
    prompts = [_prompt(i, row, found, column, first) for i, row in enumerate(rows)]
    responses = [
        Response(i, k, text, thinking.answer(text))
        for i, row in enumerate(rows)
        for k, text in enumerate(_texts(row, column, row.get(column)) if column else [])
    ]
    unique = len({prompt.id for prompt in prompts}) == len(rows)
    return Dump(rows, prompts, responses, gold, column, unique)


def never_opened(responses: Sequence[Response], markers: ThinkingConfig) -> int:
    """Responses without any marker, where others close a thought that they never opened.

    There the chat template opens thoughts, and these are thoughts that were cut off.
    """
    texts = [r.whole for r in responses if r.whole]
    if not any(markers.end in t and markers.start not in t for t in texts):
        return 0
    return sum(markers.end not in t and markers.start not in t for t in texts)


def _rows(path: Path) -> list[Row]:
    if not path.is_dir():
        return files.read(path, "FILE")
    folder = path / "rollouts" if (path / "rollouts").is_dir() else path
    parts = sorted(folder.glob("*.jsonl"), key=_numbers)
    if not parts:
        raise ValueError(f"FILE: folder '{path}' has no rollouts/*.jsonl; give a file, or a run")
    return [row for part in parts for row in files.read(part, "FILE")]


def _answered(rows: Sequence[Row], column: str) -> bool:
    """Whether a column of that name holds responses: not a question alone, nor its options."""
    values = [value for row in rows if (value := row.get(column)) not in (None, [], {})]
    if column == "messages":
        return any(_chat(talk) and talk[-1]["role"] == "assistant" for talk in values)
    if column == "choices":
        return any(isinstance(value, list) and isinstance(value[0], Mapping) for value in values)
    return True


def _chat(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, Mapping) and "role" in m for m in value)
    )


def _texts(row: Row, column: str, value: Any) -> Iterator[str | None]:
    """The responses of a value, whatever its shape."""
    if value is None or isinstance(value, str):
        yield value
    elif isinstance(value, int | float):
        yield str(value)
    elif _chat(value):
        if value[-1]["role"] != "assistant":
            raise ValueError(
                f"{row.where}: the last message of '{column}' is of role '{value[-1]['role']}'; "
                "a response ends with the assistant's"
            )
        yield from _texts(row, column, value[-1])
    elif isinstance(value, list):
        if value and all(isinstance(p, Mapping) and p.get("type") == "text" for p in value):
            yield "".join(str(part.get("text", "")) for part in value)
        else:
            for one in value:
                yield from _texts(row, column, one)
    else:
        fields = value if isinstance(value, Mapping) else {}
        inner = [n for n in ("body", "choices", "message", "content", "text") if n in fields]
        if not inner:
            what = f"an object of {', '.join(map(str, fields))}" if fields else repr(value)[:60]
            raise ValueError(
                f"{row.where}: '{column}' is {what}; "
                "a response is text, messages {role, content}, or a list of such"
            )
        yield from _texts(row, column, value[inner[0]])


def _prompt(
    index: int,
    row: Row,
    found: Mapping[str, tuple[str, ...]],
    response: str,
    named: dict[bytes, str],
) -> Prompt:
    """The row as a prompt, as far as it goes: what verifiers know of a row comes from here.

    A row without an id has that of the first with its prompt and gold, which `named` keeps.
    """
    gold = files.gold_of(row, found["answer"])

    def first(name: str) -> str:
        return next((c for c in found[name] if row.get(c) is not None), "")

    column = first("prompt")
    talk: tuple[Mapping[str, str], ...] = ()
    with contextlib.suppress(ValueError):  # a prompt that is none: only the response is graded
        talk = files.messages(row, column) if column else ()
    if column == response and talk:
        talk = talk[:-1]
    meta = {k: v for k, v in row.values.items() if k not in (column, response)}
    verifier = str(row.get(first("verifier")) or "") if first("verifier") else ""
    same = named.setdefault(_digest(talk, gold), row.name) if talk else row.name
    name = next((str(v) for c in found["id"] if (v := row.get(c)) is not None), same)
    return Prompt(index, name, talk, "", gold or "", verifier, meta)


def _digest(*what: object) -> bytes:
    return hashlib.blake2b(repr(what).encode(errors="replace"), digest_size=16).digest()


def _numbers(path: Path) -> tuple[list[int], str]:
    """step-9 goes before step-10."""
    return [int(n) for n in re.findall(r"\d+", path.stem)], path.name
