"""The system calls that an answer's program may make: a seccomp filter, as BPF instructions.

A list of what is allowed, so that a call which a later kernel adds is refused. Not on it: new
processes and programs, sockets, tracing, mounts, namespaces, keys, BPF, io_uring, shared memory
outside the address space, signals to others. Refused calls fail with ENOSYS: libraries try
another way, programs get an OSError.

Numbers: asm/unistd_64.h (x86_64) and asm-generic/unistd.h (aarch64) of Linux 6.1.
"""

from __future__ import annotations

import errno
import platform
import struct

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""machine -> (AUDIT_ARCH, which number of the table)."""

# name:number on x86_64:number on aarch64 (which lacks the older of two equal calls)
_FILES = """read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 open:2:
openat:257:56 openat2:437:437 creat:85: close:3:57 close_range:436:436 lseek:8:62 stat:4:
fstat:5:80 lstat:6: newfstatat:262:79 statx:332:291 statfs:137:43 fstatfs:138:44 access:21:
faccessat:269:48 faccessat2:439:439 readlink:89: readlinkat:267:78 getdents:78: getdents64:217:61
getcwd:79:17 chdir:80:49 fchdir:81:50 mkdir:83: mkdirat:258:34 rmdir:84: unlink:87: unlinkat:263:35
rename:82: renameat:264:38 renameat2:316:276 link:86: linkat:265:37 symlink:88: symlinkat:266:36
chmod:90: fchmod:91:52 fchmodat:268:53 truncate:76:45 ftruncate:77:46 fallocate:285:47 fsync:74:82
fdatasync:75:83 flock:73:32 utimensat:280:88 umask:95:166 dup:32:23 dup2:33: dup3:292:24 pipe:22:
pipe2:293:59 fcntl:72:25 select:23: pselect6:270:72 poll:7: ppoll:271:73 epoll_create:213:
epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232: epoll_pwait:281:22 eventfd2:290:19
copy_file_range:326:285 sendfile:40:71"""
_MEMORY_AND_THREADS = """mmap:9:222 mprotect:10:226 munmap:11:215 mremap:25:216 madvise:28:233
brk:12:214 membarrier:324:283 futex:202:98 set_robust_list:273:99 get_robust_list:274:100
rseq:334:293 set_tid_address:218:96 arch_prctl:158: exit:60:93 exit_group:231:94 sched_yield:24:124
sched_getaffinity:204:123 sched_getparam:143:121 sched_getscheduler:145:120
sched_get_priority_max:146:125 sched_get_priority_min:147:126 getpriority:140:141 getcpu:309:168"""
_ITSELF_AND_TIME = """gettid:186:178 getpid:39:172 getppid:110:173 getpgrp:111: getpgid:121:155
getsid:124:156 getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177 getresuid:118:148
getresgid:120:150 getgroups:115:158 uname:63:160 sysinfo:99:179 times:100:153 getrusage:98:165
getrlimit:97:163 setrlimit:160:164 time:201: gettimeofday:96:169 clock_gettime:228:113
clock_getres:229:114 clock_nanosleep:230:115 nanosleep:35:101 getitimer:36:102 setitimer:38:103
alarm:37: pause:34: getrandom:318:278 rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139
rt_sigpending:127:136 rt_sigsuspend:130:133 rt_sigtimedwait:128:137 sigaltstack:131:132
restart_syscall:219:128"""
_CLONE, _KILL, _TGKILL, _PRLIMIT, _IOCTL, _PRCTL = (
    (56, 220), (62, 129), (234, 131), (302, 261), (16, 29), (157, 167)
)  # fmt: skip

_NEW_NAMESPACES = 0x7E020000
_THREAD = 0x00010000 | 0x00000100 | 0x00000800  # CLONE_THREAD, _VM, _SIGHAND
_PTRACE_OR_VFORK = 0x00002000 | 0x00004000
_TERMINAL_AND_FLAGS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, 0x802C542A)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, TCGETS2: what `open` may ask."""
_NAMES = (15, 16, 0x53564D41)
"""PR_SET_NAME, PR_GET_NAME, PR_SET_VMA: threads and the allocator label themselves."""

_LOAD, _EQUAL, _AND, _RETURN, _AT_LEAST = 0x20, 0x15, 0x54, 0x06, 0x35
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NR, _ARCH, _ARGS = 0, 4, 16


def program(pid: int, machine: str = "") -> bytes:
    """The filter for process `pid`, as an array of struct sock_filter.

    Raises:
        ValueError: there is no table for this machine.
    """
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        raise ValueError(f"no system call table for {machine}")
    arch, which = ARCHITECTURES[machine]
    allow, refuse = _do(_RETURN, _ALLOW), _do(_RETURN, _ERRNO | errno.ENOSYS)
    out = [_do(_LOAD, _ARCH), _do(_EQUAL, arch, 1, 0), _do(_RETURN, _KILL_PROCESS)]
    out += [_do(_LOAD, _NR)]
    if machine == "x86_64":  # the numbers of x32 begin here
        out += [_do(_AT_LEAST, 0x40000000, 0, 1), refuse]
    for number in allowed(machine).values():
        out += [_do(_EQUAL, number, 0, 1), allow]
    threads = _THREAD | _NEW_NAMESPACES | _PTRACE_OR_VFORK
    out += _where(_CLONE[which], 0, (_THREAD,), mask=threads)
    for call in (_KILL, _TGKILL):
        out += _where(call[which], 0, (pid,))
    out += _where(_PRLIMIT[which], 0, (0, pid))
    out += _where(_IOCTL[which], 1, _TERMINAL_AND_FLAGS)
    out += _where(_PRCTL[which], 0, _NAMES)
    return b"".join([*out, refuse])


def allowed(machine: str) -> dict[str, int]:
    """Calls that are allowed whatever their arguments: name -> number."""
    which = ARCHITECTURES[machine][1]
    entries = [e.split(":") for e in f"{_FILES} {_MEMORY_AND_THREADS} {_ITSELF_AND_TIME}".split()]
    return {name: int(numbers[which]) for name, *numbers in entries if numbers[which]}


def _where(number: int, argument: int, values: tuple[int, ...], mask: int = 0) -> list[bytes]:
    """Allow call `number` where the low word of one argument, masked, is one of `values`."""
    body = [_do(_LOAD, _ARGS + 8 * argument)]  # both machines are little-endian
    if mask:
        body.append(_do(_AND, mask))
    for value in values:
        body += [_do(_EQUAL, value, 0, 1), _do(_RETURN, _ALLOW)]
    body.append(_do(_RETURN, _ERRNO | errno.ENOSYS))
    return [_do(_EQUAL, number, 0, len(body)), *body]


def _do(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)
