"""Readers on other hosts: to the writer each is one of its own host; its bytes leave here by TCP.

Two threads a reader, in the learner's process: one hands on what the writer says, and after each
bucket's description its bytes, straight from the slot; the other what the reader says. A slot
stays as it is until the reader has acknowledged it, however slow the way. Every reader has a
stream of its own: the learner's uplink carries the weights once for each of them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from samplers import wires
from samplers.wires import DRAIN_S, Source

WAITING = 128
"""Connections that may wait to be taken."""


class Relay:
    """Listens on one address of this host, and no other. Close it after its writer.

    Args:
        host: the address that readers reach this host by.
        near: the writer, as a reader of its host finds it.
        memory: its slots, one after the other.
    """

    def __init__(self, host: str, near: Source, memory: memoryview) -> None:
        self.secret = secrets.token_bytes(32)
        self._near, self._memory = near, memory
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=WAITING)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._closing, self._lock = threading.Event(), threading.Lock()
        self._open: dict[threading.Thread, socket.socket] = {}
        self._accepting = threading.Thread(target=self._accept, name="relay", daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                far, _ = self._listener.accept()
            except OSError:  # closed; or it came and went, or there are too many files
                self._closing.wait(0.1)
                continue
            thread = threading.Thread(target=self._serve, args=(far,), name="relay", daemon=True)
            with self._lock:
                self._open[thread] = far
            thread.start()

    def _serve(self, far: socket.socket) -> None:
        """One reader, or somebody who would like to be one, to the end."""
        try:
            with contextlib.suppress(OSError, EOFError):
                reader = wires.admit(far, self.secret)
                far.settimeout(None)
                near, memory = wires.join(replace(self._near, reader=reader))
                os.close(memory)
                with near:
                    self._carry(near, far)
        finally:
            far.close()
            with self._lock:
                del self._open[threading.current_thread()]

    def _carry(self, near: Connection, far: socket.socket) -> None:
        back = threading.Thread(target=_answers, args=(near, far), name="relay", daemon=True)
        back.start()
        try:
            self._forward(near, far)
        except OSError:  # the reader is gone; what it said last is still to be read
            pass
        else:
            _shut(far)
        back.join()

    def _forward(self, near: Connection, far: socket.socket) -> None:
        """All that the writer says, until it closes."""
        size = len(self._memory) // wires.SLOTS
        for message in _messages(near):
            if type(message) is str:  # the first: what the reader is called
                far.sendall(wires.framed((message, size)))
                continue
            kind, content = message
            far.sendall(wires.framed(message))
            if kind == "bucket":
                slot, used, *_ = content
                far.sendall(self._memory[slot * size : slot * size + used])

    def close(self) -> None:
        """Its writer has closed: what that said last is still brought to who listens."""
        self._closing.set()
        _shut(self._listener)
        self._accepting.join()
        self._listener.close()
        with self._lock:
            left = dict(self._open)
        until = time.monotonic() + DRAIN_S
        for thread in left:
            thread.join(max(0.0, until - time.monotonic()))
        for thread, far in left.items():
            _shut(far)
            thread.join()
        self._memory.release()


def _messages(near: Connection) -> Iterator[Any]:
    with contextlib.suppress(OSError, EOFError):
        while near.poll(None):
            yield near.recv()


def _answers(near: Connection, far: socket.socket) -> None:
    """All that the reader says, until it is gone: then the writer hears that, or why."""
    with socket.socket(fileno=os.dup(near.fileno())) as writer:
        try:
            said: object = 0
            while type(said) is int:
                said = wires.heard(far, None)
                if type(said) in (int, str):
                    near.send(said)
        except TimeoutError:
            with contextlib.suppress(OSError):
                near.send("is out of reach")
        except (OSError, EOFError):
            pass
        _shut(writer)
        _shut(far)


def _shut(end: socket.socket) -> None:
    """Whoever waits at it, in either direction, goes on."""
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
