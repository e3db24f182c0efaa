"""Run a function on several ranks, each in a process of its own, with a deadline."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any


def _child(pipe: Any, function: Callable[..., Any], rank: int, port: int, args: Any) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    import torch

    torch.set_num_threads(1)
    try:
        pipe.send((True, function(rank, port, *args)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))


def on_ranks(ranks: int, function: Callable[..., Any], *args: Any, deadline: float = 120) -> list:
    """`function(rank, port, *args)` on `ranks` processes; what each returned, in rank order.

    `function` is at the top level of its module; it and its results are pickled. The first
    traceback of any rank is raised here, at once, and no process is left behind.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for rank in range(ranks):
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(send, function, rank, port, args))
        process.start()
        send.close()
        pipes.append(receive)
        processes.append(process)
    results: dict[int, Any] = {}
    try:
        while len(results) < ranks:
            waiting = {pipes[rank]: rank for rank in range(ranks) if rank not in results}
            ready = multiprocessing.connection.wait(list(waiting), timeout=deadline)
            assert ready, f"no answer within {deadline} s from ranks {sorted(waiting.values())}"
            for pipe in ready:
                fine, value = pipe.recv()
                assert fine, f"rank {waiting[pipe]}:\n{value}"
                results[waiting[pipe]] = value
    finally:
        for process in processes:
            process.join(timeout=10 if len(results) == ranks else 0)
            process.kill()
            process.join()
    return [results[rank] for rank in range(ranks)]
