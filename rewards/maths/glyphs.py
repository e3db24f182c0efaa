r"""Characters of written mathematics that have a plain spelling: `½`, `x²`, `√5`, `≤`, `５`.

What shows nothing (zero-width marks) is dropped, what turns the line around is refused, and a
letter that only looks like another (a Cyrillic A) stays what it is: another letter.
"""

from __future__ import annotations

import re
import unicodedata

_SIGNS = {
    "\u2212": "-",
    "\ufe63": "-",
    "\uff0d": "-",
    "\u2010": "-",
    "\u2011": "-",
    "\u00d7": r"\cdot ",
    "\u00b7": r"\cdot ",
    "\u22c5": r"\cdot ",
    "\u2219": r"\cdot ",
    "\u2217": r"\cdot ",
    "\u00f7": "/",
    "\u2044": "/",
    "\u2215": "/",
    "\u00b1": r"\pm ",
    "\u2213": r"\mp ",
    "\u221e": r"\infty ",
    "\u222a": r"\cup ",
    "\u2229": r"\cap ",
    "\u2208": r"\in ",
    "\u2205": r"\emptyset ",
    "\u00b0": r"^\circ ",
    "\u2220": r"\angle ",
    "\u2264": r"\le ",
    "\u2265": r"\ge ",
    "\u2260": r"\ne ",
    "\u2248": r"\approx ",
    "\u2261": r"\equiv ",
    "\u2026": r"\ldots ",
    "\u22ef": r"\cdots ",
    "\u2211": r"\sum ",
    "\u222b": r"\int ",
    "\u220f": r"\prod ",
    "\u211d": r"\mathbb{R}",
    "\u2124": r"\mathbb{Z}",
    "\u2115": r"\mathbb{N}",
    "\u211a": r"\mathbb{Q}",
    "\u2102": r"\mathbb{C}",
    "\u27e8": "(",
    "\u27e9": ")",
    "\u00b5": r"\mu ",
    "\u2019": "'",
    "\u2018": "'",
    "\u2032": "'",
    "\u3000": " ",
    "\u00a0": " ",
    "\uff0c": ",",
    "\u3001": ",",
    "\uff1a": ":",
    "\uff1b": ";",
    "\uff08": "(",
    "\uff09": ")",
    "\uff05": "%",
    "\uff1d": "=",
    "\uff0b": "+",
    "\uff0f": "/",
    "\u3002": ".",
}
_GREEK_NAMES = """alpha beta gamma delta epsilon zeta eta theta lambda mu nu xi pi rho sigma tau phi
chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega"""
_GREEK_LETTERS = (
    "\u03b1\u03b2\u03b3\u03b4\u03b5\u03b6\u03b7\u03b8\u03bb\u03bc\u03bd\u03be\u03c0\u03c1\u03c3\u03c4"
    "\u03c6\u03c7\u03c8\u03c9\u0393\u0394\u0398\u039b\u03a3\u03a6\u03a8\u03a9"
)
_GREEK = dict(zip(_GREEK_LETTERS, _GREEK_NAMES.split(), strict=True))
_ONE_BY_ONE = str.maketrans(_SIGNS | {char: rf"\{name} " for char, name in _GREEK.items()})
_MONEY = {"\u00a2": "cent", "\u20ac": "euro", "\u00a3": "pound", "\u00a5": "yen", "\u20b9": "rupee"}
_RAISED = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b"
_LOWERED = "\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089"
_POWER = re.compile(f"[{_RAISED}]+")
_INDEX = re.compile(f"[{_LOWERED}]+")
_ROOT = re.compile(r"\u221a\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|[A-Za-z]))")
_DASHES = re.compile(r"(?<![\d\s])\s*[\u2013\u2014]|(?<=\d)\s*[\u2013\u2014](?=\s*[A-Za-z\\(])")
_TURNED = re.compile("[\u202a-\u202e\u2066-\u2069]")
_UNSEEN = re.compile("[\u200b-\u200f\u2060-\u2064\ufeff\u00ad\ufe0e\ufe0f\u061c\u180e]")


def plain(text: str) -> str:
    """The text with what has a plain spelling so spelt; its value is unchanged.

    A dash between two numbers is a range (5-6 written with an en dash) and no minus: it stays.
    """
    if text.isascii():
        return text
    text = _UNSEEN.sub("", text)
    text = _DASHES.sub("-", text)
    text = "".join(_digit(char) for char in text)
    text = _POWER.sub(lambda m: f"^{{{_shifted(m[0], _RAISED)}}}", text)
    text = _INDEX.sub(lambda m: f"_{{{_shifted(m[0], _LOWERED)}}}", text)
    text = _ROOT.sub(lambda m: rf"\sqrt{{{m[1] or m[2] or m[3] or ''}}}", text)
    for char, name in _MONEY.items():
        if char in text:
            text = text.replace(char, "").strip() + rf"\text{{ {name}}}"
    return text.translate(_ONE_BY_ONE)


def refused(text: str) -> str:
    """Why characters of a text (not yet plain) cannot be trusted to show what they are."""
    return "characters that turn the line around" if _TURNED.search(text) else ""


def foreign(text: str) -> str:
    """The first character of a plain text that mathematics here does not use, or ''."""
    return next((char for char in text if not " " <= char <= "~"), "")


def _digit(char: str) -> str:
    """Digits of any script and of mathematical styles as 0-9, `½` as a fraction."""
    if char.isascii():
        return char
    if unicodedata.category(char) == "Nd":
        return str(unicodedata.decimal(char))
    name = unicodedata.normalize("NFKC", char)
    if len(name) == 3 and name[1] == "\u2044":
        return rf"\frac{{{name[0]}}}{{{name[2]}}}"
    styled = 0x1D400 <= ord(char) <= 0x1D7FF or 0xFF21 <= ord(char) <= 0xFF5A
    return name if styled else char


def _shifted(run: str, alphabet: str) -> str:
    return "".join("0123456789+-"[alphabet.index(char)] for char in run)
