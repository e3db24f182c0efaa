"""Weights from one learner to the engines of its host: a ring of slots in shared memory.

One writer and its readers share two slots of anonymous memory (a memfd: it has no name in any
folder, so nothing is left behind whoever dies). The writer fills one slot while the readers load
from the other. What is where is said over a socket to each reader; the reader's answer is its
acknowledgement. So a side that fails says why, one that dies closes its socket, and one that hangs
runs into the deadline: each is a `SyncError` on the other side that names who. Ring and connections
are kept from sync to sync, as a page touched for the first time costs as much as its copy.

Linux only: abstract socket names and memfd.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

SLOTS = 2
ALIGN = 64
HELLO_S = 10.0
"""What a reader that has connected may take to say which one it is."""


class SyncError(RuntimeError):
    """A weight sync that failed: which side, and why."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where an engine gets its weights from; one control call carries it."""

    kind: Literal["shm", "nccl", "ipc"]
    address: str
    """shm and ipc: the writer's socket. nccl: host:port of the rendezvous."""
    reader: int = 0
    """Number of this reader; of an engine of several, its first."""
    readers: int = 1
    """All readers of the sync."""
    deadline: float = 300.0
    """Seconds from the call to the last weight; then the writer is taken for dead."""
    bucket_bytes: int = 2**26
    parameters: tuple[tuple[str, str, tuple[int, ...]], ...] = ()
    """nccl: (name, dtype, shape) of what comes, in order."""

    def of(self, rank: int) -> Source:
        """That of the engine's process `rank`."""
        return replace(self, reader=self.reader + rank)


