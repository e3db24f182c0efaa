"""A Ray for one run: started, watched over and swept away again."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator

STORE_BYTES = 512 * 2**20
"""Shared memory that rollouts travel in; weights have their own (samplers/ring.py)."""


@contextlib.contextmanager
def cluster(cpus: int, address: str | None = None) -> Iterator[None]:
    """A Ray of our own on this machine, quiet and on loopback, or the one at `address`.

    `cpus` are Ray's logical CPUs: on a CPU machine the plan sets them, because a placement
    group that asks for more than Ray counts would wait for ever and say nothing."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():  # a notebook's own
        yield
        return
    folder = tempfile.mkdtemp(prefix="laconic-")
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        else:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                _temp_dir=folder,
                _node_ip_address="127.0.0.1",
                object_store_memory=STORE_BYTES,
            )
        yield
    finally:
        ray.shutdown()
        for _ in range(20):  # its processes write their last lines while they leave
            shutil.rmtree(folder, ignore_errors=True)
            if not os.path.exists(folder):
                break
            time.sleep(0.1)
