"""Ray's job API when it fails, or falls silent: one line, and nobody waits for ever."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray

from launch import jobs
from launch.cli import main

FAR = "Traceback (most recent call last):\n  File ...\nException: the agent is gone."
WEBSOCKET = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


@dataclass
class Head:
    """Answers of a dashboard by their path: a status and what comes with it; None: never one."""

    answers: dict[str, tuple[int, Any] | None]
    says: Callable[[], None] = lambda: None
    """Called once its tail is open, which prints a line and then is silent."""
    over: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)
    address: str = ""


class Handler(http.server.BaseHTTPRequestHandler):
    head: Head

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.head.asked.append(self.path)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = self.head.answers.get(self.path.partition("?")[0], (500, FAR))
        if found is None:
            self.head.over.wait()
        elif found[0] == 101:
            self._tail(found[1].encode())
        else:
            self.send_response(found[0])
            self.end_headers()
            text = found[1] if isinstance(found[1], str) else json.dumps(found[1])
            self.wfile.write(text.encode())

    do_POST = do_PUT = do_GET

    def _tail(self, text: bytes) -> None:
        key = self.headers["Sec-WebSocket-Key"].encode() + WEBSOCKET
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header(
            "Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key).digest()).decode()
        )
        self.end_headers()
        self.wfile.write(bytes([0x81, len(text)]) + text)
        self.head.says()
        self.head.over.wait()


def details(status: str) -> dict[str, Any]:
    return {"type": "SUBMISSION", "submission_id": "job", "status": status, "entrypoint": "laconic",
            "start_time": 1_000, "end_time": 61_000}  # fmt: skip


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    for name, seconds in (("ANSWER_S", 0.2), ("QUIET_S", 0.1), ("LOST_S", 0.5), ("POLL_S", 0.01)):
        monkeypatch.setattr(jobs, name, seconds)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    one = Head({"/api/version": (200, {"ray_version": ray.__version__, "version": "4"})})
    handler = type("Mine", (Handler,), {"head": one, "protocol_version": "HTTP/1.0"})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        one.address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", one.address)
        yield one
        one.over.set()
        server.shutdown()


@pytest.mark.parametrize(
    ("words", "works", "what"),
    [
        ("status job", "", "job cannot be looked at"),
        ("logs job", "/api/jobs/job", "the log of job cannot be read"),
        ("stop job", "/api/jobs/job", "job cannot be stopped"),
        ("launch grpo/find --on ray output=/runs", "", "its nodes cannot be listed"),
    ],
)
def test_what_ray_refuses_is_one_line(
    words: str, works: str, what: str, head: Head, capsys: pytest.CaptureFixture[str]
) -> None:
    head.answers[works] = (200, details("RUNNING"))
    assert main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"laconic: {head.address}: {what}: ")


def test_a_list_of_jobs_that_fails(
    head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    site = tmp_path / "site.yaml"
    site.write_text("grows: true")
    assert main(["launch", "grpo/find", "--on", "ray", "--site", str(site), "output=/runs"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line == f"laconic: {head.address}: its jobs cannot be listed: Exception: the agent is gone"
    )


def test_a_head_that_vanishes_between_two_questions(
    head: Head, capsys: pytest.CaptureFixture[str]
) -> None:
    head.answers["/api/jobs/job"] = None
    assert main(["status", "job"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{head.address}: job cannot be looked at: " in line
    assert "timed out" in line


def test_a_status_is_told_without_its_log(head: Head, capsys: pytest.CaptureFixture[str]) -> None:
    head.answers["/api/jobs/job"] = (200, details("RUNNING"))
    assert main(["status", "job"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("job: RUNNING, since 1970-01-01 00:00 UTC (1.0 min)")
    assert second.endswith("the log of job cannot be read: Exception: the agent is gone")


def test_a_log_that_breaks_off_while_it_is_followed(
    head: Head, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> dict[str, Any]:
        tails = sum(path.endswith("/tail") for path in head.asked)
        return details("RUNNING" if tails < 2 else "FAILED")

    head.answers = Changing(head.answers, broken)
    assert main(["logs", "job", "--follow"]) == 1
    told, ended = capsys.readouterr().err.splitlines()
    assert told.startswith(f"laconic: {head.address}: the log broke off: 500")
    assert ended.startswith("laconic: job has ended: FAILED")


class Changing(dict[str, Any]):
    """Answers, of which that about the job is asked of `job` every time."""

    def __init__(self, answers: dict[str, Any], job: Callable[[], dict[str, Any]]) -> None:
        super().__init__(answers)
        self.job = job

    def get(self, path: str, default: Any = None) -> Any:
        return (200, self.job()) if path == "/api/jobs/job" else super().get(path, default)


def test_a_head_that_freezes_is_not_followed_for_ever(
    head: Head, capsys: pytest.CaptureFixture[str]
) -> None:
    head.answers["/api/jobs/job"] = (200, details("RUNNING"))
    head.answers["/api/jobs/job/logs/tail"] = (101, "step 1\n")
    head.says = lambda: head.answers.update({"/api/jobs/job": None})
    assert main(["logs", "job", "--follow"]) == 1
    said = capsys.readouterr()
    assert said.out == "step 1\n"
    assert f"{head.address} has not answered for" in said.err
    assert "job may go on" in said.err


def test_a_job_that_ends_while_its_log_hangs(
    head: Head, capsys: pytest.CaptureFixture[str]
) -> None:
    head.answers["/api/jobs/job"] = (200, details("RUNNING"))
    head.answers["/api/jobs/job/logs/tail"] = (101, "step 1\n")
    ended = (200, details("SUCCEEDED"))
    head.says = lambda: head.answers.update({"/api/jobs/job": ended})
    assert main(["logs", "job", "--follow"]) == 0
    assert capsys.readouterr().out == "step 1\n"


def test_nobody_reads_what_is_followed(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """`laconic logs job --follow | head`"""
    head.answers["/api/jobs/job"] = (200, details("RUNNING"))
    head.answers["/api/jobs/job/logs/tail"] = (101, "step 1\n")

    def closed(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(jobs, "print", closed, raising=False)
    with pytest.raises(BrokenPipeError):
        jobs.follow(jobs.connect(head.address), head.address, "job")
