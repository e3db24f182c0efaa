r"""reasoning_gym: the scorers of the library of that name, behind guards.

The row says what is scored: `source_dataset` (or `metadata.source_dataset`) and the library's
`entry`, or `question` and `metadata` as its rows have them; `settings` where they are not the
library's. Of the answer the last `<answer>...</answer>` or `\boxed{...}` is scored, or all of it.

Some of the library's scorers evaluate an answer as Python: those see only answers that are lists of
words and numbers, or arithmetic of a bounded size. Some give points for nonsense: an answer is
right only where the scorer gives full marks to it and not to nonsense, or it is the gold. Some
raise: that is the answer's fault where the scorer accepts the gold.
"""

from __future__ import annotations

import ast
import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import Field

from rewards.grader import Examples, titled
from rewards.maths import extract
from rewards.maths.numbers import number
from rewards.verdict import Status, Verdict
from samplers.seam import Component

QUICK = False
"""Scorers simplify, search and interpret: any of them may hang."""
READS = ("source_dataset", "settings", "entry", "question", "metadata", "prompt")
MAX_CHARS = 8192
NONSENSE = "?"
LISTS = ("string_insertion", "spiral_matrix", "binary_matrix", "n_queens")
"""Datasets whose scorers evaluate an answer that is not right as a Python list (0.1.25)."""
SUMS = ("countdown", "puzzle24")
"""Those that ask for a value made of given numbers by + - * /: it is computed here as well. The
library rounds what it comes to, and of one does not ask which numbers are used (0.1.25)."""
NUMBERS = ("coin_flip", "gsm_symbolic")
"""Those whose answer is one number, within 0.1% of the gold or it is wrong. The library gives full
marks to `0` for any probability, and to numbers of the wrong sign (0.1.25)."""
FORMULAS = (
    *SUMS,
    "polynomial_multiplication",
    "simple_integration",
    "intermediate_integration",
)
"""Datasets whose scorers parse an answer with sympy, which evaluates it as Python (0.1.25)."""

_NO_CALL = re.compile(r"[\w\s.,\[\]'\"-]*", re.ASCII)
_NO_NUMBER = re.compile(r"\b(?:nan|inf|infinity)\b", re.I)
_FUNCTIONS = frozenset(
    re.findall(r"\w+", "sin cos tan sec csc cot asin acos atan sinh cosh tanh exp log ln sqrt Abs")
)
_SUMS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
_EXACT: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
MAX_FORMULA = 512
MAX_POWER = 64
MAX_BITS = 4096
"""Of the numbers that a formula may come to."""


class Config(Component):
    partial: bool = False
    """Score with the library's own share of full marks (some give it for repeating the question),
    not with 0 or 1."""
    correct_at: float = Field(1.0, gt=0, le=1)
    """Share of full marks from which an answer is correct."""


def title(config: Config) -> str:
    try:
        return titled(f"reasoning_gym/1 (reasoning-gym {version('reasoning-gym')})", config)
    except PackageNotFoundError:
        raise ValueError(
            "verifier: reasoning_gym needs the library of that name; pip install "
            "'laconic[reasoning-gym]'"
        ) from None


def warm() -> None:
    import reasoning_gym  # noqa: F401


def grade(text: str, gold: str, meta: Mapping[str, Any], config: Config) -> Verdict:
    """Verdict of one answer. A row that the library cannot score is a gold_error."""
    name, answer = title(config), _part(text)
    if not answer:
        return Verdict(False, 0.0, "no_answer", None, name)
    try:
        row = _row(gold, meta)
    except ValueError as reason:
        return Verdict(False, 0.0, "gold_error", None, name, str(reason))
    if refused := _refusal(row, answer):
        return Verdict(False, 0.0, "unparseable", None, name, refused)
    status, share, detail = _judged(row, answer, config.correct_at)
    if status == "gold_error":  # rows that went through JSON have lists where it had tuples
        row = replace(row, entry=_tuples(row.entry))
        status, share, detail = _judged(row, answer, config.correct_at)
    right = status == "ok"
    score = share if config.partial else float(right)
    return Verdict(
        right, score, status, answer if right or status == "wrong" else None, name, detail
    )


def examples(gold: str, meta: Mapping[str, Any], config: Config) -> Examples:
    """The gold, where there is one, and nonsense."""
    return Examples((f"<answer>{gold}</answer>",) if gold else (), (NONSENSE,))


@dataclass(frozen=True)
class _Row:
    dataset: str
    scorer: Any
    """The library's dataset."""
    entry: Mapping[str, Any]
    gold: str

    def share(self, answer: str) -> float | None:
        """The scorer's share of full marks within [0, 1]; None: it raised."""
        try:
            return min(1.0, max(0.0, float(self.scorer.score_answer(answer, self.entry))))
        except MemoryError:
            raise
        except Exception:  # scorers parse answers as they please
            return None


def _judged(row: _Row, answer: str, correct_at: float) -> tuple[Status, float, str]:
    """(status, share of full marks, detail)."""
    share = row.share(answer)
    if share is not None and share >= correct_at:
        if answer != row.gold.strip() and (row.share(NONSENSE) or 0.0) >= correct_at:
            return "wrong", 0.0, "not the gold, and the scorer accepts nonsense as well"
        if row.dataset in SUMS and not _comes_out(answer, row):
            return "wrong", 0.0, "the given numbers do not come to that exactly"
        if row.dataset in NUMBERS and not _near(answer, row.gold):
            return "wrong", 0.0, "not the number"
        return "ok", share, ""
    if row.gold and (row.share(row.gold) or 0.0) < correct_at:
        return "gold_error", 0.0, f"the scorer of {row.dataset} does not accept the gold"
    if share is None:
        known = bool(row.gold) or row.share(NONSENSE) is not None
        return "unparseable" if known else "error", 0.0, f"the scorer of {row.dataset} raised"
    return "wrong", share, ""


