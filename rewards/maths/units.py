r"""Units after a value: `10 cm`, `864\text{ square inches}`, `15\mbox{ cm}^2`.

A unit may be left out, and is not converted: 10 cm is 10, and neither 10 m nor 0.1 m.
"""

from __future__ import annotations

import re

_UNIT = re.compile(
    r"(?:\\text ?\{(?P<text>[A-Za-z ./-]+)\}|"
    r"(?:(?<=[0-9}])|(?<=\\pi)) ?(?P<bare>[ap]\.m\.?|[A-Za-z]{2,}\.?(?: [A-Za-z]{2,}\.?){0,2}))"
    r"(?P<power> ?\^ ?\{?[0-9]\}?)?$"
)
_FUNCTION = re.compile(r"(?:sin|cos|tan|log|ln|pi|sqrt|exp)$")
_SAME = {
    name: short
    for short, names in {
        "cm": "centimeter centimetre",
        "m": "meter metre",
        "km": "kilometer kilometre",
        "mm": "millimeter millimetre",
        "inch": "inche in",
        "foot": "feet ft",
        "yard": "yd",
        "mile": "mi",
        "h": "hour hr",
        "min": "minute",
        "s": "second sec",
        "g": "gram",
        "kg": "kilogram",
        "l": "liter litre",
        "ml": "milliliter millilitre",
        "degree": "deg",
        "dollar": "usd",
        "lb": "pound",
        "mph": "mile/hour mile/h",
        "km/h": "kilometer/hour km/hour kmh kph",
        "m/s": "meter/second m/sec",
    }.items()
    for name in names.split()
}
_SHORT = {*_SAME, *_SAME.values(), "am", "pm", "sq", "cu", "mg", "oz", "pt", "qt", "hz", "ev"}
"""Names of one or two letters that are units; `xy` of `2xy` is two variables."""


def split(text: str) -> tuple[str, str]:
    """Tidy text -> (what is measured, its unit or '')."""
    match = _UNIT.search(text)
    if match is None or match.start() == 0 or not _named(text, match):
        return text, ""
    power = re.sub(r"[^0-9]", "", match["power"] or "")
    return text[: match.start()].strip(), _standard(match["text"] or match["bare"], power)


def _named(text: str, match: re.Match[str]) -> bool:
    """It is written as text, or known, or a word that stands apart and is no function."""
    if match["text"]:
        return text[: match.start()].rstrip()[-1:] not in ",;:=(["
    first = match["bare"].lower().replace(".", "").partition(" ")[0]
    if first in _SHORT or first.removesuffix("s") in _SHORT:
        return True
    return text[match.start()] == " " and len(first) > 2 and not _FUNCTION.match(first)


def _standard(unit: str, power: str) -> str:
    unit = " ".join(unit.lower().replace(".", "").split())
    for prefix, raised in (("square ", "2"), ("sq ", "2"), ("cubic ", "3"), ("cu ", "3")):
        if unit.startswith(prefix):
            unit, power = unit.removeprefix(prefix), raised
    unit = re.sub(r" ?/ ?| per ", "/", unit)
    one = unit if len(unit) < 3 else re.sub(r"s(?=/|$)", "", unit)
    one = _SAME.get(one, one)
    return one + (f"^{power}" if power else "")
