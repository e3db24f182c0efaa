"""Joining a Ray that somebody else runs. Who it is is asked first: Ray itself waits for minutes.

What a driver makes there (actors, placement groups) ends with it, also when it is killed: none of
it is detached. It starts nothing and ends nothing else.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterator
from typing import IO

CONNECT_S = 5.0
"""For an answer of a port that is open; 0.1 s is usual across a data centre."""
RETRIES = 3
"""How often Ray asks one that refuses it, a second apart; 20 by default."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""What a client says first in gRPC, which is what Ray speaks; the server answers with a frame."""
SETTINGS_FRAME = b"\4"
PORT = 6379
TOKEN = "export RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the head's token"
"""The fix where a cluster wants one; `ray get-auth-token` prints it there."""


def reach(address: str) -> str:
    """HOST:PORT of the head at `address`, which may be auto; it answers.

    Raises:
        ValueError: nothing there, or no Ray.
    """
    place = found() if address == "auto" else address
    answers(place)
    return place


def join(address: str) -> None:
    """Become a driver of the Ray at `address`: HOST:PORT, or auto.

    Raises:
        ValueError: nothing there, no Ray, none of this machine's, or one of another version.
    """
    place = reach(address)
    import ray
    from ray._private import ray_constants

    ray_constants.NUM_REDIS_GET_RETRIES = RETRIES
    with tempfile.TemporaryFile() as said:
        try:
            with _aside(said):
                ray.init(address=place, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # of many classes: RuntimeError, ConnectionError, Exception
            with contextlib.suppress(Exception):
                ray.shutdown()
            said.seek(0)
            raise ValueError(_why(place, error, said.read().decode(errors="replace"))) from error


@contextlib.contextmanager
def _aside(file: IO[bytes]) -> Iterator[None]:
    """What Ray's C++ writes to standard error, a line a try, goes into `file`."""
    sys.stderr.flush()
    before = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def found() -> str:
    """The cluster that this machine is a node of.

    Raises:
        ValueError: there is none, or nobody says which.
    """
    from ray._private import services

    if named := os.environ.get("RAY_ADDRESS"):
        return named
    if last := services.find_bootstrap_address(None):  # as `ray start` noted it
        return str(last)
    # those on loopback are private to a run like this one
    running = sorted(a for a in services.find_gcs_addresses() if not a.startswith("127."))
    if len(running) == 1:
        return str(running[0])
    what = f"several Rays run here ({', '.join(running)})" if running else "no Ray runs here"
    raise ValueError(
        f"--address auto: {what} and RAY_ADDRESS is not set; write --address HOST:{PORT} of the "
        "head, or leave --address out to start a Ray for this run alone"
    )


def answers(address: str) -> None:
    """Return where a Ray's head answers at HOST:PORT.

    Raises:
        ValueError: nothing listens there, or something else does.
    """
    host, port = split(address)
    try:
        with socket.create_connection((host, port), timeout=CONNECT_S) as connection:
            connection.sendall(PREFACE)
            heard = connection.recv(9)
    except TimeoutError:
        raise ValueError(f"--address {address}: no answer within {CONNECT_S:g} s") from None
    except OSError as error:
        raise ValueError(
            f"--address {address}: nothing listens there ({error.strerror or error}); is the head "
            f"up, and is this its port (`ray start --head --port={PORT}`)?"
        ) from None
    if heard[3:4] != SETTINGS_FRAME:
        raise ValueError(
            f"--address {address}: what listens there is no Ray head; write the head's port, "
            f"usually {PORT} (its dashboard's is for `laconic launch --on ray`)"
        )


def split(address: str) -> tuple[str, int]:
    """Host and port.

    Raises:
        ValueError: it is no such address.
    """
    host, _, port = address.rpartition(":")
    if "://" not in address and host and port.isdigit() and 0 < int(port) < 65536:
        return host.strip("[]"), int(port)
    if address.startswith("ray://"):
        why = "Ray's client cannot drive a run; log in to a node of the cluster, or launch --on ray"
    elif "://" in address:
        why = "that is for `laconic launch --on ray`"
    else:
        why = "it is none"
    address = address or "''"  # a shell's variable that is not set
    raise ValueError(f"--address {address}: {why}; write HOST:{PORT} of the head, or auto")


def _why(address: str, error: Exception, said: str) -> str:
    """In one line; `said`: what Ray wrote meanwhile."""
    text = " ".join(str(error).split())
    where = f"--address {address}: "
    if text.startswith("Version mismatch"):
        there, _, here = text.partition("This process on")
        return (
            f"{where}the cluster has {_versions(there)} and this process {_versions(here)}; both "
            "have to be the same: start the cluster with this environment, or run in its"
        )
    if "InvalidAuthToken" in said and os.environ.get("RAY_AUTH_MODE") != "token":
        return f"{where}Ray lets nobody in without its token; {TOKEN}"
    if "InvalidAuthToken" in said:
        return f"{where}this process has another token than the head (ray get-auth-token); {TOKEN}"
    if isinstance(error, ConnectionError):
        return f"{where}what answers there is no Ray that {_here()} can talk to"
    if "node" in text and ("raylet" in text or "ip_address" in text):
        return (
            f"{where}this machine is no node of that cluster; use laconic launch --on ray, or make "
            f"it one: ray start --address={address}"
        )
    return f"{where}{type(error).__name__}: {text[:300]}"


def _versions(text: str) -> str:
    """'... Ray: 2.60.0 Python: 3.11.7' as 'Ray 2.60.0 on Python 3.11.7'."""
    found = re.search(r"Ray: (\S+) Python: (\S+)", text)
    return f"Ray {found[1]} on Python {found[2]}" if found else text


def _here() -> str:
    import ray

    return f"Ray {ray.__version__}"
