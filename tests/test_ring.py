"""The ring of shared memory: every byte arrives in order, and no fault of either side goes unnamed.

Readers and writers are processes of their own, and are killed, stopped and made to fail for real.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers import ring
from samplers.ring import Source, SyncError, Writer

SPAWN = multiprocessing.get_context("spawn")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8)
Parameters = list[tuple[str, torch.Tensor]]


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


def read_all(source: Source) -> Parameters:
    with ring.read(source) as weights:
        return [(name, tensor.clone()) for name, tensor in weights]


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


shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(shapes, st.integers(0, len(DTYPES) - 1)), max_size=12),
    st.integers(1, 3000),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_any_parameters_arrive_as_they_are(sizes, bucket_bytes, readers, syncs) -> None:
    """In order and bit for bit, whatever their sizes are against a bucket's, sync after sync."""
    largest = max((t.nbytes for _, t in some(sizes)), default=0)
    writer = Writer([f"engine {i}" for i in range(readers)], max(bucket_bytes, largest) + 99 * 64)
    try:
        for sync in range(syncs):
            sent, got = some(sizes, sync), [[] for _ in range(readers)]

            def take(i: int, got: list = got) -> None:
                got[i] = read_all(writer.source(i))

            threads = [threading.Thread(target=take, args=(i,)) for i in range(readers)]
            for thread in threads:
                thread.start()
            send(writer, sent, bucket_bytes)
            for thread in threads:
                thread.join(timeout=10)
            assert all(same(sent, one) for one in got)
    finally:
        writer.close()


# Faults. A reader process obeys words: load, hang, fail, stop early.


def obey(source: Source, pipe: Connection, word: str) -> None:
    torch.set_num_threads(1)
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
def readers(writer: Writer, *words: str) -> Iterator[list[tuple[Any, Connection]]]:
    started = []
    for i, word in enumerate(words):
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=obey, args=(writer.source(i), theirs, word), daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours))
    try:
        yield started
    finally:
        for process, _ in started:
            process.kill()
            process.join()


def said(pipe: Connection, seconds: float = 60) -> Any:
    assert pipe.poll(seconds), "the reader said nothing"
    return pipe.recv()


MANY = some([((64, 64), 0)] * 40)
"""655 kB: many buckets of 16 kB."""


def two(deadline: float = 60) -> Writer:
    return Writer(["engine 0", "engine 1"], 2**14, deadline)


def test_a_failing_reader_is_an_error_with_its_message() -> None:
    writer = two()
    with readers(writer, "load", "fail") as ((_, first), (_, second)):
        with pytest.raises(SyncError, match="engine 1 failed: ValueError: no parameter is called"):
            send(writer, MANY, 2**14)
        assert said(second) == "failed"
        assert "engine 1 failed: ValueError" in said(first), "the other readers are told as well"
    with pytest.raises(SyncError, match="engine 1 failed"):
        writer.begin()
    writer.close()


def test_a_reader_that_leaves_early_is_an_error() -> None:
    writer = two()
    with (
        readers(writer, "load", "leave"),
        pytest.raises(SyncError, match=r"engine 1 failed: .* before the last weight"),
    ):
        send(writer, MANY, 2**14)
    writer.close()


def test_a_killed_reader_is_named_long_before_the_deadline() -> None:
    writer = two(deadline=600)
    with readers(writer, "load", "hang") as ((_, first), (process, second)):
        killer = threading.Thread(target=lambda: (said(second), process.kill()))
        killer.start()
        with pytest.raises(SyncError, match="engine 1 died"):
            send(writer, MANY, 2**14)
        killer.join()
        assert "engine 1 died" in said(first)
    writer.close()


def test_a_hanging_reader_is_named_by_the_deadline() -> None:
    writer = two(deadline=8)  # a spawned process takes seconds to import torch
    with readers(writer, "load", "hang") as ((_, first), _):
        with pytest.raises(SyncError, match="engine 1 did not load its weights in 8 s"):
            send(writer, MANY, 2**14)
        assert "engine 1 did not load" in said(first)
    writer.close()