def _part(text: str) -> str:
    """What is scored of an answer."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    if start >= 0:
        return text[start + len("<answer>") : end].strip()
    boxes = extract.boxes(text)
    return (boxes[-1] if boxes else text).strip()


def _row(gold: str, meta: Mapping[str, Any]) -> _Row:
    """What the row says of its problem.

    Raises:
        ValueError: too little, or of a dataset that the library does not have.
    """
    entry, metadata = meta.get("entry"), _parsed(meta.get("metadata"))
    if not isinstance(entry, Mapping):
        if not isinstance(metadata, Mapping):
            raise ValueError("the row has neither an entry nor metadata of reasoning_gym")
        entry = {"question": meta.get("question", ""), "answer": gold or None, "metadata": metadata}
    inner = entry.get("metadata")
    named = inner.get("source_dataset") if isinstance(inner, Mapping) else None
    dataset = str(meta.get("source_dataset") or named or "")
    settings = json.dumps(meta.get("settings") or {}, sort_keys=True, default=str)
    return _Row(dataset, _scorer(dataset, settings), {"answer": gold or None, **entry}, gold)


def _parsed(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


@lru_cache(maxsize=256)
def _scorer(dataset: str, settings: str) -> Any:
    from reasoning_gym.factory import DATASETS, create_dataset

    if dataset not in DATASETS:
        raise ValueError(f"reasoning_gym has no dataset '{dataset[:40]}'")
    try:
        return create_dataset(dataset, **{**json.loads(settings), "seed": 0})
    except Exception as error:  # assertions, unknown arguments: the library's own checks
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"'{dataset}' of reasoning_gym refuses its settings: {reason}") from None


def _tuples(value: Any) -> Any:
    """Lists as tuples, all the way down; keys of objects and everything else as they are."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


# Guards


def _refusal(row: _Row, answer: str) -> str:
    """Why an answer may not be shown to its scorer; '' if it may."""
    if len(answer) > MAX_CHARS:
        return f"{len(answer)} characters, at most {MAX_CHARS}"
    if _NO_NUMBER.search(answer) and not _NO_NUMBER.search(row.gold):
        return "infinite or not a number, which some scorers take for near to everything"
    if row.dataset in LISTS and not _NO_CALL.fullmatch(answer):
        return "more than words, numbers and lists, which its scorer would evaluate"
    if row.dataset in FORMULAS:
        try:
            tree = ast.parse(answer, mode="eval") if len(answer) <= MAX_FORMULA else None
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            tree = None
        if tree is None or _bits(tree.body) > MAX_BITS:
            return "not plain arithmetic of a bounded size, which its scorer would evaluate"
    return ""


def _bits(node: ast.expr) -> float:
    """An upper bound for the bits of a formula's numbers, a letter being one; infinite if it is
    more than arithmetic, names of one letter and usual functions."""
    if isinstance(node, ast.Constant):
        plain = type(node.value) in (int, float)
        return max(1.0, float(len(repr(node.value)) * 4)) if plain else math.inf
    if isinstance(node, ast.Name):
        return 1.0 if len(node.id) == 1 or node.id == "pi" else math.inf
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        return _bits(node.operand)
    if isinstance(node, ast.BinOp) and isinstance(node.op, _SUMS):
        return _bits(node.left) + _bits(node.right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _bits(node.left) * _power(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        usual = node.func.id in _FUNCTIONS and len(node.args) == 1
        return _bits(node.args[0]) if usual else math.inf
    return math.inf


def _comes_out(answer: str, row: _Row) -> bool:
    """Each given number is used once, and the target is met exactly."""
    tree = ast.parse(answer, mode="eval")
    used: list[Any] = [part.value for part in ast.walk(tree) if isinstance(part, ast.Constant)]
    known = row.entry["metadata"]
    return sorted(used) == sorted(known["numbers"]) and _value(tree.body) == known.get("target", 24)


def _value(node: ast.expr) -> Fraction | None:
    """The exact value of whole numbers under + - * /; None: it has none, or is something else."""
    if isinstance(node, ast.Constant):
        return Fraction(node.value) if type(node.value) is int else None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _value(node.operand)
        return None if inner is None else -inner
    if not isinstance(node, ast.BinOp) or type(node.op) not in _EXACT:
        return None
    left, right = _value(node.left), _value(node.right)
    if left is None or right is None or (isinstance(node.op, ast.Div) and not right):
        return None
    return _EXACT[type(node.op)](left, right)


def _near(answer: str, gold: str) -> bool:
    a, b = number(answer), number(gold)
    return a is not None and b is not None and abs(a.value - b.value) * 1000 <= abs(b.value)


def _power(node: ast.expr) -> float:
    """The size of an exponent: a plain number, a quotient of such, or something with a letter."""
    sign = node.operand if isinstance(node, ast.UnaryOp) else node
    if isinstance(sign, ast.Constant) and isinstance(sign.value, int | float):
        return max(1.0, abs(sign.value)) if abs(sign.value) <= MAX_POWER else math.inf
    if isinstance(sign, ast.BinOp) and isinstance(sign.op, ast.Div):
        return max(_power(sign.left), _power(sign.right))
    letters = any(isinstance(part, ast.Name) for part in ast.walk(node))
    nested = any(isinstance(getattr(part, "op", None), ast.Pow) for part in ast.walk(node))
    return max(1.0, _bits(node)) if letters and not nested else math.inf
