"""What a program is tested with: the gold of a code row, read as data and never executed.

Three forms, as JSON text (the forms of APPS, TACO and verl; of LiveCodeBench; of LeetCode sets):

    {"inputs": [...], "outputs": [...], "fn_name": optional}
    [{"input": ..., "output": ..., "testtype": "stdin" | "functional"}, ...]
    {"functional": "def check(candidate):\\n    assert candidate(1) == 2\\n\\ncheck(Solution().f)"}
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewards.sandbox.child import plain

READS = ("fn_name", "func_name", "entry_point", "metadata", "starter_code")
"""Fields of a row that may name the function to call."""
KEPT = 8
"""Golds of megabytes take ten times that once they are read: a few are kept."""


class GoldError(ValueError):
    """The tests cannot be read."""


@dataclass(frozen=True, slots=True)
class Test:
    args: tuple[Any, ...]
    named: Mapping[str, Any]
    stdin: str
    expected: tuple[Any, ...]
    """Readings of what is expected (`Problem.tests`), as `child.plain` gives values."""


@dataclass(frozen=True, slots=True)
class Problem:
    name: str
    """Function or method to call; empty: the program reads standard input."""
    tests: tuple[Test, ...]
    """All tests have as many readings of their output: APPS wraps outputs in a list, or not."""


def read(gold: str, meta: Mapping[str, Any]) -> Problem:
    """The tests of a row.

    Raises:
        GoldError: they are none of the forms above; the message says where.
    """
    return _read(gold, _named(meta))


@functools.lru_cache(maxsize=KEPT)
def _read(gold: str, name: str) -> Problem:
    try:
        value = json.loads(gold)
    except (ValueError, RecursionError) as problem:
        raise GoldError(f"the tests are no JSON: {problem}") from None
    if isinstance(value, list):
        return _listed(value, name)
    if not isinstance(value, dict):
        raise GoldError(f"the tests are a {type(value).__name__}, not an object or a list")
    if "functional" in value:
        return _asserted(value["functional"], name)
    inputs, outputs = (value.get(k, value.get(k[:-1])) for k in ("inputs", "outputs"))
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise GoldError("the tests have no lists 'inputs' and 'outputs', and no 'functional'")
    if not inputs or len(inputs) != len(outputs):
        raise GoldError(f"{len(inputs)} inputs and {len(outputs)} outputs")
    name = str(value.get("fn_name") or "") or name
    if not name:
        pairs = zip(inputs, outputs, strict=True)
        return Problem("", tuple(Test((), {}, _text(i), (_text(o),)) for i, o in pairs))
    return _called(name, inputs, outputs)


def _listed(items: list[Any], name: str) -> Problem:
    if not items or not all(isinstance(i, dict) and {"input", "output"} <= set(i) for i in items):
        raise GoldError("a list of tests holds objects with 'input' and 'output'")
    kinds = {item.get("testtype") or "stdin" for item in items}
    if kinds == {"functional"}:
        if not name:
            raise GoldError(f"no function is named: give one of {', '.join(READS)}")
        return _called(name, [i["input"] for i in items], [i["output"] for i in items])
    if kinds != {"stdin"}:
        raise GoldError(f"testtype {sorted(map(str, kinds))}: allowed are stdin or functional")
    return Problem("", tuple(Test((), {}, _text(i["input"]), (_text(i["output"]),)) for i in items))


def _called(name: str, inputs: list[Any], outputs: list[Any]) -> Problem:
    """Arguments as a list, or as lines of JSON; then the output is JSON as well."""
    tests: list[tuple[tuple[Any, ...], Any]] = []
    for at, (given, expected) in enumerate(zip(inputs, outputs, strict=True), 1):
        if isinstance(given, str):
            try:
                args = [json.loads(line) for line in given.splitlines() if line.strip()]
                tests.append((tuple(args), json.loads(expected)))
            except (ValueError, TypeError, RecursionError) as problem:
                raise GoldError(f"test {at}: no lines of JSON: {problem}") from None
        elif isinstance(given, list):
            tests.append((tuple(given), expected))
        else:
            raise GoldError(f"test {at}: arguments are a list; got {type(given).__name__}")
    wrapped = all(isinstance(given, list) for given in inputs) and all(
        isinstance(expected, list) and len(expected) == 1 for _, expected in tests
    )
    return Problem(
        name,
        tuple(
            Test(args, {}, "", (plain(e), plain(e[0])) if wrapped else (plain(e),))
            for args, e in tests
        ),
    )


def _asserted(source: Any, name: str) -> Problem:
    """Tests written as `assert candidate(literals) == literal`."""
    try:
        body = ast.parse(source).body
    except (TypeError, SyntaxError, ValueError, RecursionError, MemoryError) as problem:
        raise GoldError(f"'functional' is no Python: {problem}") from None
    checks = [n for n in body if isinstance(n, ast.FunctionDef)]
    calls = [n.value for n in body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
    if len(checks) != 1 or len(checks[0].args.args) != 1 or len(body) != len(checks) + len(calls):
        raise GoldError("'functional' holds more than one check(candidate) and its call")
    for call in calls:
        target = call.args[0] if len(call.args) == 1 else None
        if isinstance(target, ast.Attribute):
            name = target.attr
        elif isinstance(target, ast.Name) and target.id != "candidate":
            name = target.id
    if not name:
        raise GoldError("'functional' does not say which function is called")
    wanted = checks[0].args.args[0].arg
    tests = tuple(_assertion(s, wanted) for s in checks[0].body if not isinstance(s, ast.Pass))
    if not tests:
        raise GoldError("'functional' asserts nothing")
    return Problem(name, tests)


def _assertion(statement: ast.stmt, candidate: str) -> Test:
    where = f"line {statement.lineno} of 'functional'"
    if not (isinstance(statement, ast.Assert) and isinstance(statement.test, ast.Compare)):
        raise GoldError(f"{where} is no `assert {candidate}(...) == literal`")
    compare = statement.test
    call, expected = compare.left, compare.comparators[0]
    if not isinstance(call, ast.Call):
        call, expected = expected, call
    if (
        len(compare.ops) != 1
        or not isinstance(compare.ops[0], ast.Eq | ast.Is)
        or not isinstance(call, ast.Call)
        or not (isinstance(call.func, ast.Name) and call.func.id == candidate)
        or any(keyword.arg is None for keyword in call.keywords)
    ):
        raise GoldError(f"{where} is no `assert {candidate}(...) == literal`")
    try:
        args = tuple(ast.literal_eval(arg) for arg in call.args)
        named = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        return Test(args, named, "", (plain(ast.literal_eval(expected)),))
    except (ValueError, TypeError, RecursionError, MemoryError):
        raise GoldError(f"{where} holds something other than literals") from None


def _text(value: Any) -> str:
    """Standard input or output: text, or a list of lines."""
    if isinstance(value, list):
        return "\n".join(_text(line) for line in value)
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise GoldError(f"standard input and output are text; got {type(value).__name__}")


def _named(meta: Mapping[str, Any]) -> str:
    """The function that a row names outside its tests, '' if it names none."""
    for key in ("fn_name", "func_name", "entry_point"):
        if isinstance(meta.get(key), str) and meta[key]:
            return str(meta[key])
    more = meta.get("metadata")
    if isinstance(more, str):
        try:
            more = json.loads(more)
        except ValueError:
            more = None
    if isinstance(more, Mapping) and isinstance(more.get("func_name"), str):
        return str(more["func_name"])
    found = re.findall(r"^\s*def (\w+)\(", str(meta.get("starter_code") or ""), re.MULTILINE)
    return str(found[-1]) if found else ""