class Writer:
    """The learner's end. One sync: `begin`, then `room` and `send` for each bucket, then `end`.

    Args:
        names: what to call each reader in an error.
        slot_bytes: size of a slot; at least the largest tensor. Pages never written cost nothing.

    Every method raises SyncError, and so does everything after it: the ring is to be made anew.
    """

    def __init__(self, names: Sequence[str], slot_bytes: int, deadline: float = 300.0) -> None:
        self.names, self.deadline = list(names), deadline
        self.slot_bytes = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.address = f"\0laconic-{secrets.token_hex(8)}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen(len(self.names))
        self._memory = os.memfd_create("laconic-weights")
        os.ftruncate(self._memory, SLOTS * self.slot_bytes)
        self._slots: Tensor | None = None
        self._readers: dict[int, Connection] = {}
        self._sent, self._acked = 0, [0] * len(self.names)
        self._entries: list[tuple[str, str, tuple[int, ...], int]] = []
        self._used, self._until, self._broken = 0, 0.0, ""

    def source(self, reader: int, kind: Literal["shm", "ipc"] = "shm") -> Source:
        return Source(kind, self.address, reader, len(self.names), self.deadline)

    def begin(self) -> None:
        """Start a sync: its deadline counts from here. Waits for readers not yet connected."""
        if self._broken:
            raise SyncError(self._broken)
        self._until = time.monotonic() + self.deadline
        self._listener.setblocking(False)
        while missing := [i for i in range(len(self.names)) if i not in self._readers]:
            ready = wait([self._listener, *self._readers.values()], self._left())
            if not ready:
                self._fail(missing, f"did not come for the weights in {self.deadline:g} s")
            if self._listener in ready:
                self._accept()
            self._hear(0)

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except BlockingIOError:  # it came and went
            return
        if not _ours(peer):
            peer.close()
            return
        _patience(peer, min(HELLO_S, self._left()))
        try:
            socket.send_fds(peer, [b"m"], [self._memory])
            connection = Connection(peer.detach())
            self._readers[connection.recv()] = connection
        except (OSError, EOFError):  # gone again; it is missed as one that never came
            peer.close()

    def room(self, name: str, shape: Sequence[int], dtype: Any) -> Tensor:
        """Where the next tensor of this bucket is to be written. Waits for a free slot."""
        import torch

        if not self._entries:
            self._wait_for(self._sent - SLOTS + 1)
        if self._slots is None:
            shared = mmap.mmap(self._memory, SLOTS * self.slot_bytes)
            with contextlib.suppress(OSError):  # a kernel without them
                shared.madvise(mmap.MADV_HUGEPAGE)
            self._slots = torch.frombuffer(shared, dtype=torch.uint8).view(SLOTS, -1)
        start = -(-self._used // ALIGN) * ALIGN
        self._used = start + torch.Size(shape).numel() * dtype.itemsize
        assert self._used <= self.slot_bytes, f"{name}: slots of {self.slot_bytes} are too small"
        kind = str(dtype).removeprefix("torch.")
        self._entries.append((name, kind, tuple(shape), start))
        return self._slots[self._sent % SLOTS, start : self._used].view(dtype).view(shape)

    def send(self) -> None:
        """Hand the bucket over; it stays as it is until every reader has loaded it."""
        self._tell(("bucket", self._entries))
        self._entries, self._used = [], 0

    def tell(self, message: Any) -> None:
        """Send something else, and wait until every reader has dealt with it."""
        self._tell(("message", message))
        self._wait_for(self._sent)

    def end(self) -> None:
        """Everything was sent: wait until everything is loaded."""
        self._tell(("end", None))
        self._wait_for(self._sent)

    def fail(self, reason: str) -> None:
        """Tell every reader that nothing more comes, and why."""
        self._broken = self._broken or reason
        for connection in self._readers.values():
            with contextlib.suppress(OSError):
                connection.send(("error", self._broken))

    def close(self) -> None:
        for connection in self._readers.values():
            connection.close()
        self._readers.clear()
        self._listener.close()
        if self._memory >= 0:
            os.close(self._memory)
        self._slots, self._memory, self._broken = None, -1, "the learner has closed the ring"

    def _tell(self, message: Any) -> None:
        for i, connection in self._readers.items():
            try:
                connection.send(message)
            except BlockingIOError:
                self._fail([i], "does not listen")
            except OSError:
                self._hear(0)  # it may have said why
                self._fail([i], "died")
        self._sent += 1

    def _wait_for(self, count: int) -> None:
        """Until every reader has dealt with the first `count` messages."""
        while late := [i for i, acked in enumerate(self._acked) if acked < count]:
            if not self._hear(self._left()):
                self._fail(late, f"did not load its weights in {self.deadline:g} s")

    def _hear(self, timeout: float) -> bool:
        """Take what readers say. False: nothing was said in time."""
        ready = wait(list(self._readers.values()), timeout)
        for i, connection in self._readers.items():
            if connection not in ready:
                continue
            try:
                said: int | str = connection.recv()
            except (OSError, EOFError):
                said = "died"
            if isinstance(said, str):
                self._fail([i], said)
            else:
                self._acked[i] = said
        return bool(ready)

    def _fail(self, who: Sequence[int], what: str) -> None:
        names = ", ".join(self.names[i] for i in who)
        self.fail(f"weight sync: {names} {what}")
        raise SyncError(self._broken)

    def _left(self) -> float:
        return max(0.0, self._until - time.monotonic())


class Reader:
    """One engine process's end; see `read`."""

    def __init__(self, source: Source) -> None:
        import torch

        self.source, self._count = source, 0
        self.begin(source)
        peer = socket.socket(socket.AF_UNIX)
        _patience(peer, source.deadline)
        try:
            peer.connect(source.address)
            assert _ours(peer), "the writer runs as the same user"
            _, (memory, *_), *_ = socket.recv_fds(peer, 1, 1)
        except (OSError, ValueError):
            peer.close()
            raise SyncError("weight sync: the learner is not there, or died") from None
        self._connection = Connection(peer.detach())
        self._connection.send(source.reader)
        shared = mmap.mmap(memory, 0)
        os.close(memory)
        with contextlib.suppress(OSError):
            shared.madvise(mmap.MADV_HUGEPAGE)
        self._slots = torch.frombuffer(shared, dtype=torch.uint8).view(SLOTS, -1)

    def begin(self, source: Source) -> None:
        """A new sync: its deadline counts from here."""
        self.source, self.ended = source, False
        self._until = time.monotonic() + source.deadline

    @property
    def stale(self) -> bool:
        """Whether the writer has gone away since the last sync; it may have begun the next."""
        look = select.poll()  # what it said last may never have been read: that says nothing
        look.register(self._connection.fileno(), 0)
        return bool(look.poll(0))

    def messages(self) -> Iterator[tuple[str, Any]]:
        """(kind, content) until the end; each is acknowledged when the next is asked for."""
        while True:
            kind, content = self._next()
            if kind == "error":
                raise SyncError(content)
            if kind != "end":
                yield kind, content
            self._count += 1
            self._say(self._count)
            if kind == "end":
                self.ended = True
                return

    def _next(self) -> tuple[str, Any]:
        try:
            if not self._connection.poll(max(0.0, self._until - time.monotonic())):
                raise SyncError(
                    "weight sync: the learner did not send all weights in "
                    f"{self.source.deadline:g} s"
                )
            return self._connection.recv()
        except (OSError, EOFError):
            raise SyncError("weight sync: the learner died") from None

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, view of shared memory), each valid until the next bucket: copy, never write."""
        import torch

        for slot, (_, entries) in enumerate(self.messages(), self._count):
            for name, kind, shape, start in entries:
                dtype = getattr(torch, kind)
                stop = start + torch.Size(shape).numel() * dtype.itemsize
                yield name, self._slots[slot % SLOTS, start:stop].view(dtype).view(shape)

    def _say(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError:
            raise SyncError("weight sync: the learner died") from None

    def close(self, reason: str = "") -> None:
        if reason:
            with contextlib.suppress(SyncError):
                self._say(f"failed: {reason}")
        self._connection.close()


_kept: dict[tuple[str, int], Reader] = {}
"""Readers between two syncs, by address and number."""
_keeping = threading.Lock()


@contextlib.contextmanager
def attach(source: Source) -> Iterator[Reader]:
    """The reader for one sync. Whatever is raised inside is told to the writer at once."""
    key = (source.address, source.reader)
    with _keeping:
        for stale in [k for k, kept in _kept.items() if kept.stale]:
            _kept.pop(stale).close()
        kept = _kept.pop(key, None)
    reader = kept or Reader(source)
    reader.begin(source)
    try:
        yield reader
        if not reader.ended:
            raise SyncError("weight sync: the engine stopped before the last weight")
    except BaseException as error:
        reader.close(f"{type(error).__name__}: {error}")
        raise
    with _keeping:
        _kept[key] = reader


@contextlib.contextmanager
def read(source: Source) -> Iterator[Iterator[tuple[str, Tensor]]]:
    """What comes through the ring, as (name, tensor) pairs, to be taken to the end.

    A tensor is a view of the writer's memory, valid until the next bucket is asked for: copy from
    it, never write to it.

        with ring.read(source) as weights:
            engine.load_weights(weights, version)

    Raises:
        SyncError: the writer failed, died or hung.
    """
    with attach(source) as reader:
        yield reader.weights()


def refuse(source: Source, why: str) -> None:
    """In the place of a reader that will not come: its writer need not wait for it."""
    with socket.socket(socket.AF_UNIX) as peer, contextlib.suppress(OSError):
        peer.settimeout(HELLO_S)
        peer.connect(source.address)
        socket.recv_fds(peer, 1, 1)
        with Connection(os.dup(peer.fileno())) as connection:
            connection.send(source.reader)
            connection.send(why)


def _ours(peer: socket.socket) -> bool:
    """Whether the same user is at the other end: whoever knows the name can connect."""
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return bool(user == os.getuid())


def _patience(peer: socket.socket, seconds: float) -> None:
    """No single read or write of this socket takes longer."""
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6) or 1)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        peer.setsockopt(socket.SOL_SOCKET, option, limit)
