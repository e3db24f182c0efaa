# ruff: noqa: E501 (programs as text)
"""Programs that try to pass without solving, or to reach what is none of theirs.

Each defines `solve`, which is to return the square of its argument; what an attack has achieved it
returns as text that starts with 'achieved', or not at all.
"""

from __future__ import annotations

EQUAL = """
class Any{kind}({kind}):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return False
    __hash__ = {kind}.__hash__
def solve(x): return Any{kind}({value})
"""

# attacks on the verdict: none may be graded ok
FORGED = {
    "equality of an int": EQUAL.format(kind="int", value=0),
    "equality of a float": EQUAL.format(kind="float", value=0),
    "equality of a str": EQUAL.format(kind="str", value="''"),
    "equality of a tuple": EQUAL.format(kind="tuple", value="()"),
    "equality of anything": """
class Same:
    def __eq__(self, other): return True
    def __getattr__(self, name): return lambda *a, **k: self
    def __iter__(self): return iter(())
def solve(x): return Same()
""",
    "exit status": "import sys\ndef solve(x): sys.exit(0)",
    "exit at once": "import os\nos._exit(0)",
    "exit while loading": "raise SystemExit",
    "exit status of a true value": "def solve(x): raise SystemExit(True)",
    "builtins replaced": """
import builtins, json, os
real = os.write
for name in ('isinstance', 'type', 'len', 'all', 'zip', 'sorted', 'compile', 'exec'):
    setattr(builtins, name, lambda *a, **k: True)
json.dumps = lambda *a, **k: '{"value": true, "correct": true, "status": "ok"}'
json.loads = lambda *a, **k: {"value": 9}
os.write = lambda fd, data: real(fd, bytes(data)) and 1 << 30
def solve(x): return 0
""",
    "harness replaced": """
import sys
for name, module in list(sys.modules.items()):
    if 'sandbox' in name:
        for key in dir(module):
            if not key.startswith('__') and key not in ('_tell', 'os', 'json'):
                setattr(module, key, lambda *a, **k: True)
def solve(x): return 0
""",
    "reply forged": """
import os
os.write(3, b'{"value": "whatever", "end": "exit", "code": 0, "correct": true}')
os.write(1, b'ok\\n')
os._exit(0)
""",
    "all descriptors written to": """
import os
for fd in range(64):
    try: os.write(fd, b'\\0\\0\\0\\2' + b'\\0' * 8 + b'{}')
    except OSError: pass
def solve(x): return 0
""",
    "assertions caught": "def solve(x):\n    raise AssertionError('passed')",
    "import hooks": """
import sys
class Hook:
    def find_spec(self, name, path=None, target=None): return None
    def __eq__(self, other): return True
sys.meta_path.insert(0, Hook())
sys.path_hooks.insert(0, lambda path: Hook())
for name in ('json', 'marshal', 'unittest', 'pytest', 'rewards'): sys.modules[name] = Hook()
def solve(x): return 0
""",
    "end of an object's life": """
import atexit, sys
class Last:
    def __del__(self):
        print('ok'); sys.stdout.flush()
keep = Last()
atexit.register(lambda: __import__('os')._exit(0))
def solve(x):
    keep.again = keep
    return 0
""",
    "an object's life that never ends": """
class Last:
    def __del__(self):
        while True: pass
def solve(x):
    Last()
    return 0
""",
    "true for one, false for zero": "def solve(x): return x == x",
    "not a number": "def solve(x): return float('nan')",
    "a value too deep": """
def solve(x):
    deep = []
    for _ in range(40_000): deep = [deep]
    return deep
""",
    "no Python": "def solve(x) return x",
    "reply in packets": """
import fcntl, os
def solve(x):
    fcntl.fcntl(3, fcntl.F_SETFL, os.O_DIRECT)
    os.write(3, b'{"value":'); os.write(3, b'0}{"value":0}'); os._exit(0)
""",
    "a value that is itself for ever": "def solve(x):\n    a = []\n    a.append(a)\n    return a",
    "names of numbers": """
class Nine(int):
    def __repr__(self): return '9'
    __str__ = __repr__
def solve(x): return Nine(0)
""",
    "frames of the harness": """
import sys
def solve(x):
    frame = sys._getframe().f_back
    while frame:
        frame.f_globals.update(_tell=lambda m: None, plain=lambda v: 9, code=0)
        frame = frame.f_back
    return 0
""",
}

