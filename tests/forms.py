r"""How a model might write a given answer: every form says what the gold says.

A wrapping is a whole answer text around it; a spelling is what stands in the box. None: the form
does not apply to this gold. Nothing here reads the code under test.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fractions import Fraction

from tests.structured import PARTS, VALUES, WORDS
from tests.written import (
    DEGREES,
    VERBAL,
    Change,
    changed,
    core,
    decimal,
    integer,
    long_fractions,
    rational,
    single,
)

# whole texts

WRAPPINGS: dict[str, Change] = {
    "box": lambda g: rf"\boxed{{{g}}}",
    "in a sentence": lambda g: rf"Adding up, the answer is $\boxed{{{g}}}$.",
    "display": lambda g: f"Therefore\n\\[\n\\boxed{{{g}}}\n\\]\n",
    "full stop outside": lambda g: rf"So we have \[\boxed{{{g}}}.\]",
    "after an equation": lambda g: rf"Then $x^2=3$, so \( a + b = \boxed{{{g}}} \). I am done.",
    "markdown": lambda g: f"### Final Answer\n\n**$\\boxed{{{g}}}$**",
    "after another box": lambda g: rf"\boxed{{77777}}? No: the answer is $\boxed{{{g}}}$",
    "twice": lambda g: rf"It is $\boxed{{{g}}}$. **Answer** \[ \boxed{{{g}}} \]",
    "two dollars": lambda g: rf"$$\boxed{{{g}}}$$",
    "tags": lambda g: rf"<answer>\boxed{{{g}}}</answer>",
    "units after": lambda g: rf"\boxed{{{g}}}\ \text{{cm}}.",
    "no box, hashes": lambda g: f"We add.\n#### {g}" if len(g) < 40 else None,
    "no box, display": lambda g: rf"The answer is: \({g}\).",
    "fbox": lambda g: rf"Hence \fbox{{${g}$}}.",
    "box, space": lambda g: rf"\boxed {{ {g} }}",
    "no box": lambda g: f"The answer is ${g}$." if len(g) < 40 else None,
    "no box, bare": lambda g: g if len(g) < 60 else None,
    "no box, final": lambda g: f"Final answer: {g}" if len(g) < 40 else None,
    "no box, bold": lambda g: f"**Answer:** {g}" if len(g) < 40 else None,
}


# any answer, spelled otherwise


def _hide(text: str) -> str:
    r"""Spaces that mean something as \1: in words, between digits, after a command."""
    text = re.sub(r"\\(?:text|mbox|textnormal)\{[^{}]*\}", lambda m: m[0].replace(" ", "\1"), text)
    return re.sub(r"(?<=\d) (?=\d)|(?<=[a-z]) (?=[A-Za-z])|(?<=\\) ", "\1", text)


def _respaced(spaces: str) -> Change:
    def change(gold: str) -> str | None:
        other = _hide(gold).replace(" ", spaces).replace("\1", " ")
        return other if other != gold else None

    return change


def _frac_as(name: str) -> Change:
    def change(gold: str) -> str | None:
        text = long_fractions(gold)
        return text.replace(r"\frac", name) if r"\frac" in text else None

    return change


def _sized(gold: str) -> str | None:
    if r"\left" in gold:
        return re.sub(r"\\(?:left|right)(?![A-Za-z])", "", gold)
    if r"\text" in gold or r"\sqrt[" in gold:
        return None
    return changed(changed(gold, r"([(\[])", r"\\left\1") or gold, r"([)\]])", r"\\right\1")


def _unicode(gold: str) -> str | None:
    if VERBAL.search(gold) or "matrix" in gold:
        return None
    other = re.sub(r"\\sqrt\{(\d+)\}", "\u221a\\1", DEGREES.sub("\u00b0", gold))
    for ours, theirs in ((r"\pi", "\u03c0"), (r"\infty", "\u221e"), (r"\cup", "\u222a")):
        other = other.replace(ours, theirs)
    other = other.replace("-", "\u2212")
    return other if other != gold else None


def _typed(gold: str) -> str | None:
    """As typed without LaTeX: sqrt(5), pi, (a)/(b)."""
    if not single(gold) or VERBAL.search(gold) or "\\" not in gold or DEGREES.search(gold):
        return None
    text = re.sub(r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)", long_fractions(gold))
    if re.search(r"\d ?\\frac|[A-Za-z]\\pi|[A-Za-z]\\sqrt|\} ?(?:\(|\\pi|[A-Za-z])", text):
        return None  # a mixed number, or what reads otherwise without the commands
    text = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"(\1)/(\2)", text.replace(r"\pi", "pi"))
    return None if re.search(r"[\\{}]", text) else text


ANY: dict[str, Change] = {
    "spaces around": lambda g: f"  {g} ",
    "dollars inside": lambda g: f"${g}$",
    "full stop inside": lambda g: f"{g}." if g[-1] != "." else None,
    "displaystyle": lambda g: rf"\displaystyle {g}",
    "no spaces": _respaced(""),
    "wide spaces": _respaced("  "),
    "thin spaces": _respaced(r"\,"),
    "dfrac": _frac_as(r"\dfrac"),
    "tfrac": _frac_as(r"\tfrac"),
    "cfrac": _frac_as(r"\cfrac"),
    "frac": _frac_as(r"\frac"),
    "short frac": lambda g: changed(g, r"\\[dt]?frac\{(\d)\}\{(\d)\}", r"\\frac\1\2"),
    "left, right": _sized,
    "unicode": _unicode,
    "typed": _typed,
    "cdot": lambda g: changed(g, r"(?<=[\d}])(?<!matrix\}) *(?=\\(?:sqrt|pi))", r" \\cdot "),
    "times": lambda g: changed(g, r"(?<=\d) *(?=\\(?:sqrt|pi))", r"\\times "),
    "star": lambda g: changed(g, r"(?<=\d) ?(?=\\(?:sqrt|pi))", "*"),
    "braced power": lambda g: changed(g, r"\^(\d)(?!\d)", r"^{\1}"),
    "short root": lambda g: changed(g, r"\\sqrt\{(\d)\}", r"\\sqrt\1"),
    "large": lambda g: rf"\large {g}",
    "bold symbol": lambda g: rf"\boldsymbol{{{g}}}",
    "grouped": lambda g: f"{{{g}}}",
    "boldface": lambda g: rf"\mathbf{{{g}}}" if integer(g) is not None else None,
}


# numbers


def _of_rational(write: Callable[[Fraction], str | None]) -> Change:
    def change(gold: str) -> str | None:
        value = rational(gold)
        return None if value is None else write(value)

    return change


def _mixed(value: Fraction) -> str | None:
    whole, rest = divmod(abs(value.numerator), value.denominator)
    if not whole or not rest:
        return None
    sign = "-" if value < 0 else ""
    return rf"{sign}{whole}\frac{{{rest}}}{{{value.denominator}}}"


def _grouped(separator: str) -> Callable[[Fraction], str | None]:
    def write(value: Fraction) -> str | None:
        if value.denominator != 1 or abs(value) < 1000:
            return None
        return f"{value.numerator:,}".replace(",", separator)

    return write


def _fraction(value: Fraction, scale: int = 1) -> str:
    sign = "-" if value < 0 else ""
    return rf"{sign}\frac{{{abs(value.numerator) * scale}}}{{{value.denominator * scale}}}"


def _dollars(gold: str) -> str | None:
    text = gold.strip()
    if text.startswith(r"\$"):
        return text[2:].strip()
    return rf"\${text}" if rational(gold) is not None and "-" not in gold else None


NUMBERS: dict[str, Change] = {
    "decimal": _of_rational(decimal),
    "no leading 0": _of_rational(
        lambda v: (decimal(v) or "").replace("0.", ".") if 0 < v < 1 and decimal(v) else None
    ),
    "trailing 0": _of_rational(lambda v: f"{d}0" if (d := decimal(v)) and "." in d else None),
    ".0": _of_rational(lambda v: f"{v}.0" if v.denominator == 1 else None),
    ".00": _of_rational(lambda v: f"{v}.00" if v.denominator == 1 else None),
    "fraction": _of_rational(_fraction),
    "slash": _of_rational(lambda v: f"{v.numerator}/{v.denominator}"),
    "not reduced": _of_rational(lambda v: _fraction(v, 3) if v.denominator > 1 else None),
    "sign above": _of_rational(
        lambda v: rf"\frac{{{v.numerator}}}{{{v.denominator}}}" if v < 0 else None
    ),
    "mixed": _of_rational(_mixed),
    "thousands ,": _of_rational(_grouped(",")),
    "thousands {,}": _of_rational(_grouped("{,}")),
    r"thousands ,\!": _of_rational(_grouped(r",\!")),
    r"thousands \,": _of_rational(_grouped(r"\,")),
    "thousands space": _of_rational(_grouped(" ")),
    "plus sign": _of_rational(lambda v: f"+{v}" if v > 0 and v.denominator == 1 else None),
    "dollar": _dollars,
    "with units": lambda g: rf"{g}\text{{ units}}" if rational(g) is not None else None,
    "with bare units": lambda g: f"{g} apples" if integer(g) is not None else None,
    "with mathrm units": lambda g: rf"{g}\,\mathrm{{cm}}" if rational(g) is not None else None,
    "percent typed": lambda g: g.replace(r"\%", "%") if r"\%" in g else None,
    "percent in words": lambda g: g.replace(r"\%", r"\text{ percent}") if r"\%" in g else None,
    "percent as fraction": lambda g: (
        rf"\frac{{{m[1]}}}{{100}}" if (m := re.fullmatch(r"(\d+) ?\\%", g.strip())) else None
    ),
}


SPELLINGS = {**ANY, **NUMBERS, **VALUES, **PARTS, **WORDS}


def forms(gold: str) -> Iterator[tuple[str, str]]:
    """(name, answer text) of every form that applies."""
    gold = core(gold)
    for name, wrap in WRAPPINGS.items():
        if (text := wrap(gold)) is not None:
            yield name, text
    for name, spell in SPELLINGS.items():
        if (written := spell(gold.rstrip(".,"))) is not None:
            yield name, rf"Thus $\boxed{{{written}}}$."
