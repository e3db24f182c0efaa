"""Ray's head: where it is gone for good, Ray ends every process that it can reach no more, with
a line of its own. A run looks after it, ends a moment before that, and says how to go on."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

EVERY_S = 1.0
SHARE = 0.7
"""Of the time that Ray waits for a head to come back: then it will not."""
RAYS = "RAY_gcs_rpc_server_reconnect_timeout_s"
RAYS_S = 60.0
"""Ray's own patience, unless that variable says otherwise."""


@contextlib.contextmanager
def watched(line: Callable[[], str]) -> Iterator[None]:
    """While Ray is needed: without its head the process ends at once with this line, exit code 1,
    and everything that it has started with it."""
    import ray

    host, port = ray.get_runtime_context().gcs_address.rsplit(":", 1)
    patience = SHARE * float(os.environ.get(RAYS, RAYS_S))
    done = threading.Event()

    def watch() -> None:
        missed = 0.0  # counted, and not read off a clock: this process may itself have been stopped
        while not done.wait(EVERY_S):
            began = time.monotonic()
            if answers(host, int(port)):
                missed = 0.0
            else:
                missed += EVERY_S + min(EVERY_S, time.monotonic() - began)
            if missed > patience and not done.is_set():
                _end(f"laconic: Ray's head at {host}:{port} is gone; {line()}")

    watching = threading.Thread(target=watch, name="head", daemon=True)
    watching.start()
    try:
        yield
    finally:
        done.set()


def answers(host: str, port: int) -> bool:
    """Whether anybody listens there."""
    try:
        socket.create_connection((host.strip("[]"), port), EVERY_S).close()
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)  # that is this process's trouble
    return True


def _end(text: str) -> None:
    from launch import cluster

    with contextlib.suppress(Exception):
        cluster.abandon()
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
    os._exit(1)
