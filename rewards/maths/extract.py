r"""The answers that a text states: boxes, or else one stated answer, formula or line.

A text may be megabytes of `\boxed{`: no more than WINDOW characters of it are read, once each.
"""

from __future__ import annotations

import re
from typing import NamedTuple

WINDOW = 1 << 14
"""Characters of a longer text that are read: around its last box, or at its end."""
TAIL = 4096
"""Characters at the end of a text in which an answer without a box is looked for."""
LONG_GOLD = 512
"""A gold of more characters is a solution that ends with its answer."""
MAX_BOXES = 64
"""More boxes than this are no answer that all of them could be meant by."""

_TOKEN = re.compile(
    r"(?<!\\)\\+(?:boxed|fbox)[ \t\n]*"
    r"(?:\{|(?P<bare>[0-9]+(?:\.[0-9]+)?)(?= *(?:\$|\\[)\]]|\.?(?:\n|$))))|\\.|[{}]",
    re.S,
)
_BOX = re.compile(r"\\(?:boxed|fbox)[ \t\n]*\{")
# What may stand between two boxes that make one list: `\boxed{1}, \boxed{2}`,
# `$x = \boxed{1}$ and $y = \boxed{2}$`; at most a few words before an 'and'.
_BETWEEN = re.compile(
    r"[\s$\\()\[\]]*(?:(?:,|;)\s*(?:\\text\{)?\s*(?:and\b|or\b)?|"
    r"(?:\\text\{|\}|[A-Za-z()\s]){0,30}?(?<![A-Za-z])(?:and|or)(?![A-Za-z])|&)\s?\}?"
    r"(?:\\q?quad|[\s$\\()\[\]~])*(?:[A-Za-z](?:_\w|_\{\w+\})?\s*=\s*)?[\s$\\()\[\]]*"
)
_GAP = re.compile(r"[\s$]*")
_PERCENT = re.compile(r"[\s$]{0,4}(?:\\\)|\\\])?\s{0,2}(?:\\text\{\s?)?(?:\\?%|percent\b|pct\b)")
_STATED = re.compile(
    r"^[#* ]*(?:the )?(?:final )?answer[*: ]*\n|(?<![A-Za-z])answer(?![A-Za-z])|####", re.I | re.M
)
_IS = re.compile(r"[\s*_]{0,4}(?:\s(?:is|equals|would be)(?![A-Za-z])|:|=)[\s*_:]{0,4}", re.I)
# Where a sentence goes on to give reasons.
_REASON = re.compile(
    r"[\s,;]\(?(?:since|because|as|which|where|when|by|so|thus|hence|for)(?![A-Za-z])"
    r"|\s\((?!\s*(?:or|and|not)(?![A-Za-z]))"
)
_DOUBT = re.compile(
    r"\d|\?|n['\u2019]t(?![A-Za-z])|(?<![A-Za-z])(?:not?|nor|never|n?either|or|but|doubt|cannot|wrong|"
    r"incorrect|false|unless|if|maybe|perhaps|possibly|except|million|billion|thousand|hundred|"
    r"squared|cubed)(?![A-Za-z])",
    re.I,
)
_LAST_IS = re.compile(r".*\b(?:is|are|equals) ", re.I)
_FORMULA = re.compile(
    r"(?<!\\)\$\$([^$]+)\$\$|(?<!\\)\$([^$]+?)(?<!\\)\$|\\\(((?:[^\\]|\\[^()\[\]])+)\\\)|"
    r"\\\[((?:[^\\]|\\[^()\[\]])+)\\\]"
)
_QUOTES = " *_`\"'\u201c\u201d"
_SENTENCE = re.compile(r"\.(?=\s|$)(?![^{}]*\})|\n")


class Found(NamedTuple):
    """One answer: its parts are boxes that make one list (nearly always a single one)."""

    parts: tuple[str, ...]
    percent: bool = False
    r"""A percent sign follows the box: `\boxed{28}\%` is 28 as much as it is 28%."""

    @property
    def text(self) -> str:
        return ", ".join(self.parts)

    def rewritten(self) -> str:
        """An answer text in which exactly this is found."""
        boxes = ", ".join(rf"\boxed{{{part}}}" for part in self.parts)
        return boxes + (r"\%" if self.percent else "")


class _Box(NamedTuple):
    start: int
    inner: int
    end: int


def boxes(text: str) -> list[str]:
    r"""Contents of the balanced, outermost `\boxed{...}` of `text`, in order."""
    return [text[box.inner : box.end] for box in _boxes(text)]


def _boxes(text: str) -> list[_Box]:
    """One pass: each brace is looked at once."""
    if "boxed" not in text and "fbox" not in text:
        return []
    opened: list[tuple[int, int] | None] = []  # (start, inner) of a box, None of a plain brace
    closed: list[_Box] = []
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token == "{":
            opened.append(None)
        elif token == "}":
            if opened and (box := opened.pop()):
                while closed and closed[-1].start > box[0]:
                    closed.pop()  # inside this one
                closed.append(_Box(*box, match.start()))
        elif match["bare"]:
            closed.append(_Box(match.start(), match.start("bare"), match.end("bare")))
        elif len(token) > 2:
            opened.append((match.start(), match.end()))
    return closed


