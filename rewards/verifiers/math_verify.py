r"""math_verify: the math-verify library as it is, as a second grader to compare `math` with.

Its parser and its comparison with their defaults; only its own timeouts are off (they use signals
and fail off the main thread), so it runs where it can be killed. It can be fooled (the rows of
tests/corpus/math_verify.jsonl with a reason): for audits, not for training.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from rewards.grader import Examples
from rewards.verdict import Status, Verdict
from samplers.seam import Component

GRADER = f"math_verify/1 (math-verify {version('math-verify')})"
QUICK = False
"""May hang: never in the calling process."""
READS = ()


class Config(Component):
    float_rounding: int = 6
    """Digits to which floats are compared."""
    strict: bool = True
    """Variables and kinds of brackets count."""


def grade(text: str, gold: str, meta: Mapping[str, Any], config: Config) -> Verdict:
    """Verdict of one answer: a gold it cannot read is a gold_error, such an answer unparseable."""
    from math_verify import verify

    wanted = _gold(gold)
    if not wanted:
        return _verdict("gold_error", detail=f"math-verify cannot read {gold[:80]!r}")
    if not text.strip():
        return _verdict("no_answer")
    found = _parsed(text)
    if not found:
        return _verdict("unparseable", detail="math-verify finds no answer")
    right = verify(
        wanted,
        found,
        float_rounding=config.float_rounding,
        strict=config.strict,
        timeout_seconds=None,
    )
    return _verdict("ok" if right else "wrong", str(found[0]))


@lru_cache(maxsize=4096)
def _gold(gold: str) -> list[Any]:
    """The gold as it stands, or as a formula: its parser looks for mathematics in a text."""
    boxed = gold if "boxed" in gold else rf"\boxed{{{gold}}}"
    return _parsed(boxed) or _parsed(gold)


def _parsed(text: str) -> list[Any]:
    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)
    return list(parse(text, parsing_timeout=None))


def _verdict(status: Status, answer: str | None = None, detail: str = "") -> Verdict:
    return Verdict(status == "ok", float(status == "ok"), status, answer, GRADER, detail)


def examples(gold: str, meta: Mapping[str, Any], config: Config) -> Examples:
    """A right answer text; a wrong one would prove nothing."""
    return Examples((rf"\boxed{{{gold}}}",))


def warm() -> None:
    """Import sympy and build its parser."""
    grade(r"\boxed{2\sqrt{2}}", r"\sqrt{8}", {}, Config())
