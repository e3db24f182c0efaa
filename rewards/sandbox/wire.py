"""Messages between host and guest: a line of JSON, then as many bytes as it says."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

_LENGTHS = struct.Struct("!IQ")


def send(to: socket.socket, head: dict[str, Any], body: bytes = b"") -> None:
    """Raises OSError if the other end is gone."""
    line = json.dumps(head).encode()
    to.sendall(_LENGTHS.pack(len(line), len(body)) + line + body)


def receive(of: socket.socket) -> tuple[dict[str, Any], bytes]:
    """The next message.

    Raises:
        EOFError: the other end is closed.
        OSError: it is gone, or (TimeoutError) silent for as long as the socket's timeout.
    """
    line, body = _LENGTHS.unpack(_exactly(of, _LENGTHS.size))
    return json.loads(_exactly(of, line)), _exactly(of, body)


def _exactly(of: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = of.recv(min(size, 1 << 20))
        if not part:
            raise EOFError("the other end is closed")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