def test_a_reader_that_never_comes_is_named() -> None:
    writer = Writer(["engine 0", "engine 1"], 2**14, deadline=6)
    with (
        readers(writer, "load"),
        pytest.raises(SyncError, match="engine 1 did not come for the weights in 6 s"),
    ):
        send(writer, MANY, 2**14)
    writer.close()


def lead(pipe: Connection, word: str, deadline: float) -> None:
    """A writer process: sends some buckets, and then hangs or fails."""
    writer = Writer(["engine 0"], 2**14, deadline)
    pipe.send(writer.source(0))
    send(writer, MANY, 2**14)
    writer.begin()
    writer.room("half", (8,), torch.float32)
    writer.send()
    if word == "fail":
        writer.fail("weight sync: the learner failed: out of memory")
    pipe.send("there")
    time.sleep(600)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("kill", "the learner died"),
        ("hang", "the learner did not send all weights in 2 s"),
        ("fail", "the learner failed: out of memory"),
    ],
)
def test_a_writer_that_dies_hangs_or_fails_is_an_error(word: str, message: str) -> None:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=lead, args=(theirs, word, 30), daemon=True)
    process.start()
    try:
        source = said(ours)
        assert same(read_all(source), MANY)
        source = Source("shm", source.address, deadline=2 if word == "hang" else 600)
        if word == "kill":
            threading.Thread(target=lambda: (said(ours), process.kill())).start()
        with pytest.raises(SyncError, match=message):
            read_all(source)
    finally:
        process.kill()
        process.join()
    with pytest.raises(SyncError, match="not there, or died"):
        read_all(source)


def test_who_is_not_of_our_user_gets_nothing() -> None:
    if os.getuid():
        pytest.skip("only root can become another user")
    writer = Writer(["engine 0"], 2**14, deadline=1)
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        stranger = socket.socket(socket.AF_UNIX)
        stranger.connect(writer.address)
        stranger.settimeout(30)
        os._exit(len(stranger.recv(1)))  # closed: nothing comes
    with pytest.raises(SyncError, match="did not come"):
        writer.begin()
    assert os.waitpid(child, 0)[1] == 0
    writer.close()


# What stays


def memories(process: psutil.Process) -> int:
    return sum("laconic-weights" in m.path for m in process.memory_maps(grouped=False))


def test_nothing_stays_behind() -> None:
    """No file ever; in this process no memory, descriptor or socket once the ring is closed."""
    me, files = psutil.Process(), set(os.listdir("/dev/shm"))
    descriptors = len(os.listdir("/proc/self/fd"))
    writer = two()
    with readers(writer, "load", "load") as started:
        send(writer, MANY, 2**14)
        assert memories(me) == 1
        assert set(os.listdir("/dev/shm")) <= files
        for process, _ in started:
            os.kill(process.pid, signal.SIGKILL)
    writer.close()
    assert memories(me) == 0
    assert set(os.listdir("/dev/shm")) <= files
    del started, process, _
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_readers_of_rings_that_failed_between_two_syncs_are_let_go() -> None:
    """What such a ring said last is never read by anybody."""
    descriptors = []
    for _ in range(4):
        writer = Writer(["engine 0"], 2**16)
        reading = threading.Thread(target=read_all, args=(writer.source(0),))
        reading.start()
        send(writer, MANY, 2**14)
        reading.join()
        writer.fail("the other engine died")
        writer.close()
        descriptors.append(len(os.listdir("/proc/self/fd")))
    assert descriptors[1:] == descriptors[:1] * 3


def test_memory_is_that_of_the_slots_and_used_again() -> None:
    """However much goes through: no page is touched for the first time after the first sync."""
    weights = [(f"w{i}", torch.randn(256, 1024)) for i in range(64)]  # 64 MiB
    slot = 2**22
    writer = Writer(["engine 0"], slot)
    with readers(writer, "load") as ((process, pipe),):
        faults = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            send(writer, weights, slot)
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
            assert said(pipe) == "loaded"
        mapped = next(
            m for m in psutil.Process().memory_maps(grouped=False) if "laconic-weights" in m.path
        )
        assert mapped.rss <= ring.SLOTS * slot
        assert max(faults[1:]) < sum(t.nbytes for _, t in weights) // 4096 // 16
        assert process.is_alive()
    writer.close()
