r"""Equality of two written answers by another way than ours: both are evaluated at random points.

A small reader of LaTeX and multiple precision numbers, no computer algebra and nothing of
`rewards`: what decides whether a changed answer is really another answer may not be what is tested.
"""

from __future__ import annotations

import hashlib
import re

import mpmath  # type: ignore[import-untyped]

DIGITS = 1600
"""2^4181 and one more than it are two numbers."""
_TOKEN = re.compile(r"\d+\.?\d*|\.\d+|\\[A-Za-z]+|\\.|[A-Za-z]|\S")
_DROPPED = re.compile(
    r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[!,;: ]|\\\$|~"
    r"|\^\{?\\circ\}?|\\(?:text|mbox|textbf|mathrm|textnormal)\s*\{[^{}]*\}(?:\^\{?\d\}?)?"
)
_FUNCTIONS = re.compile(r"sin|cos|tan|cot|sec|csc|ln|log|arcsin|arccos|arctan|sinh|cosh|tanh")


class _Reader:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, text: str, seed: int) -> None:
        self.tokens = _TOKEN.findall(text)
        self.at = 0
        self.seed = seed

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        token = self.peek()
        if not token or (expected and token != expected):
            raise ValueError(f"{expected or 'a token'} expected")
        self.at += 1
        return token

    def sum(self) -> mpmath.mpc:
        total = self.product()
        while self.peek() in ("+", "-"):
            total = total + self.product() if self.take() == "+" else total - self.product()
        return total

    def product(self) -> mpmath.mpc:
        if self.peek() in ("+", "-"):
            return self.product() if self.take() == "+" else -self.product()
        value, whole = self.power()
        while True:
            token = self.peek()
            if token in ("*", r"\cdot", r"\times"):
                self.take()
                value, whole = value * self.signed(), False
            elif token == "/":
                self.take()
                value, whole = value / self.signed(), False
            elif token == r"\%" or token == "%":
                self.take()
                value = value / 100
            elif token in ("", "+", "-", ")", "]", "}", ",", "="):
                return value
            elif whole and token == r"\frac":
                value, whole = value + self.power()[0], False  # a mixed number
            else:
                value, whole = value * self.power()[0], False

    def signed(self) -> mpmath.mpc:
        if self.peek() == "-":
            self.take()
            return -self.power()[0]
        return self.power()[0]

    def power(self) -> tuple[mpmath.mpc, bool]:
        """(value, whether it is a bare integer)."""
        bare = self.peek().isdigit()
        value = self.atom()
        if self.peek() == "^":
            self.take()
            return mpmath.power(value, self.argument()), False
        return value, bare

    def argument(self) -> mpmath.mpc:
        r"""A group, or what `\frac12` and `x^2` take without braces: one digit or token."""
        token = self.peek()
        if token == "{":
            self.take()
            value = self.sum()
            self.take("}")
            return value
        if token.isdigit() and len(token) > 1:
            self.tokens[self.at : self.at + 1] = [token[0], token[1:]]
        return self.atom()

    def atom(self) -> mpmath.mpc:
        token = self.take()
        if re.fullmatch(r"\d+\.?\d*|\.\d+", token):
            return mpmath.mpf(token)
        if token in ("(", "[", "{"):
            value = self.sum()
            self.take({"(": ")", "[": "]", "{": "}"}[token])
            return value
        if token == r"\frac":
            return self.argument() / self.argument()
        if token == r"\sqrt":
            degree = mpmath.mpf(2)
            if self.peek() == "[":
                self.take()
                degree = self.sum()
                self.take("]")
            return mpmath.power(self.argument(), 1 / degree)
        if token == r"\pi":
            return +mpmath.pi
        if token in ("e", "i"):
            return mpmath.e if token == "e" else mpmath.mpc(0, 1)
        if _FUNCTIONS.fullmatch(token[1:]):
            return self.function(token[1:])
        if re.fullmatch(r"[A-Za-z]|\\(?:alpha|beta|theta|omega|lambda)", token):
            return self.unknown(token)
        raise ValueError(f"cannot read {token}")

    def function(self, name: str) -> mpmath.mpc:
        exponent = mpmath.mpf(1)
        if self.peek() == "^":
            self.take()
            exponent = self.argument()
        if exponent == -1 and name in ("sin", "cos", "tan"):
            exponent, name = mpmath.mpf(1), f"a{name}"  # the inverse, not the reciprocal
        name = name.replace("arc", "a").replace("ln", "log")
        return getattr(mpmath, name)(self.power()[0]) ** exponent

    def unknown(self, name: str) -> mpmath.mpf:
        """Some value for a letter, with its index if it has one; the same for the same seed."""
        if self.peek() == "_":
            self.take()
            name += str(self.argument())
        digest = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=8).digest()
        return mpmath.mpf(int.from_bytes(digest, "big")) / 2**63 + mpmath.mpf(1) / 3


