"""The sandbox: programs that forge verdicts, exhaust the machine or reach outside all fail."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rewards.sandbox import filter as calls
from rewards.sandbox import host
from rewards.sandbox.host import Guest, Limits
from rewards.verdict import Verdict
from rewards.verifiers import code
from tests.attacks import EXHAUSTING, FORGED, OUTSIDE, REACH
from tests.sandboxed import WALLED, below, graded

pytestmark = WALLED
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No process, no mount and no file in the usual places outlives a test."""

    def outside() -> tuple[str, list[str]]:
        folders = [ROOT, Path("/"), Path(os.__file__).parent]
        names = sorted(str(p) for f in folders for p in f.iterdir())
        return Path("/proc/self/mountinfo").read_text(), names

    before, others = outside(), below()
    yield
    for _ in range(500):  # the kernel takes a moment to end a namespace
        if below() <= others:
            break
        time.sleep(0.01)
    assert below() <= others
    mounts, names = outside()
    assert mounts == before[0]
    assert [n for n in names if n not in before[1] and "escaped" in n] == []


def test_a_right_program_passes_and_a_wrong_one_does_not() -> None:
    assert graded("def solve(x): return x * x").status == "ok"
    assert graded("class Solution:\n    def solve(self, x): return x ** 2").status == "ok"
    assert graded("def solve(x): return x + 6").status == "wrong"


@pytest.mark.parametrize("name", FORGED)
def test_a_verdict_cannot_be_forged(name: str) -> None:
    verdict = graded(FORGED[name])
    assert verdict.status == ("unparseable" if name == "no Python" else "wrong"), verdict
    assert verdict.score == 0


@pytest.mark.parametrize("name", EXHAUSTING)
def test_what_takes_too_much_ends_and_is_wrong(name: str) -> None:
    verdict = graded(EXHAUSTING[name])
    assert verdict.status == "wrong", verdict
    assert graded("def solve(x): return x * x").status == "ok"


