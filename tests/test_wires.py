"""Weights by TCP: damaged on the way, swallowed, or met by strangers at the learner's port.

What both ways to an engine have in common is in tests/test_ring.py.
"""

from __future__ import annotations

import pickle
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers import relay, ring, wires
from samplers.ring import SyncError, Writer, refuse
from tests.rings import MANY, Parameters, Proxy, beside, bits, read_all, same, send, writer_of

NAMES = ["engine 0", "engine 1 on 10.0.0.7"]


@contextmanager
def tcp(names: list[str] = NAMES, deadline: float = 60, **more: Any) -> Iterator[Writer]:
    writer = writer_of("tcp", names, 2**14, deadline, **more)
    try:
        yield writer
    finally:
        writer.close()


# Damage


FLIPPED = 200_000
"""Bytes from the learner before the one that is changed: in the middle of a bucket."""


def flip(before: int, data: bytes) -> bytes:
    at = FLIPPED - before
    if not 0 <= at < len(data):
        return data
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGED = (
    r"weight sync: engine 1 on 10\.0\.0\.7{}: bucket 13 \(layer\.12 to layer\.12\) is not what "
    r"the learner on 127\.0\.0\.1 sent: CRC-32 [0-9a-f]{{8}}, and there [0-9a-f]{{8}}; .*"
)


def test_a_flipped_bit_is_told_by_both_sides_with_engine_node_and_bucket() -> None:
    loaded: list[str] = []
    with tcp(checksum=True) as writer, Proxy(writer.source(1).away, flip) as proxy:
        near, far = writer.source(0, "tcp"), replace(writer.source(1, "tcp"), away=proxy.address)
        with (
            beside(read_all, near) as first,
            beside(read_named, far, loaded) as second,
            pytest.raises(SyncError) as told,
        ):
            send(writer, MANY, 2**14)
    assert told.match(DAMAGED.format(" failed"))
    assert isinstance(second[0], SyncError)
    assert re.search(DAMAGED.format(""), str(second[0]))
    assert loaded == [name for name, _ in MANY[:12]], "what is damaged is not loaded"
    assert str(told.value) == str(first[0]), "the other engine is told as well"


def test_without_a_checksum_a_flipped_bit_is_loaded() -> None:
    """So it is the checksum that finds it, and not the proxy that breaks something else."""
    with (
        tcp(["engine 0"]) as writer,
        Proxy(writer.source(0).away, flip) as proxy,
        beside(read_all, replace(writer.source(0, "tcp"), away=proxy.address)) as got,
    ):
        send(writer, MANY, 2**14)
    wrong = [name for name, bytes_ in differing(got[0], MANY) if bytes_ == 1]
    assert wrong == ["layer.12"]


def test_a_slot_that_changes_in_shared_memory_is_found() -> None:
    writer = Writer(["engine 0"], 2**14, 60, checksum=True)
    tell, number = writer._tell, iter(range(100))

    def spoiled(message: Any) -> None:
        if next(number) == 4:
            writer._slots[message[1][0], 77] ^= 64  # type: ignore[index]
        tell(message)

    writer._tell = spoiled  # type: ignore[method-assign]
    with (
        beside(read_all, writer.source(0)),
        pytest.raises(SyncError, match=r"engine 0 failed: bucket 5 \(layer.4 to layer.4\)"),
    ):
        send(writer, MANY, 2**14)
    writer.close()


def read_named(source: wires.Source, loaded: list[str]) -> None:
    with ring.read(source) as weights:
        loaded.extend(name for name, _ in weights)


def differing(a: Parameters, b: Parameters) -> list[tuple[str, int]]:
    out = []
    for (name, _, _, one), (_, _, _, other) in zip(bits(a), bits(b), strict=True):
        out.append((name, sum(x != y for x, y in zip(one, other, strict=True))))
    return out


# Silence


def swallow(before: int, data: bytes) -> bytes | None:
    return data if before < FLIPPED else None


def test_a_way_that_falls_silent_ends_by_both_deadlines() -> None:
    """As a pulled cable: nobody is told that anything is closed."""
    with tcp(deadline=1) as writer, Proxy(writer.source(1).away, swallow) as proxy:
        far = replace(writer.source(1, "tcp"), away=proxy.address)
        near = replace(writer.source(0, "tcp"), deadline=60)
        with (
            beside(read_all, near) as first,
            beside(read_all, far) as second,
            pytest.raises(SyncError, match=r"engine 1 on 10.0.0.7 did not load .* in 1 s"),
        ):
            send(writer, MANY, 2**14)
    assert "engine 1 on 10.0.0.7 did not load" in str(first[0])
    assert str(second[0]) == (
        "weight sync: the learner on 127.0.0.1 did not send all weights in 1 s"
    )


def test_a_line_that_the_system_gives_up_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a host that vanished looks like when the line was at rest: no answer to keep-alives."""
    heard = wires.heard

    def gone(far: socket.socket, until: float | None) -> Any:
        if until is None and lost.is_set():
            raise TimeoutError(110, "Connection timed out")
        return heard(far, until)

    lost = threading.Event()
    monkeypatch.setattr(relay.wires, "heard", gone)
    with tcp(["engine 3 on 10.0.0.7"]) as writer:
        lost.set()
        with (
            beside(refuse, writer.source(0), "never read"),
            pytest.raises(SyncError, match=r"engine 3 on 10\.0\.0\.7 is out of reach"),
        ):
            send(writer, MANY, 2**14)


STUCK = """
import time
from types import SimpleNamespace
from samplers import wires
from samplers.engines import _vllm_transfer

