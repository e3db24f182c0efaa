"""What every engine does, and its settings. Engines are `torch` and `vllm`, one file each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from pydantic import Field

from samplers.ring import Source
from samplers.seam import Component, find
from samplers.types import Completion, Floats, Ids, Request


class Config(Component):
    """Engine settings of a rollout worker."""

    name: str = "torch"
    """`torch` (embedded, any causal LM with a dynamic KV cache) or `vllm`."""
    slots: int = Field(default=256, ge=1)
    """Rows decoded at once; more requests than this wait for a free slot."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of weights, activations and KV cache."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, ..."""
    threads: int = Field(default=1, ge=0)
    """Threads of one engine on a CPU (scale over processes instead); 0 leaves torch's own."""


class Engine(Protocol):
    """Continuous batching over requests that do not wait for each other.

    A request's tokens depend on its own ids, seed, sampling and limits, never on its
    neighbours. Requests are admitted in the order of `add`, forks before new prompts; forks and
    given tokens may wait some steps for each other. Given tokens leave nothing to keep.
    """

    version: int
    """Version of the weights; every token made is stamped with it."""
    receivers: int
    """Processes that read weights in `receive`: 1, or one per tensor-parallel rank."""

    ramps: bool
    """Takes `Request.ramp`; elsewhere it is approached by a bias for each of several requests."""

    @property
    def pending(self) -> int:
        """Requests added whose completion has not been returned yet."""
        ...

    @property
    def context(self) -> int | None:
        """Longest prompt plus completion in tokens; None if the model sets no limit."""
        ...

    @property
    def counters(self) -> Mapping[str, int]:
        """Totals since the start: steps, sampled, prefilled and forked tokens."""
        ...

    def add(self, requests: Sequence[Request]) -> None:
        """Queue requests: all, or none where one is refused.

        Raises:
            ValueError: nothing to complete, no token allowed, a context overflow, a token id
                outside the vocabulary or an unknown prefix.
        """
        ...

    def step(self) -> list[Completion]:
        """Make one token for every live row and return what finished, aborts included."""
        ...

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Add, step until nothing is pending, and return completions in request order."""
        ...

    def abort(self, ids: Iterable[int]) -> None:
        """End requests by id: the next step returns them with finish `abort`."""
        ...

    def score(self, ids: Sequence[Ids], temperature: float = 1.0) -> list[Floats]:
        """Teacher-forced logprobs of ids[1:] of each sequence ([T - 1] each).

        Raises:
            ValueError: longer than the context, or a token id outside the vocabulary.
        """
        ...

    def release(self, handles: Iterable[int]) -> None:
        """Forget kept prefixes. Forks added before still run."""
        ...

    def load_weights(self, weights: Iterable[tuple[str, Any]], version: int | None = None) -> None:
        """Replace weights by state-dict name (tensors or arrays), in place.

        KV of the old weights is dropped: kept prefixes and live rows are prefilled again, so
        every later token is what the new weights alone would give. Without `version` it counts
        one up.

        Raises:
            ValueError: an unknown name or another shape. The engine may then hold some weights of
                both, under the old version: load again before anything else.
        """
        ...

    def receive(self, source: Source, version: int) -> None:
        """Load the weights that a learner sends to `source`.

        Raises:
            SyncError: the learner failed, died or hung (by the source's deadline).
            ValueError: weights of another model; the learner is told as well.
        """
        ...

    def sleep(self) -> None:
        """Give the memory of the KV cache back, to a learner on the same device.

        What was under way goes on after `wake`, prefilled again. Until then adding, stepping,
        scoring and loading are a ValueError.
        """
        ...

    def wake(self) -> None:
        """End `sleep`; no effect on an engine that is awake."""
        ...


def environment(config: Config) -> dict[str, str]:
    """Variables that a process for this engine is to be started with: later is too late."""
    module = find("samplers.engines", config.name)
    made: dict[str, str] = module.environment() if hasattr(module, "environment") else {}
    return made


def start(model: Any, config: Config, trust_remote_code: bool = False) -> Engine:
    """The engine that `config.name` names, holding `model` (a folder or hub name)."""
    return find("samplers.engines", config.name).start(model, config, trust_remote_code)
