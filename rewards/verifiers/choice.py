r"""choice: multiple choice. Which label does the answer commit to?

A statement is a `\boxed{...}` or `<answer>...</answer>`; without one, what follows 'Answer:' or
'the answer is' on its line; without that, the last line or the whole of a short answer if it is
nothing but a label or an option. It names labels (`C`, `(C) Paris`, `A and C`) or, where the row
lists its options, the text of one.

Policies. Of several statements the last counts, or all must agree (`statements`). A statement that
names another label than the gold's is wrong, whatever else it names; so is one that leaves a choice
(`B or C`) and one whose label and option text disagree. A guess is right once in the number of
options: no grader can see that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from rewards.grader import Examples
from rewards.maths import extract, notation
from rewards.verdict import Status, Verdict
from samplers.seam import Component

GRADER = "choice/1"
QUICK = True
READS = ("options", "choices")
"""The columns that may hold the options."""
LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
USUAL = 8
"""Labels that count where the row lists no options; a gold beyond them raises it."""
MAX_STATEMENT = 512
"""Characters of a statement that are looked at."""
OPEN = "or"
"""Stands among the labels of a statement that leaves a choice: it is no label of any gold."""

_SAYS = re.compile(
    r"(?:\banswer|\u7b54\u6848|\b(?:correct|right|best) (?:option|choice))[ \t*_]*"
    r"(?:(?:\bis\b|\u662f|\u4e3a|[:=\uff1a])[ \t*_]*)+\n{0,2}",
    re.I,
)
_TAGS = re.compile(r"<answer>([^<]*)</answer>", re.I)
_MATHS = re.compile(r"\\[()\[\]]")
_NOISE = " \t\n\r$*_`\"'\u201c\u201d\u2018\u2019"
_NAMED = re.compile(r"(?:the )?(?:correct )?(?:option|choice|answer) ", re.I)
_LABEL = r"(?:\((?P<p>\w{1,2})\)|\[(?P<s>\w{1,2})\]|(?P<b>\w{1,2})(?![\w'^=+*\\(]))"
_FIRST = re.compile(_LABEL)
_NEXT = re.compile(rf" ?(?P<by>, ?(?:and |or )?|[/&;]|and |or ) ?{_LABEL}")
_AFTER = re.compile(
    r"\*{0,2} ?(?:$|[.:,;!)\]]|[-\u2013\u2014] |\b(?:because|since|as|which|(?:is|are) correct)\b)"
)
_DOUBT = re.compile(r"[ ,;.]*(?:but )?(?:maybe|perhaps|possibly|unless|or)\b", re.I)
_WRAPPED = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox) ?\{([^{}]*)\}")


class Config(Component):
    statements: Literal["last", "agree"] = "last"
    """Of several statements of an answer: the last counts, or all must name the same."""
    counted_from: Literal[0, 1] | None = None
    """What a gold that is a number counts options from (0: MMLU). None: such a gold is an error,
    unless the row's own labels or options are numbers."""
    bare: int = Field(64, ge=0)
    """Longest line, in characters, that may be a statement without a box or 'Answer:'; the text of
    an option may be longer. 0: there must be a box or 'Answer:'."""


def grade(text: str, gold: str, meta: Mapping[str, Any], config: Config) -> Verdict:
    """Verdict of one answer.

    A gold that is no label and no option's text, and options that cannot be read, are a gold_error;
    an answer that states nothing is no_answer, one that names no label or option unparseable.
    """
    try:
        options = _options(meta)
        wanted = _gold(gold, options, config)
    except ValueError as reason:
        return _verdict("gold_error", detail=str(reason))
    if not options:
        options = dict.fromkeys(LABELS[: max(USUAL, 1 + LABELS.index(max(wanted)))], "")
    named = _stated(text, options, config)
    if not named:
        return _verdict("no_answer")
    if named[-1] is None:
        return _verdict("unparseable", detail=f"no label or option: {text.strip()[-80:]!r}")
    agreed = config.statements == "last" or all(one == named[-1] for one in named)
    right = agreed and named[-1] == wanted
    return _verdict("ok" if right else "wrong", ", ".join(sorted(named[-1])))


def examples(gold: str, meta: Mapping[str, Any], config: Config) -> Examples:
    """The gold's labels, and a label that is not among them."""
    try:
        options = _options(meta)
        wanted = _gold(gold, options, config)
    except ValueError:
        return Examples((gold,))
    other = [label for label in options or LABELS[:4] if _first(label, options) not in wanted]
    right = rf"\boxed{{{', '.join(sorted(wanted))}}}"
    return Examples((right,), tuple(rf"\boxed{{{label}}}" for label in other[:1]))


def _verdict(status: Status, answer: str | None = None, detail: str = "") -> Verdict:
    return Verdict(status == "ok", float(status == "ok"), status, answer, GRADER, detail)


# What is right


def _options(meta: Mapping[str, Any]) -> dict[str, str]:
    """Text of each label; empty where the row lists none.

    A list ('A' is the first), {label: text}, or {label: [...], text: [...]}; JSON text of those.

    Raises:
        ValueError: something else.
    """
    given = next((meta[name] for name in READS if meta.get(name) is not None), None)
    if given is None:
        return {}
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            raise ValueError(f"the options are text, not a list: {given[:80]!r}") from None
    pairs: list[tuple[Any, Any]] = []
    if isinstance(given, Mapping):
        labels, texts = given.get("label"), given.get("text")
        both = isinstance(labels, Sequence) and isinstance(texts, Sequence) and len(given) == 2
        if both and not isinstance(texts, str):
            pairs = list(zip(labels or (), texts or (), strict=False))
        else:
            pairs = list(given.items())
    elif isinstance(given, Sequence) and len(given) <= len(LABELS):
        pairs = list(zip(LABELS, given, strict=False))
    if not pairs:
        raise ValueError(f"the options are no list of 1 to {len(LABELS)}: {str(given)[:80]!r}")
    return {str(name).strip().upper(): _unlabelled(str(name), str(text)) for name, text in pairs}


