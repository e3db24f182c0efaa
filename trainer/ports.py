"""Where the ranks meet: a port that stays free until rank 0 listens at it."""

from __future__ import annotations

import random
import socket

BELOW_EPHEMERAL = range(20000, 32768)
"""Ports that systems do not hand out to connections by themselves: a port asked of the system (0)
may be some connection's a second later, and rank 0 listens only after it has imported torch."""


def free_port() -> int:
    """A port of this machine that nobody listens at.

    Raises:
        OSError: all that were tried are taken.
    """
    for port in random.SystemRandom().sample(BELOW_EPHEMERAL, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError("no free port: 100 tried between 20000 and 32767")
