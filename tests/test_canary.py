"""Risk: a key in the environment is written down somewhere; a port of a run is open to others."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from trainer import report

CANARIES = {
    "WANDB_API_KEY": "c0ffee" * 6 + "abcd",
    "HF_TOKEN": "hf_CanaryCanaryCanaryCanary1",
    "OPENAI_API_KEY": "sk-canary-canary-canary-2",
    "JUDGE_KEY": "judge-canary-canary-3",
}
SMALL = (
    "prompts_per_step=2", "rollouts_per_prompt=4", "rollout.max_tokens=64", "evaluation=null",
    "tokens_per_micro_batch=512", "tracking.wandb=offline", "steps=5", "deterministic=false",
    "learner.ranks=2", "checkpoint.every=1",
    "optim.lr=1e30", "guard.bad_steps=1", "updates_per_batch=2",
)  # fmt: skip


class Judge(BaseHTTPRequestHandler):
    """Refuses every third request, and repeats what it was sent."""

    asked: ClassVar[list[str | None]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(self.headers["Authorization"])
        good = len(self.asked) % 3
        text = "CORRECT" if good == 1 else "INCORRECT"
        told = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
        body = json.dumps(told if good else {"error": self.headers["Authorization"]}).encode()
        self.send_response(200 if good else 400, str(self.headers["Authorization"]))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def judge() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def leaks(folder: Path) -> list[str]:
    """Files below, and names of them, that hold a canary."""
    found = []
    paths = (Path(top, name) for top, _, names in os.walk(folder) for name in names)
    for path in paths:
        try:
            data = path.read_bytes() if path.is_file() else b""
        except OSError:  # gone meanwhile
            continue
        for name, value in CANARIES.items():
            if value.encode() in data or value in str(path):
                found.append(f"{path}: {name}")
    return found


def open_ports(run: psutil.Process) -> set[str]:
    """Addresses beyond this machine at which the run listens."""
    found = set()
    for process in [run, *run.children(recursive=True)]:
        try:
            for one in process.net_connections("inet"):
                if one.status == psutil.CONN_LISTEN:
                    at = ipaddress.ip_address(one.laddr.ip)
                    at = getattr(at, "ipv4_mapped", None) or at
                    if not at.is_loopback:
                        found.add(f"{process.name()} at {at}")
        except psutil.Error:
            continue
    return found


def watched(output: Path, temporary: Path, *settings: str) -> tuple[int, str, list[str], set[str]]:
    """Exit code, all output, what leaked into Ray's and W&B's temporary files, open ports."""
    run = psutil.Popen(
        [sys.executable, "-m", "launch.cli", "train", "grpo/find", f"output={output}", *SMALL,
         *settings],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | CANARIES | {"TMPDIR": str(temporary)},
    )  # fmt: skip
    said: list[str] = []
    reading = threading.Thread(target=lambda: said.extend(run.stdout))
    reading.start()
    ports: set[str] = set()
    leaked: list[str] = []
    listening = False
    while run.poll() is None:
        ports |= open_ports(run)
        leaked += leaks(temporary)
        listening |= any(temporary.glob("laconic-ray-*"))
        time.sleep(1)  # reading all of it is work
    reading.join()
    assert listening, f"Ray's files were not looked at: {''.join(said)}"
    return run.returncode, "".join(said), leaked, ports


@pytest.mark.slow
def test_no_key_is_written_down_and_no_port_is_open(tmp_path: Path, short: Path) -> None:
    """By a run that makes a step and a checkpoint, and then fails."""
    with judge() as url:
        asks = f"verifier={{name: judge, url: '{url}', model: j, api_key_env: JUDGE_KEY}}"
        code, said, leaked, ports = watched(tmp_path, short, asks)
    assert code == 1, said
    assert set(Judge.asked) == {f"Bearer {CANARIES['JUDGE_KEY']}"}, "the key is used"
    assert not ports
    assert not leaked
    run = tmp_path / "grpo-find-seed0"
    assert (run / "checkpoints" / "step-000001" / "COMPLETE").exists()
    assert "HTTP 400" in "".join(p.read_text() for p in (run / "rollouts").glob("*.jsonl"))
    report.write([run], run / "report.html")
    (tmp_path / "said").write_text(said)
    assert not leaks(tmp_path)
