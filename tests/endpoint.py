"""An OpenAI endpoint on the torch engine, with the faults that servers have; and a model for it.

The real server is vLLM's (tests/test_serve.py); this one starts at once and misbehaves on request.
"""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from samplers.engines.torch import Config
from samplers.render import ThinkingConfig
from samplers.rollout import RolloutWorker
from samplers.seeds import key
from samplers.tasks import find
from samplers.types import Job, Plan, Prompt, Request

BASES = Path(__file__).resolve().parent.parent / "recipes" / "base"
MARKS = {"none": "<b1>", "low": "<b2>", "medium": "<b3>", "high": "<b4>"}
HEAD = (
    "{% for message in messages %}{{ message.content }}{% endfor %}"
    "{% if reasoning_effort is defined and reasoning_effort %}{{ MARKS[reasoning_effort] }}"
    "{% endif %}{% if add_generation_prompt %}<think>{% endif %}"
)
HARD = "thinking_token_budget"


def folder(path: Path) -> Path:
    """base/modes, told of an effort by its template."""
    shutil.copytree(BASES / "modes", path)
    marks = json.dumps(MARKS)
    (path / "chat_template.jinja").write_text("{% set MARKS = " + marks + " %}" + HEAD)
    return path


def prompts(count: int) -> list[Prompt]:
    return [find.prompt(find.Config(), "test", i) for i in range(count)]


def jobs(plan: Plan, count: int = 4, temperature: float = 0.0) -> list[Job]:
    return [Job(p, plan, p.index, 0, key(5, p.index), temperature) for p in prompts(count)]


class Endpoint:
    """Faults are set between requests.

    Args:
        model: a folder.
    """

    def __init__(self, model: Path) -> None:
        self.worker = RolloutWorker.from_pretrained(str(model), Config(), ThinkingConfig())
        self.renderer = self.worker.renderer
        self.deaf = False  # ignores the hard budget
        self.bare = False  # tells neither ids nor logprobs
        self.fails = 0  # answers 503 so many times
        self.refusal = ""
        self.wanders = False  # another seed for every request
        self.asked: list[dict[str, Any]] = []
        self.paths: Counter[str] = Counter()

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.paths[path] += 1
        self.asked.append(body)
        if self.fails:
            self.fails -= 1
            return 503, {"error": {"message": "overloaded"}}
        if self.refusal:
            return 400, {"error": {"message": self.refusal}}
        if path == "/tokenize":
            return 200, {"tokens": self.renderer.encode(body["prompt"]).tolist()}
        try:
            return 200, (self._chat if "chat" in path else self._complete)(body)
        except ValueError as error:
            return 400, {"error": {"message": str(error)}}

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        known = self.renderer.variables  # servers drop the others without a word
        template = {k: v for k, v in (body.get("chat_template_kwargs") or {}).items() if k in known}
        if body.get("reasoning_effort"):
            template["reasoning_effort"] = body["reasoning_effort"]
        think = None if self.deaf else body.get(HARD)
        plan = Plan(max_tokens=body.get("max_tokens", 400), think=think, template=template)
        prompt = Prompt(0, "asked", tuple(body["messages"]), "", "", "")
        seed = key(body.get("seed", 0), len(self.asked) if self.wanders else 0)
        cut = {"top_p": body.get("top_p", 1.0), "top_k": body.get("top_k", 0)}
        heat = body.get("temperature", 1.0)
        made = self.worker.generate([Job(prompt, plan, 0, 0, seed, heat, **cut)])
        [rollout] = made
        tokens = [rollout.thought, rollout.final.tokens]
        ids = np.concatenate([part.ids_T for part in tokens]).tolist()
        logprobs = np.concatenate([part.logprobs_T for part in tokens])
        thought = rollout.thought.ids_T[: rollout.think_tokens]
        choice: dict[str, Any] = {
            "message": {
                "reasoning": self.renderer.decode(thought) or None,
                "content": rollout.final.text,
            },
            "finish_reason": (rollout.final.tokens if rollout.ended or think is not None
                              else rollout.thought).finish,
        }  # fmt: skip
        found = {"choices": [choice], "usage": {"completion_tokens": len(ids), "prompt_tokens": 1}}
        if not self.bare:
            said = [{"logprob": -9.0 if math.isnan(x) else float(x)} for x in logprobs]
            choice |= {"token_ids": ids, "logprobs": {"content": said}}
            found["prompt_token_ids"] = rollout.prompt_ids_T.tolist()
        return found

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        request = Request(
            0, np.array(body["prompt"], np.int32), body["max_tokens"],
            tuple(body["stop_token_ids"]), body["temperature"], body["seed"],
            top_p=body["top_p"], top_k=body["top_k"],
        )  # fmt: skip
        engine = self.worker.engine
        [done] = self.worker.between(lambda: engine.generate([request]), drained=True)
        choice = {
            "token_ids": done.ids_T.tolist(),
            "logprobs": {"token_logprobs": done.logprobs_T.tolist()},
            "finish_reason": done.finish,
        }
        return {"choices": [choice], "usage": {"completion_tokens": len(done.ids_T)}}


@contextmanager
def serving(endpoint: Endpoint) -> Iterator[str]:
    """Its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._say(200, {"data": [{"id": "tiny", "max_model_len": 1024}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._say(*endpoint.post(self.path, body))

        def _say(self, code: int, found: dict[str, Any]) -> None:
            text = json.dumps(found).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # connections come all at once

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