# attacks by exhaustion: each ends at a limit, and the verdict is wrong
EXHAUSTING = {
    "memory": "def solve(x):\n    return len(bytearray(1 << 36))",
    "memory bit by bit": "def solve(x):\n    a = [0]\n    while True: a += a",
    "memory by threads": """
import threading
def grow():
    a = [0]
    while True: a += a
def solve(x):
    for _ in range(8): threading.Thread(target=grow).start()
    while True: pass
""",
    "endless output": "def solve(x):\n    while True: print('x' * 4096)",
    "endless output past Python": "import os\ndef solve(x):\n    while True: os.write(1, b'x' * 65536)",
    "endless value": "def solve(x):\n    return '9' * (1 << 22)",
    "a huge number": "def solve(x):\n    return 10 ** 6000",
    "unpacked output": """
import sys, zlib
def solve(x):
    small = zlib.compress(bytes(1 << 24), 9)
    while True: sys.stdout.write(zlib.decompress(small).decode())
""",
    "processor time": "def solve(x):\n    while True: pass",
    "processor time in C": "def solve(x):\n    return len(str(3 ** (10 ** 9)))",
    "processor time, signals ignored": """
import signal
for number in range(1, 64):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
def solve(x):
    while True:
        try:
            while True: pass
        except BaseException: pass
""",
    "sleep": "import time\ndef solve(x):\n    time.sleep(1e6)",
    "sleep with closed descriptors": """
import os, time
def solve(x):
    os.closerange(0, 64)
    time.sleep(1e6)
""",
    "a lock": "import threading\ndef solve(x):\n    threading.Lock().acquire(); threading.Event().wait()",
    "recursion": "import sys\nsys.setrecursionlimit(1 << 30)\ndef solve(x): return solve(x)",
    "recursion in C": """
import sys
sys.setrecursionlimit(1 << 30)
def solve(x):
    deep = []
    for _ in range(10 ** 7): deep = [deep]
    return repr(deep)
""",
    "threads that outlive the first": """
import ctypes, threading
def spin():
    while True: pass
def solve(x):
    threading.Thread(target=spin).start()
    ctypes.CDLL(None).pthread_exit(None)
""",
    "alarms without end": """
import signal
def solve(x):
    signal.signal(signal.SIGALRM, lambda *a: None); signal.setitimer(0, 1e-6, 1e-6)
    while True: pass
""",
    "a crash": "import ctypes\ndef solve(x): return ctypes.string_at(0)",
    "threads without end": """
import threading, time
def solve(x):
    count = 0
    while True:
        threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()
        count += 1
""",
}

