"""A served model as an engine: token ids over /v1/completions, moved on by `samplers/run.py`.

So everything that an engine in this process can be asked goes over HTTP too: nested cuts of one
thought, forced texts, selections that end the losers. The chat template of the folder here renders
and the code here closes thoughts: the server's own template, parser and hard budget are not used.
`http.py` measures those.

Written for vLLM (`return_token_ids`). Weights are the server's and stay as they are; its prefix
cache stands for kept prefixes; no token is scored (`given`).
"""

from __future__ import annotations

import queue
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np

from samplers import seeds
from samplers.engines import base
from samplers.engines._requests import Stepped, whole_prompt
from samplers.render import Renderer
from samplers.rollout import RolloutWorker
from samplers.served.client import context_of, only_model
from samplers.served.http import SEEDS
from samplers.served.reading import FINISHES
from samplers.served.wire import Wire
from samplers.types import Completion, Finish, Ids, Request


def worker(base_url: str, model: str | None, renderer: Renderer, **wire: Any) -> RolloutWorker:
    """A rollout worker whose engine is a server.

    Args:
        renderer: tokenizer and markers of the served model.

    Raises:
        ValueError: nobody answers there, or it has no such model.
    """
    return RolloutWorker(HttpEngine(base_url, model, len(renderer.tokenizer), **wire), renderer)


class HttpEngine(Stepped):
    """See `samplers.engines.base.Engine`. A step waits for the next completion.

    An aborted request comes back without its tokens: its connection is closed, upon which the
    server ends it, and nobody tells how far it was.

    Args:
        vocab: ids that prompts may hold.
        wire: of `Wire` (timeout, retries, key, connections).
    """

    receivers = 1
    ramps = False
    """A logit that rises while a completion grows would need a request for every token."""

    def __init__(self, base_url: str, model: str | None, vocab: int, **wire: Any) -> None:
        self.wire = Wire(base_url, **wire)
        self.config = base.Config(name="served", slots=self.wire.connections)
        self.model = model or only_model(self.wire)
        self.context = context_of(self.wire, self.model)
        self.version = 0
        self.counters = {"steps": 0, "sampled": 0, "prefilled": 0, "forked": 0}
        self._vocab = vocab
        self._flying: dict[int, tuple[Request, Ids, Future[Any]]] = {}
        self._landed: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._kept: dict[int, Ids] = {}
        self._handles = 0

    @property
    def pending(self) -> int:
        return len(self._flying)

    def add(self, requests: Sequence[Request]) -> None:
        contexts = [self._context(request) for request in requests]  # all are fine, or none enters
        for request, ids in zip(requests, contexts, strict=True):
            sent = self.wire.run(self.wire.send("POST", "/v1/completions", self.body(request, ids)))
            self._flying[request.id] = (request, ids, sent)
            sent.add_done_callback(partial(self._land, request.id))
            self.counters["prefilled"] += len(ids)
            self.counters["forked"] += request.prefix is not None

    def _land(self, number: int, _: Future[Any]) -> None:
        self._landed.put(number)

    def _context(self, request: Request) -> Ids:
        if request.given is not None:
            raise ValueError(
                f"request {request.id}: a server scores no given tokens; leave probe empty"
            )
        kept = None if request.prefix is None else self._kept.get(request.prefix[0])
        return whole_prompt(request, kept, self._vocab, self.context)

    def body(self, request: Request, ids: Ids) -> dict[str, Any]:
        """What vLLM in this process is asked, as JSON: seeds draw the same on the same build."""
        seed = seeds.key(request.seed, request.drawn) if request.drawn else request.seed
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": ids.tolist(),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "seed": seed & SEEDS,
            "stop_token_ids": list(request.stop_ids),
            "ignore_eos": True,
            "logprobs": 0,
            "return_token_ids": True,
        }
        if request.logit_bias:
            body["logit_bias"] = {str(i): value for i, value in request.logit_bias.items()}
        return body

    def step(self) -> list[Completion]:
        if not self._flying:
            return []
        landed = [self._landed.get()]
        while not self._landed.empty():
            landed.append(self._landed.get())
        self.counters["steps"] += 1
        return [self._completion(number) for number in landed if number in self._flying]

    def _completion(self, number: int) -> Completion:
        request, ids, sent = self._flying.pop(number)
        if sent.cancelled():
            nothing = np.zeros(0, np.int32)
            return Completion(number, nothing, np.zeros(0, np.float32), "abort", ((0, 0),))
        choice = sent.result()["choices"][0]
        made = np.array(_ids(choice), np.int32)
        finish: Finish = FINISHES.get(choice["finish_reason"], "abort")
        logprobs = np.array(choice["logprobs"]["token_logprobs"], np.float32)
        self.counters["sampled"] += len(made)
        handle = None
        if request.keep:
            handle, self._handles = self._handles, self._handles + 1
            self._kept[handle] = np.concatenate([ids, made])
        return Completion(number, made, logprobs, finish, ((0, self.version),), handle)

    def abort(self, ids: Iterable[int]) -> None:
        for number in ids:
            if number in self._flying:
                self._flying[number][2].cancel()

    def release(self, handles: Iterable[int]) -> None:
        for handle in handles:
            self._kept.pop(handle, None)

    def score(self, ids: Sequence[Ids], temperature: float = 1.0) -> list[Any]:
        raise ValueError("served: a server scores no given tokens; use an engine in this process")

    def load_weights(self, weights: Iterable[Any], version: int | None = None) -> None:
        raise ValueError("served: weights are the server's; start one with the new model")

    def receive(self, source: Any, version: int) -> None:
        self.load_weights((), version)

    def sleep(self) -> None:
        """No effect: the memory is the server's."""

    wake = sleep

    def close(self) -> None:
        self.wire.close()


def _ids(choice: Mapping[str, Any]) -> list[int]:
    ids = choice.get("token_ids")
    if ids is None:
        raise ValueError(
            "served: the server tells no token ids (return_token_ids, vLLM 0.10 and later); ask it "
            "over chat (samplers.served.http)"
        )
    return list(ids)
