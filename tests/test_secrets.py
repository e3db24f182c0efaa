"""Risk: a key that somebody wrote into a recipe is repeated in config.yaml, an error, W&B."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from samplers.served.wire import Wire
from trainer import config, secrets

FOUND: list[tuple[str, Any]] = [
    ("verifier.api_key", "x"),
    ("verifier.apiKey", "x"),
    ("verifier.headers.Authorization", "Basic eHl6"),
    ("verifier.headers.X-Api-Key", "x"),
    ("shaping.0.password", "x"),
    ("client_secret", "x"),
    ("tracking.key", "0123456789abcdef0123456789abcdef01234567"),
    ("model.token", "abcdefghijkl1"),
    ("verifier.url", "https://me:pass@judge/v1"),
    ("verifier.url", "https://:pass@judge/v1"),
    ("data.path", "https://host/x.parquet?token=abcdefgh"),
    ("model.path", "sk-abcdefghijklmnopqrst"),
    ("data.columns.0", "hf_abcdefghijklmnopqrstuv"),
    ("name", "AKIAABCDEFGHIJKLMNOP"),
    ("system_prompt", "Bearer abcdefgh"),
]
FINE: list[tuple[str, Any]] = [
    ("verifier.api_key_env", "JUDGE_KEY"),
    ("tokens_per_micro_batch", 4096),
    ("tokens_per_micro_batch", "4096"),
    ("rollout.max_tokens", 96),
    ("data.answer_key", "solution"),
    ("thinking.end_token", "</think>"),
    ("verifier.url", "http://judge:8000/v1"),
    ("verifier.url", "http://me@judge:8000/v1"),
    ("model.path", "sk-learn/model"),
    ("system_prompt", "Say the password: swordfish? No: think, then answer; key points 1, 2, 3."),
    ("verifier.api_key", ""),
    ("verifier.api_key", None),
]


def tree(path: str, value: Any) -> Any:
    head, _, rest = path.partition(".")
    inner = tree(rest, value) if rest else value
    return [inner] if head.isdigit() else {head: inner}


@pytest.mark.parametrize(("path", "value"), FOUND)
def test_a_secret_is_refused_and_not_repeated(path: str, value: str) -> None:
    with pytest.raises(ValueError, match="environment variable") as caught:
        secrets.check(tree(path, value))
    assert str(caught.value).startswith(f"{path}: ")
    if len(value) > 1:
        assert value not in str(caught.value)


@pytest.mark.parametrize(("path", "value"), FINE)
def test_what_is_none_is_not(path: str, value: Any) -> None:
    secrets.check(tree(path, value))


def test_the_value_of_a_secret_variable_is_known_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_OWN_TOKEN", "correct-horse-7")
    with pytest.raises(ValueError, match=r"^note: "):
        secrets.check({"note": "as correct-horse-7 says"})
    monkeypatch.setenv("MY_OWN_TOKEN", "find")
    secrets.check({"note": "find"})


def test_recipes_are_looked_at_before_anything_else_says_a_word(tmp_path: Path) -> None:
    """A mistake beside it, or in the very field, would be told with its value."""
    settings = ("verifier={name: exact, api_key: canary}", "steps=none", f"output={tmp_path}/out")
    with pytest.raises(ValueError, match=r"^verifier\.api_key: holds a secret") as caught:
        config.load("grpo/find", settings)
    assert "canary" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_server_of_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password in its address is not repeated, nor a key by a server that does."""
    with pytest.raises(ValueError, match=r"^base_url: holds a user or password") as caught:
        Wire("http://me:canary@127.0.0.1:1")
    assert "canary" not in str(caught.value)

    class Echo(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"error": self.headers["Authorization"]}).encode()
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("OPENAI_API_KEY", "canary")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    wire = Wire(f"http://127.0.0.1:{server.server_port}")
    try:
        with pytest.raises(ValueError, match=r"401: Bearer \*\*\*"):
            wire.get("/v1/models")
    finally:
        wire.close()
        server.shutdown()
        server.server_close()
