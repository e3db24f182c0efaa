"""Walls around a process: namespaces, a root of its own, no privileges, limits (Linux, ctypes).

Called by the guest only (`rewards.sandbox.guest`); every failure is an OSError that names the
call. Steps and flags: namespaces(7), user_namespaces(7), pivot_root(2), capabilities(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
from collections.abc import Mapping, Sequence

from rewards.sandbox import filter as calls

NOBODY = 65534
"""User and group id of the program, as it sees them; where we may choose, outside as well."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_NS, _NEW_UTS, _NEW_IPC, _NEW_USER = 0x00020000, 0x04000000, 0x08000000, 0x10000000
_NEW_PID, _NEW_NET, _NEW_CGROUP = 0x20000000, 0x40000000, 0x02000000
_RDONLY, _NOSUID, _NODEV, _REMOUNT = 1, 2, 4, 32
_BIND, _REC, _PRIVATE = 4096, 16384, 1 << 18
_DETACH = 2
_PIVOT_ROOT, _CAPSET = (41, 91) if platform.machine() == "aarch64" else (155, 126)
_MOUNT_SETATTR = 442
_PR_PDEATHSIG, _PR_CAPBSET_DROP, _PR_NO_NEW_PRIVS, _PR_SECCOMP = 1, 24, 38, 22
_PR_SECUREBITS, _PR_AMBIENT = 28, 47
_SECUREBITS_LOCKED = 0xEB  # root means nothing, capabilities are not kept, none ambient; all locked