@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_outside_can_be_reached(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "privileges" and platform.machine() != "x86_64":
        pytest.skip("the program's numbers are those of x86_64")
    monkeypatch.setenv("LACONIC_SECRET", "found")
    (tmp_path / "secret").write_text("found")
    tmp_path.chmod(0o777)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        server.setblocking(False)
        local.bind(str(tmp_path / "socket"))
        local.listen()
        source = REACH + OUTSIDE[name].replace("PORT", str(server.getsockname()[1]))
        source = source.replace("SOCKET", str(tmp_path / "socket"))
        source = source.replace("FOLDER", str(tmp_path))
        host.close()  # the launcher is to see the secret in the environment, if it can
        with Guest(source, Limits(seconds=2.0, prelude=code.PRELUDE)) as guest:
            for _ in range(2):  # the second time: nothing of the first
                assert guest.call("solve", (3,), {}, 20.0).said() == {"value": "nothing"}
        with pytest.raises(BlockingIOError):
            server.accept()
    assert {p.name for p in tmp_path.iterdir()} == {"secret", "socket"}
    assert not any(Path(f"{f}/escaped").exists() for f in ("/", "/tmp", "/dev", "/usr/lib"))


@pytest.mark.parametrize("name", ["reading files", "environment", "network"])
def test_the_same_programs_do_reach_outside_where_nothing_stops_them(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("found")
    source = REACH + OUTSIDE[name].replace("PORT", "1").replace("FOLDER", str(tmp_path))
    run = subprocess.run(
        [sys.executable, "-c", f"{source}\nprint(solve(3))"],
        capture_output=True, text=True, env={"LACONIC_SECRET": "found"}, check=True,
    )  # fmt: skip
    assert run.stdout.startswith("achieved")


HUNT = """
import gc, os, sys
marker = ''.join(('needle', '-', 'x' * 5)) + '-'
def holds(data): return bool(text(data))
def solve(x):
    frame = sys._getframe()
    pool = list(gc.get_objects())
    while frame:
        pool += [*frame.f_locals.values(), *frame.f_globals.values()]; frame = frame.f_back
    for _ in range(2):
        pool += [i for o in pool if isinstance(o, dict) for i in o.values()]
        pool += [i for o in pool if isinstance(o, (list, tuple)) for i in o]
    for item in pool:
        if isinstance(item, (str, bytes, bytearray, memoryview)) and holds(item): return text(item)
    for fd in range(3, 64):
        try: data = os.pread(fd, 1 << 16, 0)
        except OSError: continue
        if holds(data): return text(data)
    for folder, _, names in os.walk('/tmp'):
        for name in names:
            data = open(os.path.join(folder, name), 'rb').read()
            if holds(data): return text(data)
    return 'not found'
def text(data):
    data = data if isinstance(data, str) else bytes(data).decode(errors='replace')
    before, found, after = data.partition(marker)
    return marker + after[:4] if found and after[:4].isdigit() else ''
"""


def test_what_is_expected_is_nowhere_in_the_child() -> None:
    secret = "needle-xxxxx-7731"
    gold = json.dumps({"inputs": [[3], [3]], "outputs": [secret, secret], "fn_name": "solve"})
    assert graded(HUNT, gold, seconds=5).detail.endswith("gave 'not found'")
    found = json.dumps({"inputs": [[secret]], "outputs": [secret], "fn_name": "solve"})
    assert graded(HUNT, found, seconds=5).status == "ok"  # the hunt finds what is there: an input
    asserted = {"functional": f"def check(f):\n assert f(3) == {secret!r}\ncheck(Solution().solve)"}
    assert graded(HUNT, json.dumps(asserted), seconds=5).detail.endswith("gave 'not found'")


def test_a_returned_object_is_not_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    source = f"""
import pickle, os, sys
class Bomb:
    def __reduce__(self): return (os.system, ('touch {mark}',))
def solve(x):
    os.write(3, pickle.dumps(Bomb(), protocol=0)); sys.stdout.buffer.write(pickle.dumps(Bomb()))
    return Bomb()
"""
    assert graded(source).status == "wrong"
    assert not mark.exists()


SCRIPTS = {
    "reads for ever": ("import sys\nwhile True: sys.stdin.read()", "wrong"),
    "reads lines for ever": ("while True: input()", "wrong"),
    "exits with success": ("import sys; sys.exit(0)", "wrong"),
    "closes its output": ("import os; os.close(1)", "wrong"),
    "prints at exit": ("import atexit\natexit.register(print, 9)", "ok"),
    "prints from a thread": (
        "from threading import *\nThread(target=print, args=(9,)).start()",
        "ok",
    ),
    "prints and fails": ("print(9)\nraise ValueError", "wrong"),
    "prints and exits": ("print(9)\nraise SystemExit", "ok"),
    "prints and exits with 1": ("print(9)\nexit(1) if 0 else __import__('sys').exit(1)", "wrong"),
    "kills itself": ("import os\nprint(9, flush=True)\nos.kill(os.getpid(), 9)", "wrong"),
    "a thread that stays": (
        "import threading, time\nprint(9)\n"
        "threading.Thread(target=time.sleep, args=(1e6,)).start()",
        "wrong",
    ),
    "an exit that never ends": (
        "import atexit\nprint(9)\n@atexit.register\ndef f():\n    while 1: pass",
        "wrong",
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts(name: str) -> None:
    source, status = SCRIPTS[name]
    gold = json.dumps({"inputs": ["3\n"], "outputs": ["9\n"]})
    assert graded(source, gold).status == status


def test_a_child_that_cannot_give_up_its_rights_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = "from rewards.sandbox import walls; walls.drop = lambda: 1 // 0; guest.main()"
    monkeypatch.setattr(host, "_BOOT", host._BOOT.replace("guest.main()", broken))
    host.close()
    verdict = graded("def solve(x): return x * x")
    host.close()
    assert verdict.status == "error"
    assert "a child does not start" in verdict.detail
    assert "ZeroDivisionError" in verdict.detail


def test_threads_share_a_launcher() -> None:
    verdicts: list[Verdict] = []
    threads = [
        threading.Thread(target=lambda: verdicts.append(graded("def solve(x): return x * x")))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [v.status for v in verdicts] == ["ok"] * 12


NO_NAMESPACES = """
import os, sys
from rewards.sandbox import walls
import ctypes
def closed():
    '''A user namespace in which no other may be made, without any rights of its own.'''
    uid, gid = os.getuid(), os.getgid()
    ctypes.CDLL(None).unshare(0x10000000)
    open('/proc/self/setgroups', 'w').write('deny')
    open('/proc/self/uid_map', 'w').write(f'{uid} {uid} 1')
    open('/proc/self/gid_map', 'w').write(f'{gid} {gid} 1')
    for name in ('user', 'mnt'): open(f'/proc/sys/user/max_{name}_namespaces', 'w').write('0')
closed()
from rewards.service.pool import VerifierPool
try: VerifierPool({'name': 'code'}, workers=1)
except ValueError as refused: print(refused)
else: print('started')
with VerifierPool({'name': 'code', 'unsafe_local_exec': True, 'seconds': 0.4}, workers=1) as pool:
    gold = '{"inputs": [[3]], "outputs": [9], "fn_name": "f"}'
    text = '```python\\n%s\\n```'
    print([v.status for v in pool.grade([(text % s, gold, {}) for s in (
        'def f(x): return x * x', 'def f(x): return x', 'def f(x):\\n  while True: pass')])])
"""


def test_without_namespaces_it_refuses_in_so_many_words() -> None:
    run = subprocess.run(
        [sys.executable, "-c", NO_NAMESPACES], cwd=ROOT, capture_output=True, text=True, check=False
    )
    refusal, statuses = run.stdout.splitlines()
    assert "no sandbox can be made on this machine (unshare: " in refusal
    assert "set unsafe_local_exec: true" in refusal
    assert statuses == "['ok', 'wrong', 'wrong']"
    assert "run with your rights" in run.stderr


PRIVILEGED = """
import ctypes, os
ready, go = os.pipe(), os.pipe()
helper = os.fork()
if helper == 0:  # outside, it maps all ids
    os.read(ready[0], 1)
    for name in ('uid_map', 'gid_map'):
        with open(f'/proc/{os.getppid()}/{name}', 'w') as file: file.write('0 0 65536')
    os.write(go[1], b'1'); os._exit(0)
ctypes.CDLL(None).unshare(0x10000000)
os.write(ready[1], b'1'); os.read(go[0], 1); os.waitpid(helper, 0)
open('/proc/sys/user/max_user_namespaces', 'w').write('0')
from rewards.sandbox.host import *; from rewards.sandbox import host
print(repr(host.fault(Limits())))
with Guest("import os; f = lambda: (os.getuid(), os.getgid())", Limits()) as guest:
    print(guest.call("f", (), {}, 9.0).said())
"""


def test_who_is_privileged_needs_no_user_namespaces() -> None:
    if os.getuid():
        pytest.skip("needs root")
    run = subprocess.run(
        [sys.executable, "-c", PRIVILEGED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.stdout.splitlines() == ["''", "{'value': [65534, 65534]}"], run


ORDINARY = """
import os, sys
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
os.execv(sys.argv[1], [sys.argv[1], "-c", '''
import os, sys; sys.path.append(sys.argv[1])
from rewards.sandbox.host import *; from rewards.sandbox import host
assert os.getuid() == 65534
print(repr(host.fault(Limits())))
with Guest("import os; f = lambda: (os.getuid(), os.getgid())", Limits()) as guest:
    print(guest.call("f", (), {}, 9.0).said())
''', sys.argv[2]])
"""


def test_an_ordinary_user_needs_no_rights() -> None:
    names = ["python3", *(f"python3.{minor}" for minor in range(11, 16))]
    folders = ["/usr/bin", "/usr/local/bin", str(Path(sys.executable).resolve().parent)]
    usable = [
        path
        for path in (shutil.which(name, path=folder) for folder in folders for name in names)
        if path and others_may(Path(path).resolve()) and new_enough(path)
    ]
    if os.getuid() or not usable or not others_may(ROOT / "rewards" / "sandbox" / "guest.py"):
        pytest.skip("needs root, and an interpreter that everybody may run")
    run = subprocess.run(
        [sys.executable, "-c", ORDINARY, usable[0], str(ROOT)],
        cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.stdout.splitlines() == ["''", "{'value': [65534, 65534]}"], run


def others_may(path: Path) -> bool:
    return all(p.stat().st_mode & (1 if p.is_dir() else 4) for p in (path, *path.parents))


def new_enough(path: str) -> bool:
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    return subprocess.run([path, "-c", check], check=False).returncode == 0


def test_root_runs_programs_as_nobody() -> None:
    if os.getuid():
        pytest.skip("needs root")
    with Guest("import time\ndef f(): time.sleep(1e6)", Limits()) as guest:
        thread = threading.Thread(target=lambda: guest.call("f", (), {}, 1.0))
        thread.start()
        nobody: list[psutil.Process] = []
        while thread.is_alive() and not nobody:
            tree = psutil.Process().children(recursive=True)
            nobody = [p for p in tree if p.is_running() and p.uids().real == 65534]
        assert [p.uids().effective for p in nobody] == [65534]
        thread.join()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_has_no_way_round(machine: str) -> None:
    """Its jumps end in instructions, its tables name no call twice, and the last word is no."""
    body = calls.program(7, machine)
    steps = [body[i : i + 8] for i in range(0, len(body), 8)]
    for at, step in enumerate(steps):
        if step[0] & 7 == 5:  # a jump
            assert at + 1 + max(step[2], step[3]) < len(steps)
    assert steps[-1][0] == 6
    assert steps[-1][4:] == b"\x26\x00\x05\x00"  # ENOSYS
    numbers = calls.allowed(machine)
    assert len(set(numbers.values())) == len(numbers) > 80
    assert not {"execve", "fork", "socket", "ptrace", "mount", "bpf", "kill"} & set(numbers)


def test_no_filter_for_machines_that_are_not_known() -> None:
    with pytest.raises(ValueError, match="no system call table for s390x"):
        calls.program(1, "s390x")
