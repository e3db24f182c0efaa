"""Rings of weights and processes that read from them; a network between the two that misbehaves."""

from __future__ import annotations

import multiprocessing
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from samplers import ring
from samplers.ring import Source, SyncError, Writer

WIRES = ["shm", "tcp"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8)
Parameters = list[tuple[str, torch.Tensor]]
FORK = multiprocessing.get_context("forkserver")


@contextmanager
def forks() -> Iterator[None]:
    """Where the processes come from: it has imported torch already, and goes when we do."""
    from multiprocessing import forkserver

    FORK.set_forkserver_preload(["tests.rings"])
    forkserver.ensure_running()
    try:
        yield
    finally:
        forkserver._forkserver._stop()  # type: ignore[attr-defined]


def writer_of(wire: str, names: list[str], size: int, deadline: float = 60, **more: Any) -> Writer:
    return Writer(names, size, deadline, host="127.0.0.1" if wire == "tcp" else "", **more)


def send(writer: Writer, parameters: Parameters, bucket_bytes: int) -> list[int]:
    """One sync in buckets of consecutive parameters; bytes in each bucket."""
    writer.begin()
    used: list[int] = []
    for name, tensor in parameters:
        if used and used[-1] and used[-1] + tensor.nbytes > bucket_bytes:
            writer.send()
            used.append(0)
        writer.room(name, tensor.shape, tensor.dtype).copy_(tensor)
        used = used or [0]
        used[-1] += tensor.nbytes + ring.ALIGN
    if used:
        writer.send()
    writer.end()
    return used


def read_all(source: Source, between: Callable[[], object] | None = None) -> Parameters:
    out = []
    with ring.read(source) as weights:
        for name, tensor in weights:
            out.append((name, tensor.clone()))
            if between:
                between()
    return out


@contextmanager
def beside(do: Callable[..., Any], *args: Any) -> Iterator[list[Any]]:
    """What it returned or raised, when the block is over."""
    out: list[Any] = []

    def run() -> None:
        try:
            out.append(do(*args))
        except Exception as error:
            out.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield out
    finally:
        thread.join()


def some(sizes: list[tuple[tuple[int, ...], int]], seed: int = 0) -> Parameters:
    """Random bits of each shape and dtype (by number)."""
    rng, out = np.random.default_rng(seed), []
    for i, (shape, kind) in enumerate(sizes):
        tensor = torch.empty(shape, dtype=DTYPES[kind])
        bits = torch.from_numpy(rng.integers(0, 256, tensor.nbytes, dtype=np.uint8))
        if tensor.nbytes:
            tensor = bits.view(tensor.dtype).view(shape)
        out.append((f"layer.{i}", tensor))
    return out


def bits(parameters: Parameters) -> list[tuple[str, torch.dtype, torch.Size, bytes]]:
    def raw(tensor: torch.Tensor) -> bytes:
        return bytes(tensor.flatten().view(torch.uint8).numpy()) if tensor.nbytes else b""

    return [(name, t.dtype, t.shape, raw(t)) for name, t in parameters]


def same(a: Parameters, b: Parameters) -> bool:
    return bits(a) == bits(b)


MANY = some([((64, 64), 0)] * 40)
"""655 kB: many buckets of 16 kB."""


# A reader process obeys words: load, hang, fail, leave early.


def obey(pipe: Connection, source: Source, word: str) -> None:
    torch.set_num_threads(1)
    pipe.send("there")
    try:
        for _ in range(3):
            with ring.read(source) as weights:
                for number, (name, tensor) in enumerate(weights):
                    tensor.sum()
                    if number == 2 and word == "hang":
                        pipe.send(name)
                        time.sleep(600)
                    if number == 2 and word == "fail":
                        raise ValueError(f"no parameter is called {name}")
                    if number == 2 and word == "leave":
                        break
            pipe.send("loaded")
    except SyncError as error:
        pipe.send(f"SyncError: {error}")
    except ValueError:
        pipe.send("failed")


@contextmanager
def process(do: Callable[..., None], *args: Any) -> Iterator[tuple[Any, Connection]]:
    """`do(pipe, *args)` elsewhere, and the other end of its pipe."""
    ours, theirs = FORK.Pipe()
    started = FORK.Process(target=do, args=(theirs, *args), daemon=True)
    started.start()
    theirs.close()
    try:
        yield started, ours
    finally:
        started.kill()
        started.join()
        ours.close()


@contextmanager
def readers(wire: Any, writer: Writer, *words: str) -> Iterator[list[tuple[Any, Connection]]]:
    """A process each; they come as soon as there is something to read, and are patient."""
    with ExitStack() as stack:
        started = [
            stack.enter_context(process(obey, replace(writer.source(i, wire), deadline=60), word))
            for i, word in enumerate(words)
        ]
        for _, pipe in started:
            assert said(pipe) == "there"
        yield started


def said(pipe: Connection, seconds: float = 60) -> Any:
    assert pipe.poll(seconds), "the reader said nothing"
    return pipe.recv()


class Proxy:
    """Stands between a reader and the learner's host: what the learner says goes through `change`,
    with the number of bytes before it; None: it is swallowed, and so is all from then on, both
    ways, while the connections stay open."""

    def __init__(self, away: tuple[str, int], change: Callable[[int, bytes], bytes | None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._away, self._change, self._mute = away, change, threading.Event()
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                reader, _ = self._listener.accept()
                learner = socket.create_connection(self._away)
                self._ends += [reader, learner]
                for pair in ((learner, reader, self._change), (reader, learner, None)):
                    thread = threading.Thread(target=self._pass, args=pair, daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _pass(self, one: socket.socket, other: socket.socket, change: Any) -> None:
        passed = 0
        with suppress(OSError):
            while data := one.recv(4096):
                through = change(passed, data) if change else data
                if through is None:
                    self._mute.set()
                passed += len(data)
                if not self._mute.is_set():
                    other.sendall(through)
            if not self._mute.is_set():
                other.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: Any) -> None:
        for end in (self._listener, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._ends):
            end.close()