def found(text: str, limit: int) -> list[Found]:
    """All answers that `text` gives in boxes, or the one it gives without; [] if it gives none.

    `limit`: characters that an answer without a box may have; 0: there is none without.
    """
    text = _window(text)
    answers = _lists(text, _boxes(text)[-MAX_BOXES - 1 :], False)
    if answers:
        return answers
    line = bare(text, limit)
    return [] if line is None else [Found((line[0],), line[1])]


def _window(text: str) -> str:
    if len(text) <= WINDOW:
        return text
    last = max(text.rfind("boxed"), text.rfind("fbox"))
    end = len(text) if last < 0 else min(len(text), last + WINDOW // 2)
    return text[max(0, end - WINDOW) : end]


def gold(text: str) -> Found:
    """The answer that a gold writes: in boxes, as the end of a solution, or the gold itself."""
    whole, text = text, _window(text)
    if lists := _lists(text, _boxes(text)[-MAX_BOXES:], True):
        return lists[-1]
    said = _stated(text[-TAIL:], 64) if len(text) > LONG_GOLD else None
    return Found((said[0],), said[1]) if said else Found((whole,))


def _lists(text: str, found: list[_Box], touching: bool) -> list[Found]:
    """Boxes grouped into answers; `touching`: boxes with nothing in between are a list as well."""
    groups: list[list[_Box]] = []
    for box in found:
        between = text[groups[-1][-1].end + 1 : box.start] if groups else ""
        joined = groups and len(between) <= 64 and _BETWEEN.fullmatch(between)
        if groups and (joined or (touching and len(between) <= 64 and _GAP.fullmatch(between))):
            groups[-1].append(box)
        else:
            groups.append([box])
    out = []
    for group in groups:
        parts = dict.fromkeys(_stripped(text[box.inner : box.end]) for box in group)
        out.append(Found(tuple(parts), bool(_PERCENT.match(text, group[-1].end + 1))))
    return out


def _stripped(part: str) -> str:
    r"""Without spaces around; `5\ ` keeps the one that its backslash needs."""
    short = part.strip()
    return f"{short} " if len(short) - len(short.rstrip("\\")) & 1 else short


def bare(text: str, limit: int) -> tuple[str, bool] | None:
    """The answer of a text without a box, and whether a percent sign follows its formula.

    Of the last <answer>...</answer>, or of all: the last "answer is ...", else the only formula,
    else the whole text if it is a short line.
    """
    if limit <= 0 or _BOX.search(text):
        return None  # a box that was opened and never closed is an answer cut off
    if (end := text.rfind("</answer>")) >= 0 and (start := text.rfind("<answer>", 0, end)) >= 0:
        text = text[start + len("<answer>") : end]
    said = _stated(text[-TAIL:], limit) or _line(text.strip()[: TAIL + 1], limit)
    return said if said and balanced(said[0]) else None


def _stated(tail: str, limit: int) -> tuple[str, bool] | None:
    for match in reversed(list(_STATED.finditer(tail))):
        rest = tail[match.end() : match.end() + 1024]
        joint = _IS.match(rest) if match[0][-1] in "rR" else re.match(r"\s*", rest)
        if joint is None:
            continue
        rest = rest[joint.end() :].lstrip()
        if formula := _FORMULA.match(rest):
            return _sentence(formula, rest, limit)
        line = _SENTENCE.split(rest, maxsplit=1)[0]
        if verb := _LAST_IS.match(line):
            line = line[verb.end() :]
        line = line.strip(_QUOTES)
        if line and len(line) <= limit:
            return line, False
    return None


def _sentence(formula: re.Match[str], rest: str, limit: int) -> tuple[str, bool] | None:
    """A formula with what its sentence adds to it: `$5$ or $6$` is no way to say 5."""
    if _PERCENT.match(rest, formula.end()):
        return _inner(formula), True
    after = _SENTENCE.split(rest[formula.end() :], maxsplit=1)[0]
    after = _REASON.split(after, maxsplit=1)[0].strip(_QUOTES + ".,:;!)]")
    return (f"{_inner(formula)} {after}".rstrip(), False) if len(after) <= limit else None


def _line(text: str, limit: int) -> tuple[str, bool] | None:
    if len(text) > 600:
        return None
    formulas = list(_FORMULA.finditer(text))
    if len(formulas) == 1:
        only = formulas[0]
        outside = text[: only.start()] + text[only.end() :]
        if not _DOUBT.search(outside):
            return _inner(only), bool(_PERCENT.match(text, only.end()))
    text = text.strip(_QUOTES)
    return (text, False) if text and len(text) <= limit and "\n" not in text else None


def _inner(formula: re.Match[str]) -> str:
    return next(part for part in formula.groups() if part is not None).strip()


def balanced(text: str) -> bool:
    """Braces match, and no backslash is left over at the end."""
    depth = 0
    for match in re.finditer(r"\\.|[{}]|\\$", text, re.S):
        if match[0] == "\\":
            return False
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth < 0:
            return False
    return depth == 0
