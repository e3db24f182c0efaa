r"""What is not even tried: answers that hide their value, and answers that may cost too much.

All checks are linear in the text, which is short. A sign that the gold uses itself is allowed.
"""

from __future__ import annotations

import re

from rewards.maths import glyphs
from rewards.maths.notation import squeeze

MAX_CHARS = 512
MAX_DEPTH = 12
MAX_POWER = 99_999
MAX_EXPANSION = 20

_APPROXIMATE = (r"\approx", r"\sim", r"\simeq", r"\doteq", r"\cong")
_ELLIPSIS = (r"\dots", r"\ldots", r"\cdots", r"\dotsc", r"\dotsb", "...")
_UNEVALUATED = (
    r"\sum",
    r"\int",
    r"\prod",
    r"\lim",
    r"\binom",
    r"\choose",
    r"\frac{d}",
    "matrix}^",
    "vmatrix",
    "mod",
    "!",
)
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_HEDGE = re.compile(
    r"\\text ?\{[^{}]*\b(?:or|and|not|nor|but|maybe|perhaps|else|wait|possibly|about|approximately|"
    r"at least|at most|either|up to)\b|[\d})] (?:or|not|maybe|perhaps|to|through|versus|vs) ",
    re.I,
)
# Commands whose meaning is known once a text is tidy. The rest is refused: what is not known may
# show something else than is read (\phantom, \color, \cancel, \not, \rlap, \stackrel).
_COMMANDS = """
frac sqrt cdot pm mp le ge ne in cup cap setminus emptyset infty circ text begin end angle
triangle overline bar hat vec dot mathbb mathcal lfloor rfloor lceil rceil log ln lg exp
sin cos tan cot sec csc cosec arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth
arcsinh arccosh arctanh min max gcd lcm bmod pmod mod equiv sum int prod lim binom choose dots
ldots cdots dotsc dotsb to approx sim simeq doteq cong mid prime partial deg det perp parallel
subset subseteq notin land lor Re Im rightarrow ell wedge alpha beta gamma delta epsilon
varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi varphi
chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega overrightarrow
overleftrightarrow widehat implies iff Rightarrow therefore hbar forall exists
"""
_KNOWN = frozenset(_COMMANDS.split())


def refusal(answer: str, gold: str) -> str:
    """Why a tidy answer is not looked at ('' if it is): it hides its value or may cost too much."""
    for kind, signs in (
        ("approximate", _APPROXIMATE),
        ("with an ellipsis", _ELLIPSIS),
        ("not evaluated", _UNEVALUATED),
    ):
        for sign in signs:
            if sign in answer and sign not in gold:
                return f"{kind}: {sign}"
    known = _KNOWN.union(_COMMAND.findall(gold))
    strange = next((name for name in _COMMAND.findall(answer) if name not in known), "")
    if strange:
        return f"a command that may hide something: \\{strange}"
    odd = next((c for c in answer if glyphs.foreign(c) and c not in gold), "")
    if odd:
        return f"a character that is no notation: U+{ord(odd):04X}"
    if "'" in answer and "'" not in gold:
        return "a prime or an apostrophe"
    if _HEDGE.search(answer) and not _HEDGE.search(gold):
        return "words that take it back"
    return _cost(answer)


def _cost(text: str) -> str:
    if len(text) > MAX_CHARS:
        return f"more than {MAX_CHARS} characters"
    depth = deepest = 0
    for char in text:
        depth += (char in "{([") - (char in "})]")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        return f"nested {deepest} deep, at most {MAX_DEPTH}"
    flat = squeeze(text)
    return _powers(flat) or _factorials(flat)


def _powers(flat: str) -> str:
    for match in re.finditer(r"\^(\{?)|\*\*(\{?)", flat):
        braced = match[1] or match[2]
        rest = flat[match.end() :]
        exponent = _group(rest) if braced else re.match(r"[-+(]*\d*.?", rest, re.S)[0]  # type: ignore[index]
        if "^" in exponent or "!" in exponent or "**" in exponent:
            return "an exponent in an exponent"
        if not braced and rest[1:2] == "^":
            return "an exponent of an exponent"
        size = max((int(run) for run in re.findall(r"[0-9]{1,9}", exponent)), default=0)
        before = flat[match.start() - 1 : match.start()]
        if size > (MAX_EXPANSION if before in (")", "}", "]", "!") else MAX_POWER):
            return f"an exponent of {size}"
    return ""


def _factorials(flat: str) -> str:
    large = any(int(run) > 10_000 for run in re.findall(r"([0-9]{1,9})\)?!", flat))
    return "a large factorial" if large or "!!" in flat or ")!)!" in flat else ""


def _group(text: str) -> str:
    """What stands before the brace that closes one opened just before `text`."""
    depth = 1
    for i, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return text[:i]
    return text
