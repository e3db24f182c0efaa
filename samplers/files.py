"""Rows of a file, and what they mean: every mistake is one line that names file and row."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samplers.seam import Component
from samplers.types import Prompt


class Columns(Component):
    """Which column holds what; dots reach into nested columns and lists (`golds.0`). Empty: found
    by its usual name."""

    prompt: str = ""
    """Text, or a list of chat messages. Usual: prompt, problem, question, messages."""
    answer: str = ""
    """Gold answer. Usual: answer, ground_truth, reward_model.ground_truth, and the end of
    solution (after #### or in the last box)."""
    id: str = ""
    """A unique name. Usual: id, unique_id, extra_info.index; else the number of the row."""
    difficulty: str = ""
    """A whole number that reports group by. Usual: difficulty, level."""
    verifier: str = ""
    """Name of the row's verifier, where rows differ. Usual: verifier."""


USUAL: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "problem", "question", "messages"),
    "answer": ("answer", "ground_truth", "reward_model.ground_truth", "solution"),
    "id": ("id", "unique_id", "extra_info.index"),
    "difficulty": ("difficulty", "level"),
    "verifier": ("verifier",),
}


@dataclass(frozen=True, slots=True)
class Row:
    """`where` is what an error calls the row: file and line, or file and number from 1."""

    where: str
    name: str
    """Its id where it has none of its own."""
    values: Mapping[str, Any]

    def get(self, column: str) -> Any:
        """The value at a dotted column name (a number is a place in a list, from 0); None where
        there is none, NaN included.
        """
        value: Any = self.values
        for part in [column] if column in self.values else column.split("."):
            if isinstance(value, list) and part.isdecimal():
                value = value[int(part)] if int(part) < len(value) else None
            else:
                value = value.get(part) if isinstance(value, Mapping) else None
        return None if isinstance(value, float) and math.isnan(value) else value


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def read(path: str | Path, field: str = "data.path") -> list[Row]:
    """Rows of a JSONL, JSON list or Parquet file.

    Raises:
        ValueError: missing or empty file, unknown kind, broken JSON (with its line), a row that
            is no object.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        folder = path.parent
        names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        where = "" if folder.is_dir() else f" (nor does the folder '{folder}')"
        raise ValueError(f"{field}: file '{path}' does not exist{where}{nearest(path.name, names)}")
    readers = {".jsonl": _read_json, ".json": _read_json, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise ValueError(f"{field}: '{path}' is none of {', '.join(readers)}; convert the file")
    rows = readers[path.suffix](path)
    if not rows:
        raise ValueError(f"{field}: '{path}' has no rows; give a file with at least one")
    for row in rows:
        if not isinstance(row.values, Mapping):
            kind = type(row.values).__name__
            raise ValueError(f"{row.where}: a row is an object of columns; got a {kind}")
    return rows


def _read_json(path: Path) -> list[Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start}); convert the file") from None
    if text.lstrip().startswith("["):
        rows = _parse(text, str(path), 1)
        return [Row(f"{path} row {i}", f"{path.stem}/{i}", row) for i, row in enumerate(rows, 1)]
    lines = enumerate(text.split("\n"), 1)
    return [
        Row(f"{path}:{n}", f"{path.stem}/{n}", _parse(line, str(path), n))
        for n, line in lines
        if line.strip()
    ]


def _parse(text: str, path: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        what = error.msg.removesuffix(" at")  # "Unterminated string starting at"
        raise ValueError(
            f"{path}:{line}: broken JSON ({what} at column {error.colno}); mend that line"
        ) from None


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read as Parquet ({reason})") from None
    return [Row(f"{path} row {i}", f"{path.stem}/{i}", row) for i, row in enumerate(rows, 1)]


def prompts(rows: Sequence[Row], columns: Columns, skip_unanswered: bool = False) -> list[Prompt]:
    """Rows as prompts, in order, with dense indices. The rest of a row becomes `meta`.

    Raises:
        ValueError: a column that does not exist, a row without prompt or answer, a repeated id.
    """
    found = {
        name: candidates(rows, usual, getattr(columns, name), f"data.columns.{name}")
        for name, usual in USUAL.items()
    }
    for needed in ("prompt", "answer"):
        if not found[needed]:
            raise ValueError(
                f"{rows[0].where}: no {needed} column among {', '.join(columns_of(rows))}; "
                f"name it in data.columns.{needed}"
            )
    out: list[Prompt] = []
    seen: dict[str, str] = {}
    for row in rows:
        answer = gold_of(row, found["answer"])
        if answer is None:
            if skip_unanswered:
                continue
            raise ValueError(
                f"{row.where}: no answer in {' or '.join(found['answer'])}; fill it in, name "
                "another column in data.columns.answer, or set data.skip_unanswered: true"
            )
        name = _id(row, found["id"])
        if name in seen:
            raise ValueError(
                f"{row.where}: id '{name}' is already that of {seen[name]}; ids must be unique: "
                "mend the file or name another column in data.columns.id"
            )
        seen[name] = row.where
        out.append(_prompt(row, found, name, answer, index=len(out)))
    if not out:
        raise ValueError(f"{rows[0].where}: none of {len(rows)} rows has an answer")
    return out


def candidates(
    rows: Sequence[Row], usual: Sequence[str], given: str, setting: str
) -> tuple[str, ...]:
    """Columns to look into, best first: the one `given` in `setting`, or the usual ones there are.

    Raises:
        ValueError: the given column is in no row.
    """
    if not given:
        return tuple(n for n in usual if any(row.get(n) is not None for row in rows))
    if not any(row.get(given) is not None for row in rows):
        names = columns_of(rows)
        raise ValueError(
            f"{setting}: column '{given}' is missing or empty in every row; "
            f"there are {', '.join(names)}{nearest(given, names)}"
        )
    return (given,)


def messages(row: Row, column: str) -> tuple[Mapping[str, str], ...]:
    """The chat messages of a row: its list of messages, or its text as one user message.

    Raises:
        ValueError: empty, or no list of {role, content}.
    """
    value = row.get(column)
    if isinstance(value, str) and value.strip():
        return ({"role": "user", "content": value},)
    good = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    if not good or not all(
        isinstance(m, Mapping)
        and isinstance(m.get("role"), str)
        and isinstance(m.get("content"), str)
        for m in value
    ):
        raise ValueError(
            f"{row.where}: column '{column}' is {_short(value)}; "
            "a prompt is text, or a list of messages {role, content}"
        )
    return tuple({"role": m["role"], "content": m["content"]} for m in value)


def _prompt(
    row: Row, found: Mapping[str, tuple[str, ...]], name: str, answer: str, index: int
) -> Prompt:
    column = next((c for c in found["prompt"] if row.get(c) is not None), found["prompt"][0])
    talk = messages(row, column)
    if talk[-1]["role"] != "user":
        raise ValueError(
            f"{row.where}: the last message of '{column}' is of role '{talk[-1]['role']}'; "
            "a prompt ends with a user message"
        )
    meta = {k: v for k, v in row.values.items() if k != column}
    meta.pop("difficulty", None)
    level = next((row.get(c) for c in found["difficulty"]), None)
    if (difficulty := _whole(level)) is not None:
        meta["difficulty"] = difficulty
    verifier = next((str(row.get(c) or "") for c in found["verifier"]), "")
    return Prompt(index, name, talk, "", answer, verifier, meta)


def _id(row: Row, columns: Sequence[str]) -> str:
    """verl numbers the rows of each source and split from 0: its ids carry both."""
    column = next((c for c in columns if row.get(c) is not None), None)
    if column is None:
        return row.name
    parts = [row.get(column)]
    if column == "extra_info.index":
        parts = [row.get("data_source"), row.get("extra_info.split"), *parts]
    return "/".join(str(part) for part in parts if part is not None)


def gold_of(row: Row, columns: Sequence[str]) -> str | None:
    """The gold answer, of the first column that has one."""
    golds = (_gold(row.get(column), worked=column == "solution") for column in columns)
    return next((gold for gold in golds if gold), None)


def _gold(value: Any, worked: bool) -> str | None:
    """Text of a gold answer. Of a worked solution only its marked end: '#### 18' or a box."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, list | dict):
        return json.dumps(value, sort_keys=True) if value else None
    text = str(value).strip()
    if text[:1] in ("{", "[") and not worked and _is_json(text):
        return text  # tests of a program, say: whatever they hold is theirs
    if "####" in text:
        return text.rsplit("####", 1)[1].strip()
    return _boxed(text) if worked else text


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _boxed(text: str) -> str | None:
    """Content of the last \\boxed{...}, braces balanced."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, first = 0, start + len("\\boxed{")
    for i in range(first, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth < 0:
            return text[first:i].strip()
    return None


def _whole(value: Any) -> int | None:
    """5, 5.0, '5' and 'Level 5' are 5; a negative number means unknown."""
    match = re.search(r"-?\d+(\.\d+)?$", str(value).strip())
    number = round(float(match.group())) if match else -1
    return number if number >= 0 else None


def columns_of(rows: Sequence[Row]) -> list[str]:
    """All columns of the rows, nested ones dotted."""
    names: dict[str, None] = {}
    for row in rows:
        for column, value in row.values.items():
            names[column] = None
            if isinstance(value, Mapping):
                names.update({f"{column}.{inner}": None for inner in value})
    return list(names)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
