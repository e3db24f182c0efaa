"""Run functions on several ranks, each in a process of its own, with a deadline.

Importing torch, transformers and DeepSpeed takes a process several seconds, so the processes are
kept and lent again, as a whole: DeepSpeed counts its modules, alike on every rank of a group.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

_kept: dict[int, list[tuple[Any, Connection]]] = {}
"""By number of ranks."""


def _serve(pipe: Connection, rank: int, ranks: int, port: int | None) -> None:
    """Answer (function, arguments) with (fine, result or traceback), for ever."""
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    import torch

    torch.set_num_threads(1)
    if port is not None:
        from trainer import zero

        zero.connect(rank, ranks, 0, "127.0.0.1", port, timeout=60)
    while True:
        function, args = pipe.recv()
        try:
            pipe.send((True, function(*args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


def _start(ranks: int, grouped: bool) -> list[tuple[Any, Connection]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1] if grouped else None
    context = multiprocessing.get_context("spawn")
    workers = []
    for rank in range(ranks):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, rank, ranks, port), daemon=True)
        process.start()
        theirs.close()
        workers.append((process, ours))
    return workers


def on_ranks(
    ranks: int,
    function: Callable[..., Any],
    *args: Any,
    deadline: float = 120,
    fresh: bool = False,
) -> list[Any]:
    """`function(rank, *args)` on `ranks` processes; what each returned, in rank order.

    `function` is at the top level of its module; it and its results are pickled. The ranks are in
    one process group, except in `fresh` processes, which are not kept either. The first traceback
    of any rank is raised here at once; then, and after the deadline, the processes are killed.
    """
    workers = (None if fresh else _kept.pop(ranks, None)) or _start(ranks, grouped=not fresh)
    results: dict[int, Any] = {}
    try:
        for rank, (_, pipe) in enumerate(workers):
            pipe.send((function, (rank, *args)))
        while len(results) < ranks:
            waiting = {workers[rank][1]: rank for rank in range(ranks) if rank not in results}
            ready = wait(list(waiting), timeout=deadline)
            assert ready, f"no answer within {deadline} s from ranks {sorted(waiting.values())}"
            for pipe in ready:
                fine, value = pipe.recv()  # type: ignore[union-attr]
                assert fine, f"rank {waiting[pipe]}:\n{value}"  # type: ignore[index]
                results[waiting[pipe]] = value  # type: ignore[index]
        if not fresh:
            _kept[ranks] = workers
    finally:
        if len(results) < ranks or fresh:
            for process, _ in workers:
                process.kill()
                process.join()
    return [results[rank] for rank in range(ranks)]