def value(text: str, seed: int = 0) -> mpmath.mpc | None:
    """What an expression is worth with its letters set at random; None if it cannot be read."""
    text = re.sub(r"(\d)(?:,\\!\s*|\{,\}|,(?=\d{3}(?!\d)))(?=\d{3})", r"\1", text)
    text = _DROPPED.sub(" ", re.sub(r"\\[dt]frac", r"\\frac", text)).strip().strip("$").strip()
    with mpmath.workdps(DIGITS):
        try:
            reader = _Reader(text.removesuffix("."), seed)
            found = mpmath.mpc(reader.sum())
        except (ValueError, ZeroDivisionError, OverflowError):
            return None
        return None if reader.peek() else found


def same(left: str, right: str) -> bool | None:
    """Whether two written single values are equal; None if one of them cannot be read."""
    verdict = None
    for seed in (1, 2):
        a, b = value(left, seed), value(right, seed)
        if a is None or b is None:
            return None
        with mpmath.workdps(DIGITS):
            verdict = bool(abs(a - b) <= mpmath.mpf(10) ** (20 - DIGITS) * max(abs(a), abs(b)))
        if not verdict:
            return False
    return verdict


def equal(left: str, right: str) -> bool | None:
    """`same` of answers with several parts: bracketed ones in order, bare lists in any order."""
    (open_a, a), (open_b, b) = _parts(left), _parts(right)
    if len(a) != len(b) or open_a != open_b:
        return False
    if not open_a or open_a == "{}":
        rest = list(b)
        for item in a:
            match = next((other for other in rest if same(item, other)), None)
            if match is None:
                return False if all(value(x) is not None for x in (*a, *b)) else None
            rest.remove(match)
        return True
    verdicts = [same(x, y) for x, y in zip(a, b, strict=True)]
    return False if False in verdicts else None if None in verdicts else True


def _parts(text: str) -> tuple[str, list[str]]:
    """The brackets around an answer ('' where there are none) and what is between its commas."""
    text = re.sub(r"(\d)(?:,\\!\s*|\{,\}|,(?=\d{3}(?!\d)))(?=\d{3})", r"\1", text)
    text = re.sub(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[!,;: ]", "", text)
    text = text.strip().strip("$").strip().removesuffix(".")
    text = re.sub(
        r"\\text\{,? ?(?:or|and) ?\}", ",", text.replace(r"\{", "\1").replace(r"\}", "\2")
    )
    text = re.sub(r"^(?:[A-Za-z]|f\(2\)|\(x,y\)) ?= ?", "", text)
    around = ""
    if "," in text and text[0] in "([\1" and text[-1] in ")]\2":
        around, text = (text[0] + text[-1]).replace("\1", "{").replace("\2", "}"), text[1:-1]
    items, depth = [""], 0
    for char in text:
        depth += (char in "([{\1") - (char in ")]}\2")
        if char == "," and depth == 0:
            items.append("")
        else:
            items[-1] += char
    signed = [
        s for i in items for s in ([i.replace(r"\pm", x) for x in "+-"] if r"\pm" in i else [i])
    ]
    return around, [item for item in signed if item.strip()]
