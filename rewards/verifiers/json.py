"""json: the answer is a JSON value equal in structure to the gold's.

The last fenced block of the answer is read, or the whole of it where there is none, as strict JSON:
a repeated key, NaN, Infinity and text after the value are unparseable. Numbers are compared as the
decimals they are written as (1 and 1.0 are equal, 0.1 is a tenth), and never with strings, true or
false. Work is bounded by the limits below, so it cannot hang.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from typing import Any, NoReturn

from pydantic import Field

from rewards.grader import Examples
from rewards.verdict import Status, Verdict
from samplers.seam import Component

GRADER = "json/1"
QUICK = True
READS = ()
MAX_CHARS = 65536
MAX_DEPTH = 64
MAX_EXPONENT_DIGITS = 6
MAX_COMPARISONS = 100_000
"""Pairs of values that one verdict may compare (lists in any order compare many)."""

_FENCE = re.compile(r"^[ \t]*```[^\n`]*$", re.M)
_ROUNDED = Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN)
"""Arithmetic of tolerances; what the limits above let in does not overflow it."""
_KINDS = {dict: "object", list: "list", str: "string", bool: "bool", type(None): "null"}


class Config(Component):
    tolerance: float = Field(0.0, ge=0, lt=1)
    """Numbers may differ by this share of the gold's. 0: not at all."""
    absolute: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Numbers may differ by this much. 0: not at all."""
    unordered: bool = False
    """The items of lists may come in any order, each as often as in the gold."""
    subset: bool = False
    """Objects may have keys that the gold does not name."""


class TooMuchError(Exception):
    """More comparisons than one verdict may cost."""


def grade(text: str, gold: str, meta: Mapping[str, Any], config: Config) -> Verdict:
    """Verdict of one answer. A gold that is no strict JSON is a gold_error."""
    try:
        wanted = _parse(gold)
    except ValueError as reason:
        return _verdict("gold_error", detail=f"the gold is no JSON: {reason}")
    written = _part(text)
    if not written:
        return _verdict("no_answer")
    try:
        answer = _parse(written)
        right = _Comparison(config).equal(wanted, answer)
    except ValueError as reason:
        return _verdict("unparseable", detail=f"no JSON: {reason}")
    except TooMuchError:
        return _verdict("unparseable", detail=f"more than {MAX_COMPARISONS} comparisons")
    return _verdict("ok" if right else "wrong", _canonical(answer, config.unordered))


def examples(gold: str, meta: Mapping[str, Any], config: Config) -> Examples:
    """The gold, alone and fenced; and the gold as the only item of a list."""
    return Examples((gold, f"It is\n```json\n{gold}\n```"), (f"[{gold}]",))


def _verdict(status: Status, answer: str | None = None, detail: str = "") -> Verdict:
    return Verdict(status == "ok", float(status == "ok"), status, answer, GRADER, detail)


def _part(text: str) -> str:
    """The content of the last fenced block (to the end where it is left open), or all."""
    fences = list(_FENCE.finditer(text))
    if not fences:
        return text.strip()
    if len(fences) % 2:
        return text[fences[-1].end() :].strip()
    return text[fences[-2].end() : fences[-1].start()].strip()


def _parse(text: str) -> Any:
    """The value of strict JSON: numbers as Decimal.

    Raises:
        ValueError: it is none, is too long or is nested too deeply.
    """
    if len(text) > MAX_CHARS:
        raise ValueError(f"{len(text)} characters, at most {MAX_CHARS}")
    if _depth(text) > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    return json.loads(
        text,
        object_pairs_hook=_object,
        parse_int=_decimal,
        parse_float=_decimal,
        parse_constant=_constant,
    )


def _depth(text: str) -> int:
    """The deepest nesting of brackets outside strings."""
    depth = deepest = 0
    quoted = escaped = False
    for char in text:
        if quoted:
            quoted = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        else:
            quoted = char == '"'
            depth -= char in "]}"
    return deepest


def _decimal(text: str) -> Decimal:
    if len(text.lower().partition("e")[2].lstrip("+-0")) > MAX_EXPONENT_DIGITS:
        raise ValueError(f"an exponent of more than {MAX_EXPONENT_DIGITS} digits")
    return Decimal(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        raise ValueError("a key is repeated")
    return out


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


class _Comparison:
    """One comparison and what it has cost so far."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.left = MAX_COMPARISONS
        self.close = [Decimal(repr(width)) for width in (config.tolerance, config.absolute)]

    def equal(self, gold: Any, answer: Any) -> bool:
        """Whether `answer` says what `gold` says.

        Raises:
            TooMuchError: the lists are too long to be compared in any order.
        """
        self.left -= 1
        if self.left < 0:
            raise TooMuchError
        if _kind(gold) != _kind(answer):
            return False
        if isinstance(gold, dict):
            keys = (
                gold.keys() <= answer.keys() if self.config.subset else gold.keys() == answer.keys()
            )
            return keys and all(self.equal(gold[key], answer[key]) for key in gold)
        if isinstance(gold, list):
            if len(gold) != len(answer):
                return False
            if self.config.unordered:
                return self._any_order(gold, answer)
            return all(self.equal(g, a) for g, a in zip(gold, answer, strict=True))
        if isinstance(gold, Decimal):
            return self._near(gold, answer)
        return bool(gold == answer)

    def _near(self, gold: Decimal, answer: Decimal) -> bool:
        if gold == answer:
            return True
        relative, absolute = self.close
        away = _ROUNDED.abs(_ROUNDED.subtract(answer, gold))
        return away <= absolute or away <= _ROUNDED.multiply(relative, _ROUNDED.abs(gold))

    def _any_order(self, gold: list[Any], answer: list[Any]) -> bool:
        """Whether the items can be paired off."""
        if not any(self.close) and not self.config.subset:  # equality is one: sort
            return sorted(map(_sorted, gold)) == sorted(map(_sorted, answer))
        fits = [[j for j, a in enumerate(answer) if self.equal(g, a)] for g in gold]
        taken: dict[int, int] = {}
        return all(self._pair(i, fits, taken, set()) for i in range(len(gold)))

    def _pair(self, i: int, fits: list[list[int]], taken: dict[int, int], seen: set[int]) -> bool:
        """Give item `i` a partner, moving others to other partners where that helps."""
        for j in fits[i]:
            self.left -= 1
            if self.left < 0:
                raise TooMuchError
            if j in seen:
                continue
            seen.add(j)
            if j not in taken or self._pair(taken[j], fits, taken, seen):
                taken[j] = i
                return True
        return False


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "number")


def _sorted(value: Any) -> str:
    return _canonical(value, unordered=True)


def _canonical(value: Any, unordered: bool) -> str:
    """One string for equal values."""
    if isinstance(value, dict):
        items = (f"{json.dumps(k)}: {_canonical(v, unordered)}" for k, v in sorted(value.items()))
        return f"{{{', '.join(items)}}}"
    if isinstance(value, list):
        texts = [_canonical(item, unordered) for item in value]
        return f"[{', '.join(sorted(texts) if unordered else texts)}]"
    if isinstance(value, Decimal):
        return _number(value)
    return json.dumps(value)


def _number(value: Decimal) -> str:
    """One spelling of a decimal's value, whatever its exponent."""
    sign, digits, exponent = value.as_tuple()
    text = "".join(map(str, digits))
    kept = text.rstrip("0").lstrip("0")
    if not kept:
        return "0"
    power = int(exponent) + len(text) - len(text.rstrip("0"))
    if 0 <= power <= 20:
        kept, power = kept + "0" * power, 0
    return "-" * sign + kept + (f"e{power}" if power else "")
