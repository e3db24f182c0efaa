"""A verifier of which some answers never come back, for measuring what that does to the others.

`{name: rewards.hanging, verifier: math}` grades as math does, and an answer text of `HANG` keeps
a core busy until somebody kills it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from rewards.grader import Examples, Grader, load
from rewards.verdict import Verdict
from samplers.seam import Component, split

HANG = "\0hang"


class Config(Component):
    verifier: str | dict[str, Any] = "math"
    """The verifier of all other answers."""


def grade(text: str, gold: str, meta: Mapping[str, Any], config: Config) -> Verdict:
    while _hangs(text):
        pass
    return _inner(config)(text, gold, meta)


def fast(text: str, gold: str, meta: Mapping[str, Any], config: Config) -> Verdict | None:
    return None if _hangs(text) else _inner(config).at_once(text, gold, meta)


def relevant(text: str, config: Config) -> str:
    return text if _hangs(text) else _inner(config).relevant(text)


def examples(gold: str, meta: Mapping[str, Any], config: Config) -> Examples:
    return _inner(config).examples(gold, meta)


def warm(config: Config) -> None:
    _inner(config).warm()


def title(config: Config) -> str:
    name, _ = split(config.verifier)
    return f"hanging {name}"


def _hangs(text: str) -> bool:
    """Each with a number behind it: equal ones would be asked once."""
    return text.startswith(HANG)


def _inner(config: Config) -> Grader:
    return _loaded(json.dumps(config.verifier))


@cache
def _loaded(spec: str) -> Grader:
    return load(json.loads(spec))