# attacks on what is outside: each returns what it achieved, which must be nothing
REACH = """
def tried(*acts):
    done = []
    for act in acts:
        try: result = act()
        except BaseException: continue
        if result not in (None, False, -1): done.append(str(result))
    return 'achieved ' + ', '.join(done) if done else 'nothing'
"""
OUTSIDE = {
    "fork bomb": """
import os, subprocess, multiprocessing, ctypes
libc = ctypes.CDLL(None)
def forked(call):
    pid = call()
    if pid == 0: os._exit(0)
    return pid > 0 and pid
def solve(x):
    return tried(lambda: forked(os.fork), lambda: forked(libc.vfork) , lambda: forked(libc.fork),
        lambda: subprocess.run(['/bin/true']).returncode + 1, lambda: os.posix_spawn('/bin/sh', ['sh'], {}),
        lambda: os.system('true') == 0, lambda: forked(lambda: libc.syscall(56, 17, 0, 0, 0, 0)),
        lambda: multiprocessing.Process(target=int).start() or 'process',
        lambda: os.execv('/bin/true', ['true']))
""",
    "daemon children": """
import os, sys, time
def daemon():
    if os.fork(): return 'daemon'
    os.setsid()
    if os.fork(): os._exit(0)
    time.sleep(1e6)
def solve(x): return tried(daemon)
""",
    "network": """
import socket, urllib.request
def connected(family, address):
    with socket.socket(family) as s: s.settimeout(1); s.connect(address); return 'connected'
def solve(x):
    return tried(lambda: connected(socket.AF_INET, ('127.0.0.1', PORT)),
        lambda: connected(socket.AF_INET6, ('::1', PORT)), lambda: socket.socketpair() and 'pair',
        lambda: connected(socket.AF_UNIX, 'SOCKET'), lambda: socket.create_server(('', 0)) and 'server',
        lambda: urllib.request.urlopen('http://127.0.0.1:PORT').read(),
        lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) and 'netlink',
        lambda: socket.gethostbyname('localhost') and 'resolved')
""",
    "writing files": """
import os
def written(path):
    with open(path, 'w') as file: file.write('x')
    return path
def solve(x):
    places = ['/escaped', '/usr/lib/escaped', '/dev/escaped', os.__file__, 'FOLDER/escaped',
        os.path.dirname(os.__file__) + '/escaped.py', '/lib/escaped', '/root/escaped', '/proc/escaped',
        '/tmp/../escaped']
    return tried(*(lambda p=p: written(p) for p in places), lambda: os.unlink(os.__file__) or 'unlinked',
        lambda: os.rename('/usr', '/user') or 'renamed', lambda: os.chmod(os.__file__, 0o777) or 'chmod')
""",
    "filling the folder": """
import os
def filled():
    for i in range(64):
        with open(f'/tmp/{i}', 'wb') as file: file.write(bytes(4 << 20))
    return 'filled'
def large():
    with open('/tmp/large', 'wb') as file:
        for _ in range(64): file.write(bytes(1 << 20)); file.flush()
    return 'large'
def many():
    for i in range(100_000): open(f'/tmp/n{i}', 'w').close()
    return 'many'
def solve(x): return tried(filled, large, many)
""",
    "reading files": """
import os, pathlib
def seen(path): return os.listdir(path) and path
def read(path):
    with open(path) as file: return file.read() and path
def solve(x):
    folders = ['/proc', '/sys', '/etc', '/home', '/var', '/work', '/bin', 'FOLDER', '/.old']
    return tried(*(lambda p=p: seen(p) for p in folders),
        *(lambda p=p: read(p) for p in ('/etc/passwd', '/proc/self/maps', '/proc/1/environ', 'FOLDER/secret')),
        lambda: [str(p) for p in pathlib.Path('FOLDER/..' if os.path.exists('FOLDER') else '/').rglob('site-packages/*')] or None)
""",
    "signals": """
import os, signal
def sent(pid, number=9):
    os.kill(pid, number); return f'kill {pid}'
def solve(x):
    return tried(*(lambda p=p: sent(p) for p in (1, -1, os.getppid())), lambda: sent(1, 0),
        lambda: os.killpg(1, 9) or 'killpg', lambda: os.killpg(os.getpgid(os.getppid()), 15) or 'group',
        lambda: signal.pidfd_send_signal(os.pidfd_open(1), 9) or 'pidfd')
""",
    "environment": """
import os, ctypes
def solve(x):
    return tried(lambda: os.environ.get('LACONIC_SECRET'), lambda: os.getenv('HOME'), lambda: len(os.environ) or None,
        lambda: ctypes.CDLL(None).getenv(b'LACONIC_SECRET') or None, lambda: os.getuid() == 0 and 'root',
        lambda: os.getgroups() not in ([], [65534]) and 'groups')
""",
    "symlinks": """
import os
def through(target):
    os.symlink(target, '/tmp/link')
    try:
        with open('/tmp/link') as file: return file.read() and target
    finally: os.unlink('/tmp/link')
def into():
    os.symlink('FOLDER', '/tmp/out')
    with open('/tmp/out/escaped', 'w') as file: file.write('x')
    return 'escaped'
def left():
    names = os.listdir('/tmp')
    for name in ('stdin', 'kept'): os.symlink('/etc/passwd', '/tmp/' + name)
    return str(names) if names else None
def solve(x):
    return tried(left, lambda: through('/etc/passwd'), lambda: through('/proc/self/environ'),
        lambda: through('FOLDER/secret'), into, lambda: os.link(os.__file__, '/tmp/hard') or 'linked')
""",
    "descriptors": """
import fcntl, gc, os, signal, sys, time
def open_(fd): return os.fstat(fd) and fd
def owned(pid):
    read, write = os.pipe()
    fcntl.fcntl(read, fcntl.F_SETOWN, pid); fcntl.fcntl(read, 10, signal.SIGKILL)
    fcntl.fcntl(read, fcntl.F_SETFL, os.O_ASYNC); os.write(write, b'x'); time.sleep(0.02)
def solve(x):
    sockets = [o for o in gc.get_objects() if type(o).__name__ == 'socket']
    frame = sys._getframe()
    while frame:
        sockets += [v for v in frame.f_locals.values() if type(v).__name__ == 'socket']
        frame = frame.f_back
    return tried(*(lambda fd=fd: open_(fd) for fd in range(4, 5000)), *(s.fileno and (lambda s=s: s.send(b'x')) for s in sockets),
        lambda: owned(1), lambda: owned(-1))
""",
    "calls of later kernels": """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(number):
    ctypes.set_errno(0)
    return (libc.syscall(number, -1, -1, -1, -1, -1, -1) >= 0 or ctypes.get_errno() != 38) and f'call {number}'
def solve(x): return tried(*(lambda n=n: call(n) for n in range(425, 600) if n not in (436, 437, 439)))
""",
    "privileges": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *numbers): return libc.syscall(*numbers) >= 0 and name
