"""The process that runs a program on one input, once it has given up everything else."""

from __future__ import annotations

import builtins
import contextlib
import fcntl
import gc
import json
import marshal
import os
import random
import signal
import sys
import types
from typing import Any

from rewards.sandbox import walls

FOUND, UP = 3, 4
"""Descriptors: the returned value is written to one; to the other, that the program begins."""
FILE_MB = 8
"""Largest file that a program may write, in MiB."""
THREADS = 64
RECURSION = 50_000
"""Frames of Python are on the heap; judges allow as many."""
COMMON = """array bisect cmath collections copy datetime decimal fractions functools heapq itertools
math operator queue random re statistics string threading time typing"""
"""What programs import: loaded once by the launcher, before there is any."""


def prepare() -> None:
    """Import what many programs need."""
    for name in COMMON.split():
        __import__(name)
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # `site` would: we run without it
    gc.freeze()  # a collection in a child need not copy these pages


def namespace(job: dict[str, Any]) -> types.ModuleType:
    """The module that a program will be, after the prelude, which is ours.

    Raises:
        RuntimeError: the prelude fails.
    """
    sys.path[:] = job["path"]
    program = types.ModuleType("__main__")
    try:
        exec(compile(job["prelude"], "prelude", "exec", dont_inherit=True), program.__dict__)
    except Exception as problem:
        raise RuntimeError(f"the prelude fails: {type(problem).__name__}: {problem}") from None
    gc.freeze()
    return program


def main(
    job: dict[str, Any],
    program: types.ModuleType,
    source: bytes,
    test: dict[str, Any],
    given: bytes,
    ends: tuple[int, ...],
    folder: str,
) -> None:
    """Run one test in this process, which ends with it."""
    code = 70
    try:
        _give_up(job, ends, folder)
        os.write(UP, b"1")  # whatever happens from here on is the program's doing
        os.close(UP)
        code = _serve(job, program, source, test, given)
    except SystemExit as leaving:
        code = _status(leaving)
    except BaseException as problem:
        _tell({"error": f"{type(problem).__name__}: {problem}"[:300], "kind": "raised"})
        code = 1
    finally:
        with contextlib.suppress(BaseException):
            _flush()
        os._exit(code)


def _give_up(job: dict[str, Any], ends: tuple[int, ...], folder: str) -> None:
    os.setsid()
    spare = [fcntl.fcntl(fd, fcntl.F_DUPFD, UP + 1) for fd in ends]  # none is in another's place
    for fd, end in zip((0, 1, FOUND, UP), spare, strict=True):
        os.dup2(end, fd)
    os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
    os.closerange(UP + 1, 4096)
    os.chdir(folder)
    for number in (signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    walls.limit(job["memory_mb"], job["seconds"], FILE_MB, THREADS if job["walls"] else 0)
    if job["walls"]:
        walls.drop()
    walls.die_with_parent()
    walls.no_new_privileges()
    if job["walls"]:
        walls.filter_calls()
    else:
        with contextlib.suppress(OSError, ValueError):  # it needs no rights: often there is one
            walls.filter_calls()


def _serve(
    job: dict[str, Any],
    program: types.ModuleType,
    source: bytes,
    test: dict[str, Any],
    given: bytes,
) -> int:
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.argv = ["answer.py"]
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(fd, mode, encoding="utf-8", errors="replace", closefd=False)
        for fd, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout, __stderr__=sys.stderr)
    sys.setrecursionlimit(RECURSION)
    sys.set_int_max_str_digits(0)  # the clock is limit enough
    random.seed(0)  # a verdict is the same every time
    sys.modules["__main__"] = program
    try:
        code = compile(source, "answer.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError) as problem:
        _tell({"error": f"{type(problem).__name__}: {problem}"[:300], "kind": "syntax"})
        return 1
    if test["how"] == "call":
        program.__name__ = "answer"  # it is imported, not run
        sys.modules["answer"] = program
        _call(code, program, test["name"], given)
        return 0
    return _script(code, program)


def _script(code: Any, program: types.ModuleType) -> int:
    """As the interpreter would: threads that were started are waited for, then exit functions."""
    status = 0
    try:
        exec(code, program.__dict__)
    except SystemExit as leaving:
        status = _status(leaving)
    import atexit
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    _flush()
    return status


def _flush() -> None:
    """What was printed goes out, also where the program has put something in stdout's place."""
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None and not getattr(stream, "closed", False):
            stream.flush()


def _status(leaving: SystemExit) -> int:
    if leaving.code is None:
        return 0
    return leaving.code & 255 if isinstance(leaving.code, int) else 1


def _call(code: Any, program: types.ModuleType, name: str, given: bytes) -> None:
    exec(code, program.__dict__)
    owner = getattr(program, "Solution", None)
    if owner is not None and hasattr(owner, name):
        function = getattr(owner(), name)
    elif hasattr(program, name):
        function = getattr(program, name)
    else:
        _tell({"error": f"there is no {name}", "kind": "missing"})
        return
    args, named = marshal.loads(given)
    _tell({"value": plain(function(*args, **named))})


def plain(value: Any) -> Any:
    """A value as JSON: sets and mappings tagged, tuples as lists.

    Raises:
        TypeError: it is nothing that an expected value could be.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return {"set": [plain(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[plain(k), plain(v)] for k, v in value.items()]}
    if hasattr(value, "tolist"):  # numpy's
        return plain(value.tolist())
    raise TypeError(f"returned {type(value).__name__}")


def _tell(message: dict[str, Any]) -> None:
    rest = memoryview(json.dumps(message).encode())
    while rest:
        rest = rest[os.write(FOUND, rest) :]
