"""A reader's line to the writer of a ring: memory of one host, or TCP from another.

Over TCP both ends first prove that they know the sync's secret; nothing of a peer is unpickled,
neither before nor after: what is said is JSON, and a bucket is bytes. They travel in the clear.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import mmap
import os
import secrets
import socket
import struct
import time
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

SLOTS = 2
HELLO_S = 10.0
"""What a reader that has connected may take to say which one it is."""
DRAIN_S = 1.0
"""What the last words of an end that leaves may take to the other."""
KEEPALIVE_S = (30, 10, 3)
"""A line at rest is asked after so many seconds, again after so many, so many times."""
NONCE, PROOF = 32, 32
SIZE, NUMBER = struct.Struct("!I"), struct.Struct("!I")
LONGEST = 2**26
"""Bytes of one message, without a bucket's."""

Kind = Literal["shm", "tcp", "nccl", "ipc"]


class SyncError(RuntimeError):
    """A weight sync that failed: which side, and why."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where an engine gets its weights from; one control call carries it."""

    kind: Kind
    address: str
    """shm, tcp and ipc: the writer's socket. nccl: host:port of the rendezvous."""
    reader: int = 0
    """Number of this reader; of an engine of several, its first."""
    readers: int = 1
    """All readers of the sync."""
    deadline: float = 300.0
    """Seconds from the call to the last weight; then the writer is taken for dead."""
    bucket_bytes: int = 2**26
    parameters: tuple[tuple[str, str, tuple[int, ...]], ...] = ()
    """nccl: (name, dtype, shape) of what comes, in order."""
    away: tuple[str, int] = ("", 0)
    """Host and port for readers on other hosts, if there are any."""
    secret: bytes = field(default=b"", repr=False)

    def of(self, rank: int) -> Source:
        """That of the engine's process `rank`."""
        return replace(self, reader=self.reader + rank)

    def by(self, kind: Kind) -> Source:
        """The same weights another way: by shared memory or TCP."""
        return replace(self, kind=kind)


class Near:
    """The writer's own slots, and a socket to it."""

    peer = "the learner"

    def __init__(self, source: Source) -> None:
        import torch

        self._connection, memory = join(source)
        try:
            shared = mmap.mmap(memory, 0)
        finally:
            os.close(memory)
        huge(shared)
        self._slots = torch.frombuffer(shared, dtype=torch.uint8).view(SLOTS, -1)
        self.name: str = self.recv(time.monotonic() + source.deadline)

    def slot(self, number: int) -> Tensor:
        return self._slots[number]

    def fileno(self) -> int:
        return self._connection.fileno()

    def recv(self, until: float) -> Any:
        if not self._connection.poll(max(0.0, until - time.monotonic())):
            raise TimeoutError
        return self._connection.recv()

    def send(self, message: int | str) -> None:
        self._connection.send(message)

    def close(self) -> None:
        self._connection.close()


class Far:
    """A connection to the writer's host, and memory for one bucket."""

    def __init__(self, source: Source) -> None:
        import torch

        self.peer = f"the learner on {source.away[0]}"
        until = time.monotonic() + source.deadline
        self._socket = reach(source, until)
        try:
            self.name, size = self._said(until)
        except BaseException:
            self._socket.close()
            raise
        memory = mmap.mmap(-1, size)
        huge(memory)
        self._slot, self._bytes = torch.frombuffer(memory, dtype=torch.uint8), memoryview(memory)

    def slot(self, _number: int) -> Tensor:
        return self._slot

    def fileno(self) -> int:
        return self._socket.fileno()

    def recv(self, until: float) -> Any:
        kind, content = self._said(until)
        if kind == "bucket":
            fill(self._socket, self._bytes[: content[1]], until)
        return kind, content

    def _said(self, until: float) -> Any:
        """A pair."""
        match heard(self._socket, until):
            case [one, other]:
                return one, other
        raise ConnectionError("not a message of ours")

    def send(self, message: int | str) -> None:
        self._socket.settimeout(HELLO_S)
        self._socket.sendall(framed(message))

    def close(self) -> None:
        """Closed with bytes unread, a connection is torn, and what was said last may be lost."""
        until = time.monotonic() + DRAIN_S
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            left = True
            while left:
                self._socket.settimeout(max(1e-3, until - time.monotonic()))
                left = self._socket.recv_into(self._bytes) > 0
        self._socket.close()


