r"""Units after a value: `10 cm`, `864\text{ square inches}`, `15\mbox{ cm}^2`.

A unit may be left out, and is not converted: 10 cm is 10, and neither 10 m nor 0.1 m.
"""

from __future__ import annotations

import re

_RAISED = r"\^ ?(?:\{ ?-?[0-9] ?\}|-?[0-9])"
_TEXT = rf"\\text ?\{{(?:[A-Za-z ./()-]|\\(?:mu|Omega|cdot)(?![A-Za-z])|{_RAISED})+\}}"
_ATOM = rf"(?:(?:\\mu ?)?(?:{_TEXT}|\\Omega)|(?<=degree\}}) ?[CF])(?: ?{_RAISED})?"
_PRODUCT = rf"{_ATOM}(?: ?(?:(?:/|\\cdot) ?)?{_ATOM})*"
_BARE = (
    r"[ap]\.m\.?|[A-Za-z]{2,}\.?(?: [A-Za-z]{2,}\.?){0,4}(?:/[A-Za-z]+)?|(?<= )[A-Za-z]/[A-Za-z]+"
)
_UNIT = re.compile(
    rf"(?:\\frac ?\{{ ?(?P<above>{_PRODUCT}) ?\}} ?\{{ ?(?P<below>{_PRODUCT}) ?\}}|{_PRODUCT}|"
    rf"(?:(?<=[0-9}}])|(?<=\\pi)) ?(?P<bare>{_BARE})(?: ?{_RAISED})?)$"
)
_TOKEN = re.compile(r"(\\?[A-Za-z]+|/)|\^ ?\{? ?(-?[0-9])")
_NOISE = re.compile(r"\\(?:text|frac|cdot)(?![A-Za-z])|\.")
_FUNCTION = re.compile(r"(?:sin|cos|tan|log|ln|pi|sqrt|exp)$")
_LETTER = re.compile(rf"\\text ?\{{ ?([A-Za-z]) ?\}}(?: ?{_RAISED})?")
_ALIAS = {"mph": "mile/h", "kmh": "km/h", "kph": "km/h"}
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
    }.items()
    for name in names.split()
}
_SHORT = {*_SAME, *_SAME.values(), "am", "pm", "sq", "cu", "mg", "oz", "pt", "qt", "hz", "ev"} | {
    *(
        "j",
        "n",
        "w",
        "v",
        "k",
        "c",
        "pa",
        "kpa",
        "kj",
        "kw",
        "kn",
        "of",
        "mol",
        "rad",
        "rev",
        "mph",
        "kmh",
    )
}
"""Names of one or two letters that are units; `xy` of `2xy` is two variables."""
_LETTERS = "msghltduACFGHJKLMNSTVWB"
"""Letters that are a unit where they are written as text; `5\\text{x}` is five x."""
_CASED = {"m", "mw", "mv", "mj", "mn", "ma", "mpa", "mev", "mhz"}
"""A capital makes these another unit: milli or mega, metre or molar."""
_NUMBERS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred
thousand million billion trillion half halves thirds fourths fifths sixths sevenths eighths ninths
tenths hundredths thousandths
"""
_OTHERS = """
plus minus over divided multiplied factorial choose mod modulo base negative percent and to than or
is isn are was wrong incorrect false unless else no not never except if but pi
extraneous invalid rejected
"""
_NO_UNITS = frozenset((_NUMBERS + _OTHERS).split())
"""Words after a number that say something of its value: `5 squared`, `5 plus one`, `5 is wrong`."""


def split(text: str) -> tuple[str, str]:
    """Tidy text -> (what is measured, its unit or '')."""
    match = _UNIT.search(text)
    if match is None or match.start() == 0 or not _named(text, match):
        return text, ""
    unit = f"{match['above']} / {match['below']}" if match["above"] else match[0]
    return text[: match.start()].strip().removesuffix(r"\cdot").strip(), _standard(unit)


def _named(text: str, match: re.Match[str]) -> bool:
    """It is written as text, or known, or a word that stands apart and is no function."""
    words = [word.lower() for word in re.findall("[A-Za-z]+", _NOISE.sub("", match[0]))]
    if _NO_UNITS.intersection(words) or words[0] in ("squared", "cubed") or "times" in words[:-1]:
        return False
    if match["bare"] is None:
        letter = _LETTER.fullmatch(match[0])
        known = letter is None or letter[1] in _LETTERS
        return known and text[: match.start()].rstrip()[-1:] not in ",;:=(["
    if "/" in match["bare"]:
        return all(len(word) > 2 or word in _SHORT or word.rstrip("s") in _SHORT for word in words)
    if words[0] in _SHORT or words[0].removesuffix("s") in _SHORT:
        return True
    return text[match.start()] == " " and len(words[0]) > 2 and not _FUNCTION.match(words[0])


def _standard(unit: str) -> str:
    """Each name with its power, in order of the alphabet: `m/s^2`, `meters per second squared`."""
    unit = _NOISE.sub("", unit)
    unit = re.sub("[A-Za-z]+", lambda m: _ALIAS.get(m[0].lower(), m[0]), unit)
    powers: dict[str, int] = {}
    sign, raised, name = 1, 1, ""
    for word, power in _TOKEN.findall(unit):
        if word in ("/", "per"):
            sign = -1
        elif power or word in ("squared", "cubed"):
            powers[name] = powers.get(name, 0) * (int(power) if power else 2 + (word == "cubed"))
        elif word.lower() in ("square", "sq", "cubic", "cu"):
            raised = 2 if word.lower().startswith("s") else 3
        else:
            name = _name(word)
            powers[name] = powers.get(name, 0) + sign * raised
            raised = 1
    return " ".join(f"{name}^{power}" for name, power in sorted(powers.items()))


def _name(word: str) -> str:
    one = word if word.lower() in _CASED else word.lower()
    one = one if len(one) < 3 else one.removesuffix("s")
    return _SAME.get(one, one)
