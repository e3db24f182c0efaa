# ruff: noqa: E501 (programs as text)
"""Programs as people and models write them: what passes with other judges passes here."""

from __future__ import annotations

import json
import sys
import tracemalloc
from typing import Any

import pytest

from rewards.grader import load
from rewards.sandbox import compare, host, problems
from rewards.service.pool import VerifierPool
from rewards.verdict import Verdict
from rewards.verifiers import code

walled = pytest.mark.skipif(
    not sys.platform.startswith("linux") or bool(host.fault(code.limits(code.Config()))),
    reason="no sandbox can be made on this machine",
)
IO = {"inputs": ["3\n4\n"], "outputs": ["12\n"]}
CALL = {"inputs": [[3, 4]], "outputs": [12], "fn_name": "f"}


def graded(source: str, gold: Any, **settings: Any) -> Verdict:
    gold = gold if isinstance(gold, str) else json.dumps(gold)
    return load({"name": "code", **settings})(f"```python\n{source}\n```\n", gold, {})


SCRIPTS = {
    "exit": "print(int(input()) * int(input()))\nexit()",
    "exit with a status": "print(int(input()) * int(input()))\nexit(0)",
    "quit": "print(int(input()) * int(input()))\nquit()",
    "descriptor 0": "a, b = map(int, open(0).read().split())\nprint(a * b)",
    "bytes": "import sys\na, b = map(int, sys.stdin.buffer)\nsys.stdout.buffer.write(b'%d' % (a * b))",
    "read at once": "import io, os\ninput = io.BytesIO(os.read(0, os.fstat(0).st_size)).readline\n"
    "print(int(input()) * int(input()))",
    "closed output": "import sys\nprint(int(input()) * int(input()))\nsys.stdout.close()",
    "first output": "import sys\nsys.__stdout__.write(str(int(input()) * int(input())))",
    "output kept": "import io, sys\nold = sys.stdout\nprint(int(input()) * int(input()))\n"
    "sys.stdout = io.StringIO()",
    "output of its own": "import os, sys\nclass Out:\n    def write(self, s): os.write(1, s.encode())\n"
    "    def flush(self): pass\nsys.stdout = Out()\nprint(int(input()) * int(input()))",
    "a large stack": "import sys, threading\nsys.setrecursionlimit(10**7)\n"
    "threading.stack_size(2**29)\ndef f(n): return f(n - 1) + 1 if n else 0\n"
    "def main(): print(int(input()) * int(input()) + f(200_000) - 200_000)\n"
    "t = threading.Thread(target=main)\nt.start()\nt.join()",
    "a larger stack": "import resource, sys\nresource.setrlimit(resource.RLIMIT_STACK, (2**28, -1))\n"
    "sys.setrecursionlimit(10**6)\n@cache\ndef f(n): return f(n - 1) + 1 if n else 0\n"
    "print(int(input()) * int(input()) + f(100_000) - 100_000)",
    "annotations": "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n    y: int = 4\n"
    "assert P.__annotations__ == {'x': int, 'y': int}\nprint(P(int(input())).x * 4)",
    "dispatch": "def main():\n    class Q: pass\n    @singledispatch\n    def g(x): return 0\n"
    "    @g.register\n    def _(x: Q): return 12\n    print(g(Q()))\nmain()",
    "many digits": "assert len(str(10**6000)) == 6001\nprint(12)",
    "prelude": "c = Counter('aab')\nassert type(c) is Counter\nio.StringIO()\nprint(json.loads('12'))",
    "numpy": "import numpy as np\nprint(np.prod([int(i) for i in open(0)]))",
    "a float": "print(int(input()) * int(input()) / 1)",
}  # fmt: skip


@walled
@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts(name: str) -> None:
    verdict = graded(SCRIPTS[name], IO)
    assert verdict.status == "ok", verdict


