"""The vLLM engine: its LLMEngine in this process, stepped by hand, so that rows join between steps.

We hand it token ids and take token ids: requests go straight to its core and tokens come straight
from it, past the tokenizers, texts and streams that its front ends wrap around them. Rows wait
with us and enter when a slot is free, so vLLM's own queue is empty but for what it had to preempt.
"""

from __future__ import annotations

import gc
import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from samplers.engines import vllm as settings
from samplers.engines._requests import Stepped, check_scored, whole_prompt
from samplers.engines._vllm_params import sampling, scores, scoring
from samplers.engines._vllm_start import SCORE_ROWS, arguments, context_of, launch, parameters
from samplers.ring import Source, SyncError
from samplers.types import Completion, Finish, Floats, Ids, Request

BUCKET_BYTES = 64 * 2**20
FINISH: dict[str, Finish] = {"stop": "stop", "length": "length", "repetition": "repetition"}


@dataclass(slots=True)
class Row:
    request: Request
    context: list[int]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    prefilled: int = 0

    def completion(self, finish: Finish, version: int, handle: int | None = None) -> Completion:
        return Completion(
            self.request.id,
            np.array(self.ids, np.int32),
            np.array(self.logprobs, np.float32),
            finish,
            tuple(self.spans) or ((0, version),),
            handle,
            self.prefilled,
        )


