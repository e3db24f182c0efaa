"""JSON over HTTP to one server: bounded retries, and mistakes told in the server's own words."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from typing import Any
from urllib.parse import urlsplit

AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Answers after which the same request may succeed."""
FIXES = {
    "reasoning_config is not configured": (
        "start it with --reasoning-parser and --reasoning-config (laconic serve does)"
    ),
    "max_model_len": "lower max_tokens, or start it with a larger --max-model-len",
    "maximum context length": "lower max_tokens, or start it with a larger --max-model-len",
    "does not exist": "give the name that it serves (GET /v1/models)",
}
"""What a server says, and what helps."""


def loopback(url: str) -> bool:
    """Whether the address is this machine's own."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


class Wire:
    """One server. Thread-safe: requests run on a loop of its own, in a thread beside.

    Args:
        base_url: `http://127.0.0.1:8000/v1`; the `/v1` may be left out.
        key: sent as a bearer token; None: the variable OPENAI_API_KEY, if there is one, and never
            in clear text to another machine.
        timeout: seconds that one request may take.
        retries: times that a request is sent again after a timeout, a broken connection or an
            answer of `AGAIN`.
        connections: requests that the server has at once; others wait here.

    Raises:
        ValueError: no address.
    """

    def __init__(
        self,
        base_url: str,
        key: str | None = None,
        timeout: float = 600.0,
        retries: int = 3,
        connections: int = 64,
    ) -> None:
        import httpx

        if "@" in base_url.rpartition("://")[2].partition("/")[0]:
            raise ValueError(
                "base_url: holds a user or password, which errors would show; write it without, "
                "and a key into the environment variable OPENAI_API_KEY"
            )
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url: '{base_url}' is no address; write http://127.0.0.1:8000")
        self.url = base_url.rstrip("/").removesuffix("/v1")
        self.retries, self.retried, self.connections = retries, 0, connections
        here = loopback(self.url)
        if key is None and (here or self.url.startswith("https://")):
            key = os.environ.get("OPENAI_API_KEY")
        self._key = key
        self._http = httpx.AsyncClient(
            base_url=self.url,
            timeout=httpx.Timeout(timeout, connect=10.0, pool=None),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            # Servers close what was idle for 5 s, perhaps just when it is used again.
            limits=httpx.Limits(max_connections=connections, keepalive_expiry=2.0),
            trust_env=not here,  # a proxy knows nothing of this machine's loopback
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Begin `work` on the loop. To cancel the future closes its connections, upon which an
        engine ends what it was making."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def get(self, path: str) -> dict[str, Any]:
        return dict(self.run(self.send("GET", path)).result())

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """`send` and wait."""
        return dict(self.run(self.send("POST", path, body)).result())

    async def send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The server's answer.

        Raises:
            ValueError: it refuses the request, cannot be reached, or fails `retries` + 1 times.
        """
        import httpx

        said = ""
        for attempt in range(self.retries + 1):
            if attempt:
                self.retried += 1
                await asyncio.sleep(min(0.25 * 2**attempt, 8.0))
            try:
                reply = await self._http.request(method, path, json=body)
                if reply.status_code < 400:
                    return dict(reply.json())
            except httpx.ConnectError:
                said = "nobody answers; start one with laconic serve MODEL"
                continue
            except (httpx.TransportError, json.JSONDecodeError) as error:
                said = f"{type(error).__name__} {error}".strip()
                continue
            said = f"{reply.status_code}: {words(reply.text)}"
            if self._key:  # some servers repeat what they were sent
                said = said.replace(self._key, "***")
            if reply.status_code not in AGAIN:
                raise ValueError(f"server {self.url} refuses{_at(body)}: {said}{_fix(said)}")
        times = f" ({self.retries + 1} times)" if self.retries else ""
        raise ValueError(f"server {self.url}{times}: {said}")

    def close(self) -> None:
        """Break off what is under way, and leave no thread behind."""
        if self._thread.is_alive():
            self.run(self._ends()).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()

    async def _ends(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._http.aclose()


def words(text: str) -> str:
    """What an error body says, in one line."""
    try:
        found = json.loads(text)
        found = found.get("error", found)
        text = str(found.get("message", found) if isinstance(found, dict) else found)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:400]


def _at(body: Mapping[str, Any] | None) -> str:
    budget = None if body is None else body.get("thinking_token_budget")
    return "" if budget is None else f" (thinking_token_budget={budget})"


def _fix(said: str) -> str:
    return next((f"; {fix}" for words, fix in FIXES.items() if words in said), "")