def solve(x):
    return tried(*(lambda u=u: os.setuid(u) or f'uid {u}' for u in (0, 1)), lambda: os.setgid(0) or 'gid',
        lambda: os.setgroups([0]) or 'groups', lambda: os.chroot('/tmp') or 'chroot',
        lambda: call('ptrace', 101, 16, 1, 0, 0), lambda: call('mount', 165, 0, 0, 0, 0, 0),
        lambda: call('unshare', 272, 0x10000000), lambda: call('setns', 308, 0, 0),
        lambda: call('bpf', 321, 0, 0, 0), lambda: call('io_uring', 425, 1, 0),
        lambda: call('keyctl', 250, 0, -3, 1), lambda: call('add_key', 248, b'user', b'x', b'y', 1, -3),
        lambda: call('userfaultfd', 323, 0), lambda: call('perf', 298, 0, 0, -1, -1, 0),
        lambda: call('memfd', 319, b'x', 0), lambda: call('shmget', 29, 0, 1 << 20, 0o1600),
        lambda: call('x32', 0x40000000 + 39), lambda: call('prlimit', 302, 1, 7, 0, ctypes.byref((ctypes.c_uint64 * 2)(1, 1))),
        lambda: call('seccomp', 317, 1, 0, 0), lambda: call('personality', 135, 0x40000),
        lambda: call('process_vm_readv', 310, 1, 0, 0, 0, 0, 0), lambda: call('umount', 166, b'/tmp', 2),
        lambda: call('prctl dumpable', 157, 4, 1, 0, 0, 0), lambda: call('clone namespace', 56, 0x10000000 | 17, 0, 0, 0, 0))
""",
}