def line(source: Source) -> Near | Far:
    """The line of this reader to its writer.

    Raises:
        SyncError: nobody is there.
    """
    made = Far if source.kind == "tcp" else Near
    try:
        return made(source)
    except (OSError, EOFError) as error:
        why = f": {error}" if str(error) else ""
        at = f" on {source.away[0]} (port {source.away[1]})" if made is Far else ""
        raise SyncError(f"weight sync: the learner{at} is not there, or died{why}") from None


# On one host


def join(source: Source) -> tuple[Connection, int]:
    """Come to the writer as the reader of this number: the connection, and its memory's file.

    Raises:
        OSError: it is not there.
    """
    peer = socket.socket(socket.AF_UNIX)
    patience(peer, source.deadline)
    try:
        peer.connect(source.address)
        assert ours(peer), "the writer runs as the same user"
        _, memory, *_ = socket.recv_fds(peer, 1, 1)
        if not memory:
            raise EOFError
    except BaseException:
        peer.close()
        raise
    connection = Connection(peer.detach())
    try:
        connection.send(source.reader)
    except BaseException:
        connection.close()
        os.close(memory[0])
        raise
    return connection, memory[0]


def ours(peer: socket.socket) -> bool:
    """Whether the same user is at the other end: whoever knows the name can connect."""
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return bool(user == os.getuid())


def patience(peer: socket.socket, seconds: float) -> None:
    """No single read or write of this socket takes longer."""
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6) or 1)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        peer.setsockopt(socket.SOL_SOCKET, option, limit)


def huge(memory: mmap.mmap) -> None:
    """Large pages, of a kernel that has them."""
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)


# Between hosts


def reach(source: Source, until: float) -> socket.socket:
    """A connection to the writer's host, both ends of which know the secret.

    Raises:
        OSError, EOFError: nobody is there, or not who was meant.
    """
    far = socket.create_connection(source.away, max(1e-3, until - time.monotonic()))
    try:
        lively(far)
        theirs, mine = take(far, NONCE, until), secrets.token_bytes(NONCE)
        number = NUMBER.pack(source.reader)
        far.sendall(mine + number + _proof(source.secret, b"reader", theirs, mine, number))
        proof = take(far, PROOF, until)
        if not hmac.compare_digest(proof, _proof(source.secret, b"writer", theirs, mine, number)):
            raise ConnectionError("who answers there does not know the sync's secret")
    except BaseException:
        far.close()
        raise
    return far


def admit(far: socket.socket, secret: bytes) -> int:
    """The other end of `reach`: the number of the reader that has come.

    Raises:
        OSError, EOFError: it does not know the secret, or says nothing.
    """
    until, mine = time.monotonic() + HELLO_S, secrets.token_bytes(NONCE)
    far.settimeout(HELLO_S)
    lively(far)
    far.sendall(mine)
    told = take(far, NONCE + NUMBER.size + PROOF, until)
    theirs, number, proof = told[:NONCE], told[NONCE:-PROOF], told[-PROOF:]
    if not hmac.compare_digest(proof, _proof(secret, b"reader", mine, theirs, number)):
        raise ConnectionError("does not know the sync's secret")
    far.sendall(_proof(secret, b"writer", mine, theirs, number))
    return int(NUMBER.unpack(number)[0])


def _proof(secret: bytes, *parts: bytes) -> bytes:
    return hmac.digest(secret, b"".join(parts), "sha256")


def lively(far: socket.socket) -> None:
    """Acknowledgements leave at once; a peer that vanished without a word is noticed."""
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    for option, value in zip(names, KEEPALIVE_S, strict=True):
        far.setsockopt(socket.IPPROTO_TCP, option, value)


def framed(message: Any) -> bytes:
    text = json.dumps(message).encode()
    assert len(text) <= LONGEST, "a message is small: the weights are not in it"
    return SIZE.pack(len(text)) + text


def heard(far: socket.socket, until: float | None) -> Any:
    """The next message.

    Raises:
        OSError, EOFError: the other end is gone, or is none of ours; it did not come in time.
    """
    (size,) = SIZE.unpack(take(far, SIZE.size, until))
    if size > LONGEST:
        raise ConnectionError("not a message of ours")
    try:
        return json.loads(take(far, size, until))
    except ValueError:
        raise ConnectionError("not a message of ours") from None


def take(far: socket.socket, count: int, until: float | None) -> bytes:
    into = bytearray(count)
    fill(far, memoryview(into), until)
    return bytes(into)


def fill(far: socket.socket, into: memoryview, until: float | None) -> None:
    """Exactly so many bytes; `until` when they must be there."""
    while into:
        if until is not None:
            far.settimeout(max(1e-3, until - time.monotonic()))
        count = far.recv_into(into)
        if not count:
            raise EOFError
        into = into[count:]