there = object()
worker = SimpleNamespace(weight_transfer_engine=there, start_weight_update=lambda: None)
source = wires.Source("nccl", "10.0.0.1:1", deadline=0.1, parameters=(("w", "float32", (1,)),))
worker.update_weights, worker.finish_weight_update = (lambda _: None), (lambda: None)
_vllm_transfer.receive(worker, source)
time.sleep(0.5)
print("one that ends in time lives on", flush=True)
worker.update_weights = lambda _: time.sleep(600)
_vllm_transfer.receive(worker, source)
"""


def test_a_worker_that_nccl_does_not_let_go_ends_itself() -> None:
    """An engine of which a thread still answers would be taken for one that lives."""
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout == "one that ends in time lives on\n"


def test_nobody_listens() -> None:
    with tcp(["engine 0"]) as writer:
        source = writer.source(0, "tcp")
    with pytest.raises(SyncError, match=rf"127.0.0.1 \(port {source.away[1]}\) is not there, or"):
        read_all(source)


# Strangers


def silent(far: socket.socket) -> None:
    far.recv(99)


def leaves(far: socket.socket) -> None:
    far.close()


def talks(far: socket.socket) -> None:
    far.sendall(b"GET / HTTP/1.1\r\nHost: laconic\r\n\r\n" * 9)


def pickles(far: socket.socket) -> None:
    far.recv(32)
    far.sendall(struct.pack("!I", 50) + pickle.dumps(Trap()))


class Trap:
    def __reduce__(self) -> Any:
        return sprung.append, ("unpickled",)


sprung: list[str] = []


def test_strangers_at_the_port_do_no_harm() -> None:
    """Whatever they say or do not say, a sync goes on beside them, and they get nothing of it."""
    with tcp() as writer:
        strangers = []
        for what in (silent, leaves, talks, pickles) * 3:
            stranger = socket.create_connection(writer.source(0).away, 10)
            strangers.append(stranger)
            threading.Thread(target=what, args=(stranger,), daemon=True).start()
        with pytest.raises((OSError, EOFError)):
            wires.reach(replace(writer.source(0), secret=b"a guess"), time.monotonic() + 60)
        with pytest.raises(SyncError, match=r"the learner on 127\.0\.0\.1 .* is not there"):
            read_all(replace(writer.source(0, "tcp"), secret=bytes(32)))
        with (
            beside(read_all, writer.source(0, "tcp")) as first,
            beside(read_all, writer.source(1, "tcp")) as second,
        ):
            send(writer, MANY, 2**14)
        assert all(same(one, MANY) for one in first + second)
    assert sprung == []
    for stranger in strangers:
        stranger.close()


def test_a_reader_checks_who_answers_at_the_port() -> None:
    """Somebody else who listens there gets no weights loaded into an engine."""
    with socket.create_server(("127.0.0.1", 0)) as listener, tcp(["engine 0"]) as writer:

        def pretend() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(bytes(32))
                wires.take(peer, 68, None)
                peer.sendall(bytes(32))

        with beside(pretend), pytest.raises(SyncError, match="does not know the sync's secret"):
            read_all(replace(writer.source(0, "tcp"), away=listener.getsockname()))


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_whatever_a_reader_says_is_an_error_that_names_it(said: bytes, framed: bool) -> None:
    """It knows the secret; even so nothing of what it says is run, or waited for."""
    with tcp(["engine 0"], deadline=600) as writer:

        def babble() -> None:
            with wires.reach(writer.source(0), time.monotonic() + 60) as far:
                far.sendall(wires.SIZE.pack(len(said)) + said if framed else said)

        with beside(babble), pytest.raises(SyncError, match="engine 0 "):
            send(writer, MANY, 2**14)


def test_the_secret_is_in_no_message() -> None:
    with tcp() as writer:
        source = writer.source(0, "tcp")
        assert len(source.secret) == 32
        assert "secret" not in repr(source)


def test_buckets_larger_than_any_buffer() -> None:
    """A reader that loads slowly holds the sender up, and no other reader."""
    big = [(f"w{i}", torch.randn(2**22)) for i in range(4)]  # 16 MiB each
    writer = Writer(["engine 0", "engine 1"], 2**24, 60, host="127.0.0.1", checksum=True)
    loaded = threading.Event()

    def late() -> Any:
        return read_all(writer.source(1, "tcp"), lambda: loaded.wait(60))

    def early() -> Any:
        out = []
        for pair in read_two(writer):
            out.append(pair)
            if len(out) == 2:  # as many as there are slots
                loaded.set()
        return out

    with beside(late) as second, beside(early) as first:
        send(writer, big, 2**24)
    writer.close()
    assert same(first[0], big)
    assert same(second[0], big)


def read_two(writer: Writer) -> Iterator[tuple[str, torch.Tensor]]:
    with ring.read(writer.source(0, "tcp")) as weights:
        for name, tensor in weights:
            yield name, tensor.clone()