def _unlabelled(label: str, text: str) -> str:
    """'(B) Paris' as option B is 'Paris'."""
    return re.sub(rf"^(?:\({re.escape(label)}\)|{re.escape(label)}[.):]) *(?=\S)", "", text.strip())


def _gold(gold: str, options: Mapping[str, str], config: Config) -> frozenset[str]:
    """The labels that are right.

    Raises:
        ValueError: the gold names none.
    """
    gold = gold.strip()
    if not gold:
        raise ValueError("the gold answer is empty")
    labels = list(options) or list(LABELS)
    if gold.isascii() and gold.isdigit() and gold not in options and not _by_text(gold, options):
        if config.counted_from is None:
            raise ValueError(
                f"the gold {gold[:9]} is a number; say from what options are counted: "
                "{name: choice, counted_from: 0}, or 1"
            )
        place = int(gold[:9]) - config.counted_from
        if not 0 <= place < len(labels):
            raise ValueError(f"the gold {gold[:9]} counts beyond {len(labels)} options")
        return frozenset({_first(labels[place], options)})
    named = _named(gold, options or dict.fromkeys(LABELS, ""))
    if not named or OPEN in named:
        among = f" among {', '.join(labels)}" if options else ""
        raise ValueError(f"the gold names no label{among} and no option: {gold[:80]!r}")
    return named


def _first(label: str, options: Mapping[str, str]) -> str:
    """The first label with the same text: options that say the same are one."""
    text = options.get(label)
    return next((other for other, said in options.items() if text and said == text), label)


def _by_text(said: str, options: Mapping[str, str]) -> str | None:
    """The label of the option that `said` is; None too where two options differ in case alone."""
    exact = [label for label, text in options.items() if text and text == said.strip()]
    alike = {
        _first(label, options) for label, text in options.items() if text and _alike(text, said)
    }
    return exact[0] if exact else alike.pop() if len(alike) == 1 else None


def _alike(one: str, other: str) -> bool:
    return _plain(one) == _plain(other)


def _plain(text: str) -> str:
    text = notation.squeeze(notation.tidy(text[:MAX_STATEMENT])) if "\\" in text else text
    return "".join(text.casefold().split()).strip(_NOISE + ".")


# What is said


def _stated(text: str, options: Mapping[str, str], config: Config) -> list[frozenset[str] | None]:
    """The labels of each statement, in order; None: it names none."""
    if marked := extract.boxes(text) or _TAGS.findall(text):
        return [_named(one, options) for one in marked] if marked[-1].strip() else []
    found = list(_SAYS.finditer(text))
    ends = [after.start() for after in found[1:]] + [len(text)]
    said = [
        text[m.end() : min(end, m.end() + MAX_STATEMENT)].partition("\n")[0]
        for m, end in zip(found, ends, strict=False)
    ]
    if named := [labels for one in said if (labels := _named(one, options))]:
        return list(named)
    whole = text.strip()
    last = whole.rpartition("\n")[2].strip()
    short = config.bare and (len(last) <= config.bare or _by_text(last, options))
    if last and short and (last == whole or _alone(last, options)):
        return [_named(last, options)]
    return [None] if said else []


def _alone(line: str, options: Mapping[str, str]) -> bool:
    """A line that is a label and nothing else."""
    return line.strip(_NOISE + "()[].") in options and line.strip(_NOISE + "()[].").isupper()


def _named(said: str, options: Mapping[str, str]) -> frozenset[str] | None:
    """The labels that a statement commits to; with OPEN among them it leaves a choice."""
    said = _MATHS.sub("", said[:MAX_STATEMENT].replace("\u3002", "."))
    said = _WRAPPED.sub(r"\1", said).strip(_NOISE)
    bare = said.strip(_NOISE + "()[].").upper()
    if bare in options:  # a label alone, in either case, or one that is a number
        return frozenset({_first(bare, options)})
    if (label := _by_text(said, options)) is not None:
        return frozenset({label})
    said = _NAMED.sub("", said, count=1).strip(_NOISE)
    if (
        1 < len(said) <= len(options)
        and set(said) <= set(options)
        and list(said) == sorted(set(said))
    ):
        return frozenset(_first(label, options) for label in said)  # 'ACD'
    match = _FIRST.match(said)
    if match is None or _label(match) not in options:
        return None
    labels = {_label(match)}
    while (after := _NEXT.match(said, match.end())) and _label(after) in options:
        labels |= {_label(after)} | ({OPEN} if after["by"].strip(", ") in ("or", "/") else set())
        match = after
    rest = said[match.end() :]
    labels |= {OPEN} if _DOUBT.match(rest) else set()
    if not _AFTER.match(rest) and match["b"]:
        return None  # 'A dog': an article
    text = rest.strip(_NOISE + ".:,;!)]-\u2013\u2014")
    if text and len(labels) == 1 and (other := _by_text(text, options)):
        labels.add(other)  # 'B) Paris' where Paris is C
    return frozenset(_first(label, options) for label in labels)


def _label(match: re.Match[str]) -> str:
    return match["p"] or match["s"] or match["b"]
