"""The ring of weights: every byte arrives in order, and no fault of either side goes unnamed.

All of it by shared memory and by TCP. Readers and writers are processes of their own, and are
killed, stopped and made to fail for real.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers import ring, wires
from samplers.ring import SyncError, Writer
from tests.rings import (
    DTYPES,
    MANY,
    WIRES,
    beside,
    forks,
    process,
    read_all,
    readers,
    said,
    same,
    send,
    some,
    writer_of,
)


@pytest.fixture(scope="module", autouse=True)
def forking() -> Iterator[None]:
    with forks():
        yield


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest) -> Any:
    return request.param


shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(shapes, st.integers(0, len(DTYPES) - 1)), max_size=12),
    st.integers(1, 3000),
    st.lists(st.sampled_from(WIRES), min_size=1, max_size=3),
    st.integers(1, 3),
    st.booleans(),
)
def test_any_parameters_arrive_as_they_are(sizes, bucket_bytes, ways, syncs, checksum) -> None:
    """In order and bit for bit, whatever their sizes are against a bucket's, sync after sync, to
    readers of this host and of others together."""
    largest = max((t.nbytes for _, t in some(sizes)), default=0)
    names = [f"engine {i}" for i in range(len(ways))]
    slot = max(bucket_bytes, largest) + 99 * 64
    writer = Writer(names, slot, host="127.0.0.1" if "tcp" in ways else "", checksum=checksum)
    try:
        for sync in range(syncs):
            sent, got = some(sizes, sync), [[] for _ in ways]

            def take(i: int, got: list = got) -> None:
                got[i] = read_all(writer.source(i, ways[i]))

            threads = [threading.Thread(target=take, args=(i,)) for i in range(len(ways))]
            for thread in threads:
                thread.start()
            send(writer, sent, bucket_bytes)
            for thread in threads:
                thread.join(timeout=10)
            assert all(same(sent, one) for one in got)
    finally:
        writer.close()


# Faults


def two(wire: str, deadline: float = 60) -> Writer:
    return writer_of(wire, ["engine 0", "engine 1"], 2**14, deadline)


def test_a_failing_reader_is_an_error_with_its_message(wire) -> None:
    writer = two(wire)
    with readers(wire, writer, "load", "fail") as ((_, first), (_, second)):
        with pytest.raises(SyncError, match="engine 1 failed: ValueError: no parameter is called"):
            send(writer, MANY, 2**14)
        assert said(second) == "failed"
        assert "engine 1 failed: ValueError" in said(first), "the other readers are told as well"
    with pytest.raises(SyncError, match="engine 1 failed"):
        writer.begin()
    writer.close()


def test_a_reader_that_leaves_early_is_an_error(wire) -> None:
    writer = two(wire)
    with (
        readers(wire, writer, "load", "leave"),
        pytest.raises(SyncError, match=r"engine 1 failed: .* before the last weight"),
    ):
        send(writer, MANY, 2**14)
    writer.close()


def test_a_killed_reader_is_named_long_before_the_deadline(wire) -> None:
    writer = two(wire, deadline=600)
    with readers(wire, writer, "load", "hang") as ((_, first), (process, second)):
        killer = threading.Thread(target=lambda: (said(second), process.kill()))
        killer.start()
        with pytest.raises(SyncError, match="engine 1 died"):
            send(writer, MANY, 2**14)
        killer.join()
        assert "engine 1 died" in said(first)
    writer.close()


@pytest.mark.parametrize("how", ["hangs", "is stopped"])
def test_a_reader_that_hangs_is_named_by_the_deadline(wire, how: str) -> None:
    """Stopped before it comes, it is connected all the same: the kernel answers for it."""
    writer = two(wire, deadline=1)
    words = ("load", "hang" if how == "hangs" else "load")
    with readers(wire, writer, *words) as ((_, first), (process, _)):
        if how == "is stopped":
            send(writer, MANY, 2**14)
            assert said(first) == "loaded"
            os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(SyncError, match="engine 1 did not load its weights in 1 s"):
            send(writer, MANY, 2**14)
        assert "engine 1 did not load" in said(first)
    writer.close()


def test_a_reader_that_never_comes_is_named(wire) -> None:
    writer = two(wire, deadline=1)
    with (
        readers(wire, writer, "load"),
        pytest.raises(SyncError, match="engine 1 did not come for the weights in 1 s"),
    ):
        send(writer, MANY, 2**14)
    writer.close()


def test_a_reader_that_will_not_come_is_refused(wire) -> None:
    """By whoever knows that; nobody waits for it then."""
    writer = writer_of(wire, ["engine 0"], 2**14, deadline=600)
    with (
        beside(ring.refuse, writer.source(0, wire), "died"),
        pytest.raises(SyncError, match="engine 0 died"),
    ):
        send(writer, MANY, 2**14)
    writer.close()


def test_what_the_learner_says_last_is_heard(wire) -> None:
    """By a reader that is still at a bucket when the writer fails and closes."""
    writer = writer_of(wire, ["engine 0"], 2**14)
    failed = threading.Event()

    def slowly() -> None:
        with ring.read(writer.source(0, wire)) as weights:
            for _ in weights:
                assert failed.wait(60)

    with beside(slowly) as out:
        writer.begin()
        for name, tensor in MANY[:2]:
            writer.room(name, tensor.shape, tensor.dtype).copy_(tensor)
            writer.send()
        writer.fail("weight sync: the learner failed: out of memory")
        writer.close()
        failed.set()
    assert str(out[0]) == "weight sync: the learner failed: out of memory"


def lead(pipe: Connection, wire: Any, word: str, deadline: float) -> None:
    """A writer process: sends some buckets, and then hangs or fails."""
    torch.set_num_threads(1)
    writer = writer_of(wire, ["engine 0"], 2**14, deadline)
    pipe.send(writer.source(0, wire))
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
        ("kill", "the learner( on 127.0.0.1)? died"),
        ("hang", "the learner( on 127.0.0.1)? did not send all weights in 1 s"),
        ("stop", "the learner( on 127.0.0.1)? did not send all weights in 1 s"),
        ("fail", "the learner failed: out of memory"),
    ],
)
def test_a_writer_that_dies_hangs_or_fails_is_an_error(wire, word: str, message: str) -> None:
    with process(lead, wire, word, 30) as (writer, pipe):
        source = said(pipe)
        assert same(read_all(source), MANY)
        assert said(pipe) == "there"
        source = replace(source, deadline=1 if word in ("hang", "stop") else 600)
        if word == "stop":
            os.kill(writer.pid, signal.SIGSTOP)
        with pytest.raises(SyncError, match=message):
            read_all(source, writer.kill if word == "kill" else None)
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


def test_nothing_stays_behind(wire) -> None:
    """No file ever; in this process no memory, descriptor or socket once the ring is closed."""
    me, files = psutil.Process(), set(os.listdir("/dev/shm"))
    descriptors = len(os.listdir("/proc/self/fd"))
    writer = two(wire)
    with readers(wire, writer, "load", "load") as started:
        send(writer, MANY, 2**14)
        assert memories(me) == 1
        assert set(os.listdir("/dev/shm")) <= files
        for one, _ in started:
            os.kill(one.pid, signal.SIGKILL)
    writer.close()
    assert memories(me) == 0
    assert set(os.listdir("/dev/shm")) <= files
    del started, one, _
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_readers_of_rings_that_failed_between_two_syncs_are_let_go(wire) -> None:
    """What such a ring said last is never read by anybody."""
    descriptors = []
    for _ in range(4):
        writer = writer_of(wire, ["engine 0"], 2**16)
        with beside(read_all, writer.source(0, wire)):
            send(writer, MANY, 2**14)
        writer.fail("the other engine died")
        writer.close()
        descriptors.append(len(os.listdir("/proc/self/fd")))
    assert descriptors[1:] == descriptors[:1] * 3
    assert [t.name for t in threading.enumerate() if t.name.startswith("relay")] == []


def test_memory_is_that_of_the_slots_and_used_again(wire) -> None:
    """However much goes through: no page is touched for the first time after the first sync."""
    weights = [(f"w{i}", torch.randn(256, 1024)) for i in range(64)]  # 64 MiB
    slot = 2**22
    writer = writer_of(wire, ["engine 0"], slot)
    with readers(wire, writer, "load") as ((_, pipe),):
        faults = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            send(writer, weights, slot)
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
            assert said(pipe) == "loaded"
        mapped = next(
            m for m in psutil.Process().memory_maps(grouped=False) if "laconic-weights" in m.path
        )
        assert mapped.rss <= wires.SLOTS * slot
        assert max(faults[1:]) < sum(t.nbytes for _, t in weights) // 4096 // 16
    writer.close()
