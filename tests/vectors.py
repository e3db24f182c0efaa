"""The shared reference vectors: cases of published code and formulas, with their tolerances.

They are looked for in `$LACONIC_VECTORS` (a JSON file), then beside the repository in
`../shared/vectors/cases.json`. Where there are none the tests that read them are skipped.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Case = dict[str, Any]


@functools.cache
def _load() -> tuple[Case, ...] | None:
    beside = Path(__file__).parents[2] / "shared" / "vectors" / "cases.json"
    path = Path(os.environ.get("LACONIC_VECTORS") or beside)
    return tuple(json.loads(path.read_text())["cases"]) if path.is_file() else None


def cases(method: str) -> list[Case]:
    """All cases of `method`, for a loop inside a test. Skips the test where there are none."""
    found = _load()
    if found is None:
        pytest.skip("reference vectors not found: set LACONIC_VECTORS to their cases.json")
    return [case for case in found if case["method"] == method]


def each(method: str) -> pytest.MarkDecorator:
    """Decorator: one test per case of `method`, handed over as the argument `case`."""
    found = [case for case in _load() or () if case["method"] == method]
    if found:
        return pytest.mark.parametrize("case", [pytest.param(c, id=c["name"]) for c in found])
    reason = f"no reference vectors of {method}: set LACONIC_VECTORS to their cases.json"
    absent = pytest.param(None, marks=pytest.mark.skip(reason=reason), id=method)
    return pytest.mark.parametrize("case", [absent])


def check(case: Case, got: Mapping[str, Any]) -> None:
    """Every expected output that `got` names, and it must name at least one.

    Numbers: |x - y| <= tolerance * max(1, |y|). Integers, bools, strings and None: equal.
    """
    keys = [key for key in case["expected"] if key in got]
    assert keys, f"none of {list(case['expected'])} among {list(got)}"
    for key in keys:
        _same(got[key], case["expected"][key], case["tolerance"], f"{case['name']}.{key}")


def _same(got: Any, want: Any, tolerance: float, where: str) -> None:
    if isinstance(got, np.ndarray | np.generic):
        got = got.tolist()
    if isinstance(want, dict):
        assert set(got) == set(want), where
        for key in want:
            _same(got[key], want[key], tolerance, f"{where}.{key}")
    elif isinstance(want, list):
        assert len(got) == len(want), f"{where}: {len(got)} entries, expected {len(want)}"
        for i, (g, w) in enumerate(zip(got, want, strict=True)):
            _same(g, w, tolerance, f"{where}[{i}]")
    elif isinstance(want, float):
        assert abs(got - want) <= tolerance * max(1.0, abs(want)), f"{where}: {got} != {want}"
    else:
        assert got == want, f"{where}: {got} != {want}"
