"""Weights from one learner to its engines: a ring of slots in shared memory.

One writer and its readers share two slots of anonymous memory (a memfd: it has no name in any
folder, so nothing is left behind whoever dies). The writer fills one slot while the readers load
from the other. What is where is said over a socket to each reader; the reader's answer is its
acknowledgement. So a side that fails says why, one that dies closes its socket, and one that hangs
runs into the deadline: each is a `SyncError` on the other side that names who. Ring and connections
are kept from sync to sync, as a page touched for the first time costs as much as its copy.

Readers on other hosts (`tcp`) come to a relay beside the writer, which is such a reader itself and
sends the bytes on: `samplers/relay.py`, and `samplers/wires.py` for a reader's end of either way.

Linux only: abstract socket names and memfd.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import select
import socket
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from samplers import wires
from samplers.relay import Relay
from samplers.wires import HELLO_S, SLOTS, Kind, Source, SyncError

if TYPE_CHECKING:
    from torch import Tensor

ALIGN = 64
REASON = 10_000
"""Characters of a reason that one side tells the other."""


class Writer:
    """The learner's end. One sync: `begin`, then `room` and `send` for each bucket, then `end`.

    Args:
        names: what to call each reader in an error.
        slot_bytes: size of a slot; at least the largest tensor. Pages never written cost nothing.
        host: the address of this host for readers on others; none: there are none.
        checksum: readers compare each bucket with what it was here before they load it.

    Every method raises SyncError, and so does everything after it: the ring is to be made anew.
    """

    def __init__(
        self,
        names: Sequence[str],
        slot_bytes: int,
        deadline: float = 300.0,
        host: str = "",
        checksum: bool = False,
    ) -> None:
        self.names, self.deadline, self._checksum = list(names), deadline, checksum
        self.slot_bytes = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.address = f"\0laconic-{secrets.token_hex(8)}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen(len(self.names))
        self._memory = os.memfd_create("laconic-weights")
        os.ftruncate(self._memory, SLOTS * self.slot_bytes)
        self._shared: mmap.mmap | None = mmap.mmap(self._memory, SLOTS * self.slot_bytes)
        wires.huge(self._shared)
        self._slots: Tensor | None = None
        self._readers: dict[int, Connection] = {}
        self._sent, self._acked = 0, [0] * len(self.names)
        self._entries: list[tuple[str, str, tuple[int, ...], int]] = []
        self._used, self._until, self._broken = 0, 0.0, ""
        self._relay: Relay | None = None
        if host:
            self._relay = Relay(host, self.source(0), memoryview(self._shared))

    def source(self, reader: int, kind: Kind = "shm") -> Source:
        source = Source(kind, self.address, reader, len(self.names), self.deadline)
        relay = self._relay
        return replace(source, away=relay.address, secret=relay.secret) if relay else source

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
        with peer:
            if not wires.ours(peer):
                return
            wires.patience(peer, min(HELLO_S, self._left()))
            connection = Connection(os.dup(peer.fileno()))
            try:
                socket.send_fds(peer, [b"m"], [self._memory])
                number = connection.recv()
            except (OSError, EOFError):  # gone again; it is missed as one that never came
                connection.close()
                return
            self._readers[number] = connection
            with contextlib.suppress(OSError):  # what it said before it went is heard next
                connection.send(self.names[number])

    def room(self, name: str, shape: Sequence[int], dtype: Any) -> Tensor:
        """Where the next tensor of this bucket is to be written. Waits for a free slot."""
        import torch

        if not self._entries:
            self._wait_for(self._sent - SLOTS + 1)
        if self._slots is None:
            assert self._shared is not None, "not after close()"
            self._slots = torch.frombuffer(self._shared, dtype=torch.uint8).view(SLOTS, -1)
        start = -(-self._used // ALIGN) * ALIGN
        self._used = start + torch.Size(shape).numel() * dtype.itemsize
        assert self._used <= self.slot_bytes, f"{name}: slots of {self.slot_bytes} are too small"
        kind = str(dtype).removeprefix("torch.")
        self._entries.append((name, kind, tuple(shape), start))
        return self._slots[self._sent % SLOTS, start : self._used].view(dtype).view(shape)

    def send(self) -> None:
        """Hand the bucket over; it stays as it is until every reader has loaded it."""
        slot = self._sent % SLOTS
        summed = self._sum(slot) if self._checksum else None
        self._tell(("bucket", (slot, self._used, summed, self._entries)))
        self._entries, self._used = [], 0

    def _sum(self, slot: int) -> int:
        assert self._slots is not None, "room was made for something"
        return zlib.crc32(self._slots[slot, : self._used].numpy())

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
        if self._relay is not None:
            self._relay.close()
        self._slots = self._shared = self._relay = None
        self._memory, self._broken = -1, "the learner has closed the ring"

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
        self._count, self._line = 0, wires.line(source)

    def begin(self, source: Source) -> None:
        """A new sync: its deadline counts from here."""
        self.source, self.ended = source, False
        self._until = time.monotonic() + source.deadline

    @property
    def stale(self) -> bool:
        """Whether the writer has gone away since the last sync; it may have begun the next."""
        look = select.poll()  # what it said last may never have been read: that says nothing
        look.register(self._line.fileno(), select.POLLRDHUP)
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
            try:
                self._line.send(self._count)
            except OSError:
                if kind == "end":
                    raise self._died() from None
                continue  # what it said last is still to be heard
            if kind == "end":
                self.ended = True
                return

    def _next(self) -> tuple[str, Any]:
        try:
            message: tuple[str, Any] = self._line.recv(self._until)
        except TimeoutError as error:
            if error.errno:  # the system gave up, not we
                raise self._died() from None
            raise SyncError(
                f"weight sync: {self._line.peer} did not send all weights in "
                f"{self.source.deadline:g} s"
            ) from None
        except (OSError, EOFError):
            raise self._died() from None
        return message

    def _died(self) -> SyncError:
        return SyncError(f"weight sync: {self._line.peer} died")

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, view of a slot), each valid until the next bucket: copy, never write."""
        import torch

        for number, (_, (slot, used, summed, entries)) in enumerate(self.messages(), 1):
            whole = self._line.slot(slot)[:used]
            if summed is not None and summed != (found := zlib.crc32(whole.numpy())):
                raise SyncError(
                    f"weight sync: {self._line.name}: bucket {number} ({entries[0][0]} to "
                    f"{entries[-1][0]}) is not what {self._line.peer} sent: CRC-32 {found:08x}, "
                    f"and there {summed:08x}; memory or network of one of the hosts is at fault"
                )
            for name, kind, shape, start in entries:
                dtype = getattr(torch, kind)
                stop = start + torch.Size(shape).numel() * dtype.itemsize
                yield name, whole[start:stop].view(dtype).view(torch.Size(shape))

    def close(self, error: BaseException | None = None) -> None:
        if error is not None:
            ours = isinstance(error, SyncError)
            why = f"{'' if ours else type(error).__name__ + ': '}{error}"
            why = why.removeprefix("weight sync: ").removeprefix(f"{self._line.name}: ")
            with contextlib.suppress(OSError):
                self._line.send(f"failed: {why[:REASON]}")
        self._line.close()


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
        reader.close(error)
        raise
    with _keeping:
        _kept[key] = reader


@contextlib.contextmanager
def read(source: Source) -> Iterator[Iterator[tuple[str, Tensor]]]:
    """What comes through the ring, as (name, tensor) pairs, to be taken to the end.

    A tensor is a view of a slot, valid until the next bucket is asked for: copy from it, never
    write to it.

        with ring.read(source) as weights:
            engine.load_weights(weights, version)

    Raises:
        SyncError: the writer failed, died or hung.
    """
    with attach(source) as reader:
        yield reader.weights()


def refuse(source: Source, why: str) -> None:
    """In the place of a reader that will not come: its writer need not wait for it."""
    source = replace(source, deadline=HELLO_S)
    with contextlib.suppress(OSError, EOFError):
        if source.away[0]:
            with wires.reach(source, time.monotonic() + HELLO_S) as far:
                far.sendall(wires.framed(why))
            return
        connection, memory = wires.join(source)
        os.close(memory)
        with connection:
            connection.send(why)
