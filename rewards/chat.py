"""Questions to a chat-completions server: retried, bounded in time, recorded and remembered."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

MAX_REPLY = 1 << 20
"""Bytes of a reply's body that are read."""
LONGEST_WAIT = 30.0
"""Seconds: no pause between two tries is longer, whatever the server asks for."""
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""HTTP statuses after which another try may succeed."""
Messages = Sequence[Mapping[str, str]]


class ChatError(Exception):
    """No reply that can be used; `late`: because of time."""

    def __init__(self, message: str, late: bool = False, passing: bool = False, pause: float = 0.0):
        super().__init__(message)
        self.late, self.passing, self.pause = late, passing, pause


class _Stay(urllib.request.HTTPRedirectHandler):
    """No redirects: the key would go along."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class Record:
    """Prompts and replies in a JSONL file that several processes append to.

    A torn or strange line is passed over. Lines that others add are seen at the next look.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path).expanduser()
        self._replies: dict[str, str] = {}
        self._read = 0
        self._lock = threading.Lock()

    def find(self, key: str) -> str | None:
        """The reply to the question of that key, if there is one."""
        with self._lock:
            if key not in self._replies:
                self._look()
            return self._replies.get(key)

    def _look(self) -> None:
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # still being written
                self._read += len(line)
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    row = json.loads(line)
                    if row["usable"] is True:
                        self._replies[str(row["key"])] = str(row["reply"])

    def add(self, row: Mapping[str, Any]) -> None:
        """One whole line in one write, begun on a line of its own."""
        import fcntl

        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = file.seek(0, os.SEEK_END)
            torn = False
            if end:
                file.seek(end - 1)
                torn = file.read(1) != b"\n"
            file.write(b"\n" * torn + json.dumps(row).encode() + b"\n")


class Chat:
    """One model behind one URL.

    Raises:
        ValueError: the URL is none, or the environment variable of the key is not set.
    """

    def __init__(
        self,
        url: str,
        model: str,
        api_key_env: str = "",
        timeout: float = 30.0,
        retries: int = 3,
        backoff: float = 1.0,
        record: Record | None = None,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url: got '{url}'; write http://host:port/v1")
        path = parts.path.rstrip("/")
        if not path.endswith("/chat/completions"):
            path += "/chat/completions"
        self.url = urllib.parse.urlunsplit(parts._replace(path=path))
        self.model, self.timeout, self.record = model, timeout, record
        self.pauses = [min(LONGEST_WAIT, backoff * 2**i) for i in range(retries)]
        self._headers, self._key = {"Content-Type": "application/json"}, b""
        if api_key_env:
            if not os.environ.get(api_key_env):
                raise ValueError(
                    f"api_key_env: the environment variable {api_key_env} is not set; export it "
                    "where graders run"
                )
            self._key = os.environ[api_key_env].encode()
            self._headers["Authorization"] = f"Bearer {os.environ[api_key_env]}"
        self._opener = urllib.request.build_opener(_Stay)

    @property
    def longest(self) -> float:
        """Seconds after which no try is begun or waited for."""
        return self.timeout * (1 + len(self.pauses)) + sum(self.pauses)

    def ask(
        self, messages: Messages, max_tokens: int, usable: Callable[[str], object | None]
    ) -> str:
        """The reply, if `usable` makes something of it (not None).

        Raises:
            ChatError: it does not, or there is none.
        """
        body = {"model": self.model, "messages": list(messages), "temperature": 0}
        body["max_tokens"] = max_tokens
        key = hashlib.blake2b(json.dumps([self.url, body]).encode(), digest_size=16).hexdigest()
        known = None if self.record is None else self.record.find(key)
        if known is not None and usable(known) is not None:
            return known
        start = time.monotonic()
        reply = self._tries(json.dumps(body).encode(), start + self.longest)
        good = usable(reply) is not None
        if self.record is not None:
            row = {"key": key, "model": self.model, "messages": list(messages), "reply": reply}
            self.record.add(row | {"usable": good, "seconds": round(time.monotonic() - start, 3)})
        if not good:
            raise ChatError(f"the reply says neither: {reply[-200:]!r}")
        return reply

    def _tries(self, body: bytes, end: float) -> str:
        for pause in [*self.pauses, None]:
            try:
                return _content(self._once(body))
            except ChatError as problem:
                if pause is None or not problem.passing:
                    raise
                wait = max(pause, min(LONGEST_WAIT, problem.pause))
                if time.monotonic() + wait >= end:
                    raise
                time.sleep(wait)
        raise AssertionError

    def _once(self, body: bytes) -> bytes:
        """The body of one reply, within the time-out."""
        late = time.monotonic() + self.timeout
        request = urllib.request.Request(self.url, body, self._headers)
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                out = b""
                while part := response.read1(1 << 16):
                    out += part
                    if len(out) > MAX_REPLY:
                        raise ChatError(f"the reply is longer than {MAX_REPLY} bytes")
                    if time.monotonic() > late:
                        raise TimeoutError
                return self._hidden(out)
        except urllib.error.HTTPError as error:
            raise self._refused(error) from None
        except TimeoutError:
            raise ChatError(f"no reply in {self.timeout:g} s", late=True, passing=True) from None
        except (OSError, http.client.HTTPException) as error:
            late_ = isinstance(getattr(error, "reason", None), TimeoutError)
            why = getattr(error, "reason", None) or f"{type(error).__name__}: {error}"
            raise ChatError(f"no reply from {self.url} ({why})", late_, passing=True) from None

    def _hidden(self, body: bytes) -> bytes:
        """Some servers repeat what they were sent, and what they say is recorded and shown."""
        return body.replace(self._key, b"***") if self._key else body

    def _refused(self, error: urllib.error.HTTPError) -> ChatError:
        """What an HTTP status means, with the beginning of what the server says."""
        said = ""
        with contextlib.suppress(OSError, http.client.HTTPException):
            told = self._hidden(error.read(2**16))[:500]  # hidden first: no half key at the cut
            said = " ".join(told.decode(errors="replace").split())
        pause = 0.0
        with contextlib.suppress(TypeError, ValueError):
            pause = max(0.0, float(error.headers.get("Retry-After", 0)))
        message = f"HTTP {error.code} from {self.url}: {said[:200]}"
        return ChatError(message, passing=error.code in PASSING, pause=pause)


def _content(body: bytes) -> str:
    """The text of a chat completion.

    Raises:
        ChatError: the body is none, or its text was cut.
    """
    try:
        choice = json.loads(body)["choices"][0]
        content = choice["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as problem:
        torn = isinstance(problem, ValueError)  # no JSON: the connection may have been cut
        raise ChatError(f"no chat completion: {body[:120]!r}", passing=torn) from None
    if not isinstance(content, str):
        raise ChatError("the reply has no text")
    if choice.get("finish_reason") == "length":
        raise ChatError("the reply was cut at max_tokens")
    return content