def _must(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _prctl(option: int, *args: int) -> int:
    values = [ctypes.c_ulong(a) for a in (*args, 0, 0, 0, 0)[:4]]
    return int(_LIBC.prctl(ctypes.c_int(option), *values))


def die_with_parent() -> None:
    """SIGKILL as soon as the parent ends. To be called after any change of credentials."""
    _must(_prctl(_PR_PDEATHSIG, 9), "prctl PDEATHSIG")


def unshare() -> None:
    """New user, mount, process, network, IPC, host name and cgroup namespaces.

    The next child is process 1 of the new process namespace. Where users' namespaces are closed
    and we are privileged, the others alone.
    """
    apart = _NEW_NS | _NEW_PID | _NEW_NET | _NEW_IPC | _NEW_UTS | _NEW_CGROUP
    if _LIBC.unshare(_NEW_USER | apart) < 0:
        why = ctypes.get_errno()
        if _LIBC.unshare(apart) < 0:
            raise OSError(why, f"unshare: {os.strerror(why)}")


def map_alone() -> None:
    """Without anybody's help: the id inside is our own outside, the only one there is."""
    uid, gid = os.geteuid(), os.getegid()
    for name, text in (("setgroups", "deny"), ("uid_map", uid), ("gid_map", gid)):
        line = text if name == "setgroups" else f"{NOBODY} {text} 1"
        try:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(str(line))
        except OSError as error:
            raise OSError(error.errno, f"{name}: {error.strerror}") from None


def map_for(pid: int) -> bool:
    """For a privileged helper outside: the program becomes nobody. Returns whether it could."""
    try:
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{name}", "w") as file:
                file.write(f"0 0 1\n{NOBODY} {NOBODY} 1\n")
    except OSError:
        return False
    return True


def mapped() -> bool:
    """Whether somebody has mapped our ids, or nobody needs to."""
    with open("/proc/self/uid_map") as file:
        return bool(file.read().strip())


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    args = [os.fsencode(text) if text else None for text in (source, target, kind)]
    data = options.encode() or None
    flags_ = ctypes.c_ulong(flags)
    _must(_LIBC.mount(*args, flags_, data), f"mount {kind or source} on {target}")


def _tmpfs(target: str, options: str) -> None:
    _mount("tmpfs", target, "tmpfs", _NOSUID | _NODEV, options)


def _bind(source: str, target: str) -> None:
    """`source` read-only at `target`, with what is mounted below it."""
    _mount(source, target, "", _BIND | _REC)
    size = 32
    attributes = (ctypes.c_uint64 * 4)(_RDONLY | _NOSUID, 0, 0, 0)
    recursive = ctypes.c_uint(0x8000)
    where = ctypes.c_char_p(os.fsencode(target))
    here = ctypes.c_int(-100)
    if _LIBC.syscall(_MOUNT_SETATTR, here, where, recursive, attributes, ctypes.c_size_t(size)) < 0:
        kept = os.statvfs(target).f_flag & (_NODEV | 8)  # may not be cleared; 8: noexec
        _mount("", target, "", _BIND | _REMOUNT | _RDONLY | _NOSUID | kept)


def own_root(visible: Mapping[str, str], hidden: Sequence[str]) -> None:
    """A read-only root of folders (name there -> real path here), `hidden` ones empty.

    Four devices besides; no /proc, no /sys.
    """
    _mount("", "/", "", _REC | _PRIVATE)
    base = next(p for p in ("/tmp", "/var/tmp", "/dev/shm", "/mnt", "/var") if os.path.isdir(p))
    _tmpfs(base, "size=1m,nr_inodes=512,mode=755")
    os.mkdir(f"{base}/.old")
    old = ctypes.c_char_p(os.fsencode(f"{base}/.old"))
    _must(_LIBC.syscall(_PIVOT_ROOT, ctypes.c_char_p(os.fsencode(base)), old), "pivot_root")
    os.chdir("/")
    for name, real in visible.items():
        os.makedirs(os.path.dirname(name), exist_ok=True)
        if os.path.isdir(f"/.old{real}"):
            os.mkdir(name)
        else:
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
        _bind(f"/.old{real}", name)
    for folder in hidden:
        if os.path.isdir(folder):
            _mount("tmpfs", folder, "tmpfs", _RDONLY | _NOSUID | _NODEV, "nr_inodes=1,mode=755")
    os.makedirs("/dev")
    for name in ("null", "zero", "random", "urandom"):
        if os.path.exists(f"/.old/dev/{name}"):
            os.close(os.open(f"/dev/{name}", os.O_CREAT | os.O_WRONLY))
            _mount(f"/.old/dev/{name}", f"/dev/{name}", "", _BIND)
    os.mkdir("/tmp")
    _must(_LIBC.umount2(b"/.old", _DETACH), "umount")
    os.rmdir("/.old")
    _mount("", "/", "", _BIND | _REMOUNT | _RDONLY | _NOSUID | _NODEV)


def fresh_folder(megabytes: int) -> None:
    """An empty /tmp of limited size, whatever was in it before."""
    with contextlib.suppress(OSError):
        _must(_LIBC.umount2(b"/tmp", _DETACH), "umount")
    _tmpfs("/tmp", f"size={megabytes}m,nr_inodes=1024,mode=1777")


def limit(memory_mb: int, seconds: float, file_mb: int, threads: int) -> None:
    """Limits of this process; `threads` 0: not limited (they are counted by user)."""
    cpu = int(seconds) + 2
    limits = {
        resource.RLIMIT_AS: memory_mb << 20,
        resource.RLIMIT_CPU: cpu,
        resource.RLIMIT_FSIZE: file_mb << 20,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_STACK: 64 << 20,
        resource.RLIMIT_MEMLOCK: 0,
    }
    if threads:
        limits[resource.RLIMIT_NPROC] = threads
    for which, value in limits.items():
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        own = which == resource.RLIMIT_STACK  # programs raise it: it counts as address space
        resource.setrlimit(which, (value, hard if own else value))


def drop() -> None:
    """No user but the one inside, no groups, no capabilities, and none to be had again."""
    with contextlib.suppress(PermissionError):  # where it was denied for good
        os.setgroups([])
    for option in range(64):
        if _prctl(_PR_CAPBSET_DROP, option) < 0:
            break
    _prctl(_PR_AMBIENT, 4)
    os.setresgid(NOBODY, NOBODY, NOBODY)
    _prctl(_PR_SECUREBITS, _SECUREBITS_LOCKED)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _must(_LIBC.syscall(_CAPSET, header, (ctypes.c_uint32 * 6)()), "capset")


def no_new_privileges() -> None:
    """Nothing that is executed may gain any."""
    _must(_prctl(_PR_NO_NEW_PRIVS, 1), "prctl NO_NEW_PRIVS")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def filter_calls() -> None:
    """From here on only the calls of `rewards.sandbox.filter`. There is no way back."""
    body = calls.program(os.getpid())
    filled = _Program(len(body) // 8, body)
    pointer = ctypes.cast(ctypes.byref(filled), ctypes.c_void_p).value or 0
    _must(_prctl(_PR_SECCOMP, 2, pointer), "seccomp")