@walled
def test_what_a_module_does_as_a_program_is_not_done_where_it_is_called() -> None:
    source = (
        "def f(a, b): return a * b\nif __name__ == '__main__':\n    print(f(*map(int, input())))"
    )
    assert graded(source, CALL).status == "ok"
    pickled = (
        "import pickle\nclass A:\n    x = 12\ndef f(a, b): return pickle.loads(pickle.dumps(A())).x"
    )
    assert graded(pickled, CALL).status == "ok"


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("1. So:\n   ```python\n   if x:\n       y\n   ```\n", "if x:\n    y\n"),
        ("  ```\n  x\ny\n", "x\ny\n"),
        ('```\ndef f():\n    """\n    ```\n    f()\n    ```\n    """\n```\n',
         'def f():\n    """\n    ```\n    f()\n    ```\n    """\n'),
        ("```\nx\n   ```\ntext", "x\n"),
    ],
)  # fmt: skip
def test_blocks_in_lists_and_fences_in_programs(text: str, source: str) -> None:
    assert code.program(text) == source
    assert code.program(load("code").relevant(text)) == source


@pytest.mark.parametrize(
    ("expected", "printed", "equal"),
    [
        ("3", "3.0", True),
        ("-3", "-3.000", True),
        ("3", "3.", False),
        ("3", "3.0000001", False),
        ("30", "3.00", False),
        ("0101", "101", False),
        ("1.0.0", "1", False),
        ("9007199254740993", "9007199254740992.0", False),
    ],
)
def test_a_whole_number_printed_as_a_fraction(expected: str, printed: str, equal: bool) -> None:
    assert compare.same_text(expected, printed, 1e-6) is equal


@pytest.mark.parametrize("given", [1, 1.5, float("inf"), float("nan"), 10**30, "1", None])
def test_numbers_beyond_floats(given: Any) -> None:
    assert not compare.same(10**400, given, 1e-6)
    assert compare.same(10**400, 10**400, 1e-6)
    assert not compare.same(float("nan"), 10**400, 1e-6)


def test_the_work_for_sets_grows_with_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, same = [0], compare.same

    def counted(*args: Any) -> bool:
        calls[0] += 1
        return same(*args)

    monkeypatch.setattr(compare, "same", counted)
    expected = {"set": [f"word {i}" for i in range(1000)]}
    given = {"set": [f"word {i}" for i in range(1, 1001)][::-1]}
    assert not compare._same_tagged(expected, given, 0.0)
    pairs = [["a", 1.0 + 1e-9], ["b", 2], *([str(i), i] for i in range(1000))]
    assert compare._same_tagged(
        {"dict": [["a", 1.0], ["b", 2.0], *pairs[2:]]}, {"dict": pairs[::-1]}, 1e-6
    )
    assert calls[0] < 20_000


def test_few_large_golds_are_kept() -> None:
    golds = [json.dumps({"inputs": [f"{i}" * 100_000], "outputs": [""]}) for i in range(30)]
    problems._read.cache_clear()
    tracemalloc.start()
    for gold in golds:
        problems.read(gold, {})
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < sum(map(len, golds)) / 2


@walled
def test_what_cannot_be_printed_is_a_gold_error() -> None:
    gold = {"inputs": [""], "outputs": ["x" * 300_000]}
    source = "print('x' * 300_000)"
    assert graded(source, gold).status == "ok"
    verdict = graded(source, gold, output_mb=0.1)
    assert verdict.status == "gold_error"
    assert "output_mb=0.1" in verdict.detail


@walled
def test_a_first_test_that_takes_all_the_time_is_wrong() -> None:
    verdict = graded("import time\ntime.sleep(1e6)", IO, seconds=30, total=0.5)
    assert verdict.status == "wrong"


@walled
def test_what_a_program_says_is_one_line() -> None:
    verdict = graded(r"raise ValueError('\ud800 \x1b[31m \n x')", IO)
    assert verdict.status == "wrong"
    assert verdict.detail.isprintable()


@walled
def test_the_memory_of_a_worker_does_not_bound_a_program() -> None:
    source = "import resource\nprint(resource.getrlimit(resource.RLIMIT_AS)[0] >> 20)"
    gold = json.dumps({"inputs": [""], "outputs": ["3000"]})
    with VerifierPool({"name": "code", "memory_mb": 3000}, workers=1, memory_mb=512) as pool:
        assert [v.status for v in pool.grade([(f"```\n{source}\n```", gold, {})])] == ["ok"]