class VllmEngine(Stepped):
    """See `samplers.engines.base.Engine`; one process per engine, whose only engine it is.

    Args:
        model: the folder or hub name of a causal LM.

    Raises:
        ValueError: vLLM cannot load or hold this model so, in its own words and our numbers.
    """

    def __init__(self, model: Any, config: settings.Config, trust_remote_code: bool = False):
        self.config, self.version, self.ramps = config, 0, False
        self.shapes, self._needed, text = parameters(model, trust_remote_code)
        settings.check(config, text.to_dict(), longest=1, here=True)
        self.llm = launch(arguments(model, config, trust_remote_code, context_of(text)), config)
        self.receivers = config.tensor_parallel
        self.counters = {"steps": 0, "sampled": 0, "prefilled": 0, "forked": 0}
        self.context: int | None = self.llm.vllm_config.model_config.max_model_len
        self._vocab = int(text.vocab_size)
        self._core = self.llm.engine_core
        self._stream = own_stream() if self.receivers == 1 else None
        if self.receivers == 1:
            # Its end would tear down what every engine of the process computes with.
            self._core._finalizer.detach()
        self._rows: dict[str, Row] = {}
        self._forks: deque[Row] = deque()
        self._fresh: deque[Row] = deque()
        self._given: deque[Row] = deque()
        self._done: list[Completion] = []
        self._scores: dict[str, Any] = {}
        self._score_temperature = 1.0
        self._kept: dict[int, Ids] = {}
        self._handles = self._serial = 0
        self._asleep = False

    @property
    def pending(self) -> int:
        waiting = len(self._forks) + len(self._fresh) + len(self._given)
        return len(self._rows) + waiting + len(self._done)

    # Requests

    def add(self, requests: Sequence[Request]) -> None:
        self._awake("add")
        if not self.pending and not self._kept:
            self._core.reset_prefix_cache()  # nobody shall see what was cached before
        for row in [self._row(request) for request in requests]:  # all are fine, or none enters
            if row.request.given is not None:
                self._given.append(row)
            else:
                (self._fresh if row.request.prefix is None else self._forks).append(row)

    def _row(self, request: Request) -> Row:
        kept = None if request.prefix is None else self._kept.get(request.prefix[0])
        if request.ramp is not None:
            raise ValueError(
                f"request {request.id}: vLLM raises no logit as a row grows; ask for pieces with a "
                "logit_bias each, as samplers/watched.py does"
            )
        return Row(request, whole_prompt(request, kept, self._vocab, self.context).tolist())

    def step(self) -> list[Completion]:
        self._awake("step")
        self._admit()
        if self._rows:
            self._advance()
        done, self._done = self._done, []
        return done

    def abort(self, ids: Iterable[int]) -> None:
        ids = set(ids)
        ended = [key for key, row in self._rows.items() if row.request.id in ids]
        self._core.abort_requests(ended)
        rows = [self._rows.pop(key) for key in ended]
        for queue in (self._forks, self._fresh, self._given):
            waiting = [row for row in queue if row.request.id in ids]
            for row in waiting:
                queue.remove(row)
            rows += waiting
        self._done += [row.completion("abort", self.version) for row in rows]

    def release(self, handles: Iterable[int]) -> None:
        for handle in handles:
            self._kept.pop(handle, None)

    def _admit(self) -> None:
        while len(self._rows) < self.config.slots and (self._forks or self._fresh):
            row = (self._forks or self._fresh).popleft()
            self._rows[self._submit(row.context, sampling(row.request))] = row
        most = self.config.slots + SCORE_ROWS
        while (
            self._given
            and len(self._rows) < most
            and self._heat(self._given[0].request.temperature or 1.0)
        ):
            self._weigh(self._given.popleft())

    def _submit(self, ids: list[int], params: Any) -> str:
        from vllm.v1.engine import EngineCoreRequest

        key = str(self._serial)
        self._serial += 1
        self._core.add_request(
            EngineCoreRequest(key, ids, None, params, None, 0.0, None, None, None)
        )
        return key

    # Steps

    def _advance(self) -> None:
        """One forward of vLLM; tokens go to their rows, prompt logprobs to whoever scores."""
        self._on_stream()
        outputs = self._core.get_output().outputs
        self.counters["steps"] += 1
        for output in outputs:
            row = self._rows.get(output.request_id)
            if row is None:
                if output.request_id in self._scores:
                    self._scores[output.request_id] = scores(output)
                continue
            if output.prefill_stats is not None:
                self._count(row, output.prefill_stats)
            if row.request.given is None:
                self._take(row, output)
            elif output.finish_reason is not None:
                self._weighed(row, output)

    def _take(self, row: Row, output: Any) -> None:
        tokens = output.new_token_ids
        if tokens:
            if not row.spans or row.spans[-1][1] != self.version:
                row.spans.append((len(row.ids), self.version))
            row.ids += tokens
            row.logprobs += output.new_logprobs.logprobs[:, 0].tolist()
            self.counters["sampled"] += len(tokens)
        if output.finish_reason is None:
            return
        del self._rows[output.request_id]
        finish, handle = FINISH.get(str(output.finish_reason)), None
        if finish is None:
            raise RuntimeError(f"vLLM ended a row with '{output.finish_reason}'")
        if row.request.keep:
            handle, self._handles = self._handles, self._handles + 1
            self._kept[handle] = np.array(row.context + row.ids, np.int32)
        self._done.append(row.completion(finish, self.version, handle))

    def _count(self, row: Row, stats: Any) -> None:
        self.counters["prefilled"] += stats.num_computed_tokens
        row.prefilled += stats.num_computed_tokens
        if row.request.prefix is not None:
            self.counters["forked"] += stats.num_cached_tokens

    # Scoring

    def score(self, ids: Sequence[Ids], temperature: float = 1.0) -> list[Floats]:
        self._awake("score")
        check_scored(ids, self._vocab, self.context)
        temperature = temperature or 1.0
        while not self._heat(temperature):
            self._advance()
        out: list[Floats] = [np.zeros(0, np.float32)] * len(ids)
        waiting = deque(i for i in range(len(ids)) if len(ids[i]) > 1)
        self._scores = {}
        owners: dict[str, int] = {}
        while waiting or self._scores:
            while waiting and len(self._scores) < SCORE_ROWS:
                i = waiting.popleft()
                key = self._submit(ids[i][:-1].tolist(), scoring(int(ids[i][-1]), temperature))
                self._scores[key], owners[key] = None, i
            self._advance()
            for key in [key for key, scored in self._scores.items() if scored is not None]:
                out[owners.pop(key)] = self._scores.pop(key)
        return out

    def _heat(self, temperature: float) -> bool:
        """Score at that temperature from now on; False while something is scored at another."""
        if temperature != self._score_temperature:
            if any(row.request.given is not None for row in self._rows.values()):
                return False
            self._everywhere("score_at", temperature)
            self._score_temperature = temperature
        return True

    def _weigh(self, row: Row, cached: bool = True) -> None:
        """Have a row's given tokens scored: after its kept prefix, where that is cached."""
        given, temperature = row.request.given, row.request.temperature or 1.0
        assert given is not None
        params = scoring(int(given[-1]), temperature, cached)
        self._rows[self._submit(row.context + given[:-1].tolist(), params)] = row

    def _weighed(self, row: Row, output: Any) -> None:
        """Of prompts vLLM scores what it computes, and so not what it found in its cache."""
        del self._rows[output.request_id]
        assert row.request.given is not None
        stats, size = output.prefill_stats, len(row.request.given)
        if size > 1 and stats is not None and stats.num_cached_tokens >= len(row.context):
            self._weigh(row, cached=False)
            return
        row.ids, row.logprobs = row.request.given.tolist(), scores(output)[-size:].tolist()
        row.spans = [(0, self.version)]
        self._done.append(row.completion("stop", self.version))

    # Weights

    def load_weights(self, weights: Iterable[tuple[str, Any]], version: int | None = None) -> None:
        self._awake("load weights")
        self._on_stream()
        self._everywhere("load_begin", self.shapes, self._needed)
        try:
            for bucket in buckets(weights):
                self._everywhere("load_some", bucket)
        except BaseException:
            self._everywhere("load_abandon")
            raise
        self._everywhere("load_end")
        self._loaded(version)

    def receive(self, source: Source, version: int) -> None:
        """Every worker process reads the weights itself."""
        self._awake("load weights")
        self._on_stream()
        self._everywhere("load_from", source, self.shapes, self._needed)
        self._loaded(version)

    def _loaded(self, version: int | None) -> None:
        """Forget all KV: live rows are computed again, from prompt and tokens so far."""
        self._core.reset_prefix_cache(reset_running_requests=True)
        self.version = self.version + 1 if version is None else version

    def _everywhere(self, method: str, *args: Any) -> None:
        """Call the extension of every worker process; what it refuses is refused here."""
        try:
            self.llm.collective_rpc(method, args=args)
        except RuntimeError as error:  # of processes vLLM passes on the words alone
            told = re.search(r"^Worker failed with error '(.*)', please check", str(error), re.S)
            if told is None:
                raise
            if told[1].startswith("weight sync:"):
                raise SyncError(told[1]) from None
            if told[1].startswith("weights:"):
                raise ValueError(told[1]) from None
            raise

    def _on_stream(self) -> None:
        """Threads take turns at an engine, and each has a CUDA stream, which waits for no other.

        vLLM runs ahead: one thread's forward may still be under way when the next one's begins.
        """
        if self._stream is not None:
            import torch

            if torch.cuda.current_stream() != self._stream:
                self._stream.wait_stream(torch.cuda.current_stream())
                torch.cuda.set_stream(self._stream)

    # Memory

    def sleep(self) -> None:
        """Let go of KV cache and, on a GPU, weights (kept in the host's memory) until `wake`."""
        if self._asleep:
            return
        if settings.build() == "cuda" and not self.config.sleep:
            raise ValueError("rollout.engine.sleep=false: start the engine with sleep=true")
        self._core.reset_prefix_cache(reset_running_requests=True)
        if self.config.sleep and settings.build() == "cuda":
            self.llm.sleep(level=1, mode="keep")
        self._asleep = True

    def wake(self) -> None:
        if self._asleep and self.config.sleep and settings.build() == "cuda":
            self.llm.wake_up()
        self._asleep = False

    def _awake(self, what: str) -> None:
        if self._asleep:
            raise ValueError(f"engine: cannot {what} while asleep; call wake() first")

    def close(self) -> None:
        """End worker processes; memory of this process is freed with the engine."""
        if self.config.tensor_parallel > 1:
            self._core.shutdown()
        else:
            gc.unfreeze()


def own_stream() -> Any:
    """The CUDA stream that vLLM has taken for this thread; None on a CPU."""
    if settings.build() != "cuda":
        return None
    from vllm.utils.torch_utils import current_stream

    return current_stream()


def buckets(weights: Iterable[tuple[str, Any]]) -> Iterable[list[tuple[str, Any]]]:
    """Weights in lists of bounded size, copied: what they come from may be used again."""
    import torch

    bucket: list[tuple[str, Any]] = []
    for name, value in weights:
        tensor = value.clone() if isinstance(value, torch.Tensor) else torch.tensor(value)
        bucket.append((name, tensor))
        if sum(t.nbytes for _, t in bucket) >= BUCKET_BYTES:
            yield bucket
            bucket = []
    yield bucket
