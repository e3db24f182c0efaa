"""The code verifier: forms of tests, where the program is, what counts as equal, real problems."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.grader import load
from rewards.sandbox import compare, host, problems
from rewards.sandbox.child import plain
from rewards.service.pool import VerifierPool
from rewards.verdict import Verdict
from rewards.verifiers import code
from samplers import files
from tests import answers
from tests.mutants import KINDS, mutants

walled = pytest.mark.skipif(
    not sys.platform.startswith("linux") or bool(host.fault(code.limits(code.Config()))),
    reason="no sandbox can be made on this machine",
)


def fenced(source: str) -> str:
    return f"I think so:\n```python\n{source}\n```\nDone."


def graded(source: str, gold: Any, meta: dict[str, Any] | None = None, **settings: Any) -> Verdict:
    gold = gold if isinstance(gold, str) else json.dumps(gold)
    return load({"name": "code", "seconds": 1.0, **settings})(fenced(source), gold, meta or {})


# ------------------------------------------------------------------------------ forms of tests

STDIN = {"inputs": ["3\n4\n", "5\n6\n"], "outputs": ["12\n", "30\n"]}
ADDS = "a, b = int(input()), int(input())\nprint(a * b)"
LINES = {"inputs": [["3", "4"]], "outputs": [["12"]]}
CALLED = {"fn_name": "f", "inputs": [[3, 4], [5, 6]], "outputs": [12, 30]}
WRAPPED = {"fn_name": "f", "inputs": [[3, 4], [5, 6]], "outputs": [[12], [30]]}
JSON_LINES = {"fn_name": "f", "inputs": ["3\n4", "5\n6"], "outputs": ["12", "30"]}
LIVE = [{"input": "3\n4\n", "output": "12\n", "testtype": "stdin"}]
LIVE_CALL = [{"input": "3\n4", "output": "12", "testtype": "functional"}]
ASSERTED = {
    "functional": "def check(candidate):\n    assert candidate(3, b=4) == 12\n"
    "    assert 30 == candidate(a=5, b=6)\n\ncheck(Solution().f)"
}
FUNCTION = "def f(a, b): return a * b"
METHOD = "class Solution:\n    def f(self, a: int, b: int) -> List[int]: return a * b"


@walled
@pytest.mark.parametrize(
    ("gold", "source", "meta"),
    [
        (STDIN, ADDS, {}),
        ({"input": STDIN["inputs"], "output": STDIN["outputs"]}, ADDS, {}),
        (LINES, ADDS, {}),
        (CALLED, FUNCTION, {}),
        (CALLED, METHOD, {}),
        (WRAPPED, FUNCTION, {}),
        (JSON_LINES, FUNCTION, {}),
        (LIVE, ADDS, {}),
        (LIVE_CALL, FUNCTION, {"metadata": '{"func_name": "f"}'}),
        (LIVE_CALL, METHOD, {"starter_code": "class Solution:\n    def f(self, a, b):\n"}),
        (ASSERTED, METHOD, {}),
    ],
)
def test_forms_of_tests(gold: Any, source: str, meta: dict[str, Any]) -> None:
    assert graded(source, gold, meta).status == "ok"
    assert graded(source.replace("*", "+"), gold, meta).status == "wrong"


def test_a_wrapped_output_is_read_one_way_in_all_tests() -> None:
    tests = problems.read(json.dumps(WRAPPED), {}).tests
    assert [t.expected for t in tests] == [([12], 12), ([30], 30)]


@walled
def test_readings_do_not_mix() -> None:
    first_wrapped = "def f(a, b): return [a * b] if a == 3 else a * b"
    assert graded("def f(a, b): return [a * b]", WRAPPED).status == "ok"
    assert graded(first_wrapped, WRAPPED).status == "wrong"


BAD_GOLDS: tuple[tuple[Any, str], ...] = (
    ("no json", "no JSON"),
    ("[" * 100_000, "no JSON"),
    ("3", "an object or a list"),
    ({}, "no lists 'inputs'"),
    ({"inputs": [], "outputs": []}, "0 inputs"),
    ({"inputs": ["1"], "outputs": ["1", "2"]}, "1 inputs and 2 outputs"),
    ({"inputs": [{}], "outputs": [""]}, "are text; got dict"),
    ({"inputs": ["x"], "outputs": ["1"], "fn_name": "f"}, "test 1: no lines of JSON"),
    ({"inputs": [3], "outputs": [1], "fn_name": "f"}, "arguments are a list"),
    ([], "objects with 'input'"),
    ([{"input": "1", "output": "1", "testtype": "other"}], "testtype ['other']"),
    (LIVE_CALL, "no function is named"),
    ({"functional": 3}, "no Python"),
    ({"functional": "def check(f):"}, "no Python"),
    ({"functional": "def check(f):\n    pass\ncheck(g)"}, "asserts nothing"),
    ({"functional": "def check(f):\n    assert f(1) == 2"}, "which function"),
    ({"functional": "def check(f):\n    assert f(open('/x')) == 2\ncheck(g)"}, "than literals"),
    ({"functional": "def check(f):\n    assert f(1) == 2 or True\ncheck(g)"}, "line 2"),
    ({"functional": "def check(f):\n    assert f(1) != 2\ncheck(g)"}, "line 2"),
    ({"functional": "def check(f):\n    for i in range(3): assert f(i) == i\ncheck(g)"}, "line 2"),
    ({"functional": "import os\ndef check(f):\n    assert f(1) == 2\ncheck(g)"}, "more than one"),
)


@pytest.mark.parametrize(("gold", "why"), BAD_GOLDS)
def test_tests_that_cannot_be_read_are_gold_errors(gold: Any, why: str) -> None:
    verdict = graded(FUNCTION, gold)
    assert verdict.status == "gold_error"
    assert why in verdict.detail


# ------------------------------------------------------------------------ where the program is


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("```python\nx\n```", "x\n"),
        ("```py\nx\n```\nand\n```\ny\n```", "y\n"),
        ("```python\nx", "x"),
        ("a ``` b", None),
        ("", None),
        ("def f(): pass", None),
        ("~~~\nx\n~~~", None),
        ("````\n```\nx\n```\n````", "```\nx\n```\n"),
        ("```python\nx\n```\n```text\n", ""),
    ],
)
def test_the_program_is_the_last_block(text: str, source: str | None) -> None:
    assert code.program(text) == source


@pytest.mark.parametrize(
    ("text", "status"),
    [("", "no_answer"), (" \n", "no_answer"), ("```python\n\n```", "no_answer"),
     ("def f(): pass", "unparseable"), ("```python\n" + "x" * 200_000 + "\n```", "unparseable")],
)  # fmt: skip
def test_without_a_program_nothing_is_run(text: str, status: str) -> None:
    grader = load("code")
    verdict = grader.at_once(text, json.dumps(STDIN), {})
    assert verdict is not None
    assert verdict.status == status
    assert verdict == grader(text, json.dumps(STDIN), {})


parts = st.sampled_from(["```", "````", "```python", "\n", " ", "x = 1", "`", "text", "~~~", "\r"])


@given(st.lists(parts, max_size=12).map("".join))
def test_the_relevant_part_holds_the_same_program(text: str) -> None:
    grader = load("code")
    part = grader.relevant(text)
    source, again = code.program(text), code.program(part)
    assert (source is None) == (again is None)
    if source is not None and again is not None:
        assert again in (source, source + "\n")
    assert grader.relevant(part) == part
    assert grader.at_once(part, "", {}) == grader.at_once(text, "", {})


def test_only_what_names_the_function_travels_with_an_answer() -> None:
    meta = {"prompt": "secret", "fn_name": "f", "solutions": "def f(): ..."}
    text, _, kept = load("code").essence((fenced("x"), "gold", meta))
    assert text == "```python\nx\n```\n"
    assert kept == {"fn_name": "f"}


# --------------------------------------------------------------------------------- what is equal

EQUAL = (
    (1, 1), (1, 1.0), (1.0, 1), (0.5, 0.5000001), (1e9 + 0.5, 1e9), ("a", "a"), (None, None),
    ([1, [2]], (1, [2])), ({1, 2}, {2, 1}), ({1: [2]}, {1: (2,)}), (True, True), (10**30, 10**30),
    ([], ()), ({}, {}), (float("inf"), float("inf")), (float("nan"), float("nan")),
    ({0.5}, {0.5000000001}),
)  # fmt: skip
DIFFERENT = (
    (1, True), (True, 1), (0, False), (1, "1"), (1, 2), (1, 1.0000001), (1.5, 1.6), (None, 0),
    ([1, 2], [2, 1]), ([1], [1, 1]), ({1}, [1]), ([1], {1}), ({1: 2}, {1: 3}), ({}, []), ("", None),
    (10**30, 10**30 + 1), (1.0, float("nan")), (1.0, 10**400), ("a", "A"), ([[]], []),
    ({1: 2}, {"1": 2}), ({1, 2}, {1, 3}), (0.0, 1e-3),
)  # fmt: skip


@pytest.mark.parametrize(("expected", "got", "equal"), [
    *((e, g, True) for e, g in EQUAL), *((e, g, False) for e, g in DIFFERENT),
])  # fmt: skip
def test_values(expected: Any, got: Any, equal: bool) -> None:
    travelled = json.loads(json.dumps(plain(got)))
    assert compare.same(plain(expected), travelled, 1e-6) is equal


@pytest.mark.parametrize(
    ("expected", "printed", "equal"),
    [
        ("1 2\n3\n", "1 2\n3", True),
        ("1 2\n", "\n1  2  \n\n", True),
        ("1 2", "1\n2", False),
        ("1\n\n2", "1\n2", False),
        ("YES", "yes", False),
        ("0.333333", "0.3333331", True),
        ("3.0", "3", True),
        ("1.0", "nan", False),
        ("1.0", "1_0", False),
        ("1.5e3", "1500", True),
        ("nan", "nan", True),
        ("", "", True),
        ("", "x", False),
        ("x", "", False),
    ],
)
def test_printed_text(expected: str, printed: str, equal: bool) -> None:
    assert compare.same_text(expected, printed, 1e-6) is equal


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(json_values)
def test_a_value_equals_itself_after_its_travels(value: Any) -> None:
    assert compare.same(plain(value), json.loads(json.dumps(plain(value))), 0.0)


# -------------------------------------------------------------------------------------- settings


@walled
def test_partial_scores_the_share_of_tests() -> None:
    gold = {"fn_name": "f", "inputs": [[1], [2], [3], [4]], "outputs": [1, 2, 3, 9]}
    verdict = graded("def f(x): return x", gold, partial=True)
    assert (verdict.correct, verdict.score, verdict.status) == (False, 0.75, "wrong")
    assert graded("def f(x): return x", gold).score == 0
    assert graded("def f(x): return 0 if x == 1 else x", gold, partial=True).score == 0.5


@walled
def test_settings_reach_the_program() -> None:
    gold = {"fn_name": "f", "inputs": [[200]], "outputs": [200]}
    hungry = "def f(x): return len(bytearray(x << 20)) >> 20"
    assert graded(hungry, gold, memory_mb=512).status == "ok"
    assert graded(hungry, gold, memory_mb=128).status == "wrong"
    wordy = "def f(x):\n    print('x' * 300_000)\n    return x"
    assert graded(wordy, gold).status == "ok"
    assert graded(wordy, gold, output_mb=0.1).status == "wrong"
    assert graded("def f(x): return triple(x) // 3", gold).status == "wrong"
    prelude = "def triple(x): return 3 * x"
    assert graded("def f(x): return triple(x) // 3", gold, prelude=prelude).status == "ok"
    numpy = "import numpy\ndef f(x): return numpy.int64(x)"
    assert graded(numpy, gold, packages=[]).status == "wrong"
    assert graded(numpy, gold, packages=["numpy"], seconds=9).status == "ok"


@walled
def test_a_prelude_that_fails_is_our_fault() -> None:
    verdict = graded(FUNCTION, CALLED, prelude="import nothing_of_this_name")
    assert verdict.status == "error"
    assert "the prelude fails: ModuleNotFoundError" in verdict.detail


@walled
def test_all_tests_together_have_a_limit() -> None:
    gold = {"fn_name": "f", "inputs": [[i] for i in range(50)], "outputs": list(range(50))}
    slow = "import time\ndef f(x):\n    time.sleep(0.2)\n    return x"
    assert graded(slow, gold, total=0.5).status == "timeout"
    assert graded(slow, gold, total=0.5, max_tests=1).status == "ok"
    failing = slow.replace("return x", "return -1")  # a failure is not undone by slowness
    assert graded(failing, gold, total=0.5, partial=True).status == "wrong"


def test_tests_are_taken_at_equal_distances() -> None:
    tests = problems.read(
        json.dumps({"inputs": list("0123456789"), "outputs": ["x"] * 10}), {}
    ).tests
    assert [t.stdin for t in code._chosen(tests, 4)] == ["0", "2", "5", "7"]
    assert code._chosen(tests, 10) == code._chosen(tests, 99) == tests


@walled
def test_verdicts_do_not_change_from_one_time_to_the_next() -> None:
    source = "import random\ndef f(x): return [*{'a', 'b', 'c', 'd'}, random.random(), hash('a')]"
    gold = {"fn_name": "f", "inputs": [[1]], "outputs": [0]}
    assert len({graded(source, gold).detail for _ in range(3)}) == 1


@walled
def test_in_the_pool() -> None:
    with VerifierPool({"name": "code", "seconds": 0.5}, workers=2) as pool:
        sources = [FUNCTION, "def f(a, b): return 1", "def f(a, b):\n    while True: pass", "x ="]
        items = [(fenced(s), json.dumps(CALLED), {}) for s in sources] * 3
        statuses = [v.status for v in pool.grade([*items, (None, "", {}), ("no", "", {})])]
    assert statuses == [*["ok", "wrong", "wrong", "unparseable"] * 3, "no_answer", "unparseable"]


def test_examples_come_from_the_row() -> None:
    grader = load("code")
    for solutions in (FUNCTION, [FUNCTION], json.dumps([FUNCTION, "x"]), fenced(FUNCTION)):
        found = grader.examples(json.dumps(CALLED), {"solutions": solutions})
        assert [code.program(t) for t in found.right] == [FUNCTION + "\n"]
    assert grader.examples(json.dumps(CALLED), {}).right == ()


def test_tests_of_a_row_become_its_gold() -> None:
    """As an object or as text, whatever marks of other sets its inputs hold."""
    tests = {"inputs": ["#### 3", "\\boxed{4}"], "outputs": ["3", "4"]}
    for value in (tests, json.dumps(tests)):
        row = files.Row("row 1", "1", {"problem": "q", "tests": value})
        (prompt,) = files.prompts([row], files.Columns(answer="tests"))
        assert [t.stdin for t in problems.read(prompt.answer, {}).tests] == tests["inputs"]


# --------------------------------------------------------------------------------- real problems


def leetcode() -> list[dict[str, Any]]:
    return answers.rows("leetcode_test.json")


def judge(pool: VerifierPool, rows: list[tuple[str, dict[str, Any]]]) -> list[Verdict]:
    return pool.grade([(fenced(s), json.dumps(row["tests"]), {}) for s, row in rows])


def changed(rows: list[dict[str, Any]], kind: str, each: int) -> list[tuple[str, dict[str, Any]]]:
    return [(m, r) for r in rows for m in itertools.islice(mutants(r["solutions"], kind), each)]


@walled
def test_real_solutions_pass_and_changed_ones_fail() -> None:
    rows = leetcode()[::10]
    with VerifierPool({"name": "code", "seconds": 2.0}, workers=4) as pool:
        assert [v.status for v in judge(pool, [(r["solutions"], r) for r in rows])] == ["ok"] * 20
        statuses = [v.status for v in judge(pool, changed(rows, "returned", 1))]
        assert statuses == ["wrong"] * 20
        neighbours = [(r["solutions"], other) for r, other in itertools.pairwise(rows)]
        assert "ok" not in {v.status for v in judge(pool, neighbours)}


@walled
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_real_solutions_pass_and_a_changed_one_passes_only_where_python_agrees() -> None:
    rows, table = leetcode(), {}
    with VerifierPool({"name": "code", "seconds": 4.0}, workers=4) as pool:
        originals = judge(pool, [(r["solutions"], r) for r in rows])
        assert [
            r["problem"][:200] for r, v in zip(rows, originals, strict=True) if not v.correct
        ] == []
        for kind in KINDS:
            some = changed(rows, kind, 3)
            verdicts = judge(pool, some)
            assert {v.status for v in verdicts} <= {"ok", "wrong"}
            passed = [pair for pair, v in zip(some, verdicts, strict=True) if v.correct]
            table[kind] = (len(some), len(passed))
            for source, row in passed:  # the tests see no difference: no fault of the verifier's
                with contextlib.redirect_stdout(None):
                    exec(f"{code.PRELUDE}\n{source}\n{row['tests']['functional']}", {})
    print({kind: f"{passed} of {made} pass" for kind, (made, passed) in table.items()})
    assert sum(made for made, _ in table.values()) > 1000
    assert all(2 * passed < made for made, passed in table.values())
