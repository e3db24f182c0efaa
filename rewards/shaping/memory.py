"""memory: episodic memory of what was thought about similar questions (Memory-R and Memory-R+).

Two memories hold embeddings of right and of wrong responses, by the question they answer. Of a
response, put into its memory before it is scored:

    exploit = 1 - norm(distance to the centroid of right responses to the k nearest questions)
    explore = norm(1 - largest cosine with wrong responses to the k nearest questions)

norm is min-max over the last `window` values of its kind. The component is exploit + explore,
weighted. "Memory-R: reasoning with episodic memory" (thaihungle/Memory-R), with these repairs:
cosines of any vectors; a window that spans less than 1e-6 counts as one value (it holds rounding
noise only); a full memory forgets its oldest question whole. A wrong response is always its own
nearest wrong one, so explore is all but 0 for it.

A wrong answer may earn up to 1 by exploit, as much as a right one by being right: `gate: correct`
pays right ones only. Shape suffixes: N questions, R responses, D dimensions of an embedding.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from rewards.shaping.base import Gated, added
from rewards.texts import Decode, Part, texts
from samplers import seam
from samplers.facts import MARKERS
from samplers.types import Group, Prompt

Floats = NDArray[np.float64]
NOISE = 1e-6
"""A window that spans less than this has one value."""


class Config(Gated):
    exploit: float = Field(1.0, ge=0)
    """Weight of being near what was right (the paper)."""
    explore: float = Field(1.0, ge=0)
    """Weight of being far from what was wrong; 0 is Memory-R without the plus."""
    k: int = Field(1, ge=1)
    """Nearest questions whose responses are compared (the paper: 1 for GSM8K, 20 for AI-MO)."""
    window: int = Field(100, ge=1)
    """Last values that min and max are taken of (the paper)."""
    explore_min_keys: int = Field(500, ge=0)
    """Different questions with wrong responses before explore begins (the paper's script)."""
    anneal: float = Field(1.0, gt=0, le=1)
    """Factor on explore from each scored response to the next (1 in the script: none)."""
    part: Part = "think"
    """What of a response is embedded; the paper embeds the reasoning."""
    embedder: str | None = None
    """Import path `my_pkg.my_file:fn` of a function, texts -> [N, D]; None: hashed n-grams."""
    dimension: int = Field(64, ge=2)
    """D of the hashed n-grams."""
    ngram: int = Field(4, ge=1)
    """Bytes of an n-gram that is hashed."""
    max_queries: int = Field(1000, ge=1)
    """Questions per memory; the oldest is forgotten (ours; 10,000 in the script). With the other
    defaults full memories add 3 MB to a checkpoint: 5.4 bytes x D x (1 + max_responses) x this."""
    max_responses: int = Field(8, ge=1)
    """Responses per question; the oldest is forgotten (ours; 100 in the script)."""

    @model_validator(mode="after")
    def _begins(self) -> Config:
        if self.explore and self.explore_min_keys > self.max_queries:
            raise ValueError(
                f"explore_min_keys={self.explore_min_keys} is more than "
                f"max_queries={self.max_queries}: explore would never begin; lower it, or set "
                "explore: 0"
            )
        if not self.exploit and not self.explore:
            raise ValueError("exploit=0 and explore=0 leave nothing; give one a weight")
        if self.embedder is not None:
            seam.function(self.embedder)
        return self


def requires(config: Config) -> dict[str, str]:
    why = "part=think embeds the thought; set part: answer"
    return {MARKERS: why} if config.part == "think" else {}


def shape(
    groups: Sequence[Group], config: Config, state: Any, decode: Decode | None
) -> tuple[list[Floats], Any]:
    """One [G, C, A] array per group; every known answer is an event, in order."""
    if not groups:
        return [], state
    memory = EpisodicMemory(config)
    memory.load_state_dict(state or {})
    read = texts(groups, config.part, decode)
    embed = _embedder(config)
    queries_ND = embed([_question(group.prompt) for group in groups])
    responses = iter(embed([text for row in read for text in row]))
    weights = np.array([config.exploit, config.explore])
    out = []
    for group, query_D in zip(groups, queries_ND, strict=True):
        known_GCA, correct_GCA = group.known_GCA, group.correct_GCA
        extra_GCA = np.zeros(known_GCA.shape)
        for at in np.ndindex(known_GCA.shape):
            response_D = next(responses)
            if known_GCA[at]:
                scored = memory.score(query_D, response_D, bool(correct_GCA[at]))
                extra_GCA[at] = weights @ scored
        out.append(added(group, extra_GCA, config.gate))
    return out, memory.state_dict()


class EpisodicMemory:
    """Right and wrong responses by question, and the windows their distances are judged by."""

    def __init__(self, config: Config) -> None:
        self.config, self.factor = config, 1.0
        limits = config.max_queries, config.max_responses
        self.right, self.wrong = Responses(*limits), Responses(*limits)
        self.near: deque[float] = deque(maxlen=config.window)
        self.far: deque[float] = deque(maxlen=config.window)

    def score(self, query_D: Floats, response_D: Floats, correct: bool) -> tuple[float, float]:
        """(exploit, explore) of a response that is remembered first."""
        (self.right if correct else self.wrong).insert(query_D, response_D)
        return self._exploit(query_D, response_D), self._explore(query_D, response_D)

    def _exploit(self, query_D: Floats, response_D: Floats) -> float:
        """In [-1, 1] for embeddings of length 1: below 0 only where the window has one value."""
        pooled_RD = self.right.nearest(query_D, self.config.k)
        if pooled_RD is None:
            return 0.0
        distance = float(np.linalg.norm(response_D - pooled_RD.mean(axis=0)))
        norm = _standing(distance, self.near)
        return 1.0 - (distance if norm is None else norm)

    def _explore(self, query_D: Floats, response_D: Floats) -> float:
        """In [0, 1]."""
        if len(self.wrong) < self.config.explore_min_keys:
            return 0.0
        pooled_RD = self.wrong.nearest(query_D, self.config.k)
        if pooled_RD is None:
            return 1.0
        norms_R = np.linalg.norm(pooled_RD, axis=1) * np.linalg.norm(response_D)
        cosines_R = pooled_RD @ response_D / np.where(norms_R > 0, norms_R, 1.0)
        norm = _standing(1.0 - float(cosines_R.max()), self.far)
        if norm is None:
            return 0.0
        novelty, self.factor = self.factor * norm, self.factor * self.config.anneal
        return novelty

    def state_dict(self) -> dict[str, Any]:
        """JSON-able. Embeddings are kept in float16: exact for what `_embedder` makes."""
        return {
            "right": self.right.state_dict(),
            "wrong": self.wrong.state_dict(),
            "near": list(self.near),
            "far": list(self.far),
            "factor": self.factor,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; from nothing if it is empty."""
        if state:
            self.right.load_state_dict(state["right"])
            self.wrong.load_state_dict(state["wrong"])
            self.near.extend(state["near"])
            self.far.extend(state["far"])
            self.factor = state["factor"]


class Responses:
    """Embeddings of responses by question: equal questions are one, and the oldest goes first."""

    def __init__(self, max_queries: int, max_responses: int) -> None:
        self.max_queries, self.max_responses = max_queries, max_responses
        self._of: dict[bytes, Floats] = {}  # [R, D] of each question, by its bytes
        self._queries_ND: Floats | None = None

    def __len__(self) -> int:
        return len(self._of)

    def insert(self, query_D: Floats, response_D: Floats) -> None:
        key = (query_D + 0.0).tobytes()  # -0.0 is 0.0
        if key in self._of:
            self._of[key] = np.vstack([self._of[key], response_D])[-self.max_responses :]
            return
        if len(self._of) == self.max_queries:
            del self._of[next(iter(self._of))]
        self._of[key], self._queries_ND = response_D[None], None

    def nearest(self, query_D: Floats, k: int) -> Floats | None:
        """[R, D] responses to the `k` questions nearest to this one; None where there are none."""
        if not self._of:
            return None
        if self._queries_ND is None:
            self._queries_ND = np.stack([np.frombuffer(key) for key in self._of])
        distance_N = ((self._queries_ND - query_D) ** 2).sum(axis=1)
        keys, nearest = list(self._of), np.argsort(distance_N, kind="stable")[:k]
        return np.concatenate([self._of[keys[i]] for i in nearest])

    def state_dict(self) -> dict[str, Any]:
        if not self._of:
            return {}
        queries_ND = np.stack([np.frombuffer(key) for key in self._of])
        return {
            "counts": [len(responses_RD) for responses_RD in self._of.values()],
            "queries": _packed(queries_ND),
            "responses": _packed(np.concatenate(list(self._of.values()))),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            counts = state["counts"]
            queries_ND = _unpacked(state["queries"], len(counts))
            splits = np.split(_unpacked(state["responses"], sum(counts)), np.cumsum(counts)[:-1])
            self._of = {q.tobytes(): r for q, r in zip(queries_ND, splits, strict=True)}


def _standing(value: float, window: deque[float]) -> float | None:
    """Where `value`, now part of the window, lies between its min and max; None if they agree."""
    window.append(value)
    low, high = min(window), max(window)
    return None if high - low < NOISE else (value - low) / (high - low)


def _packed(rows: Floats) -> str:
    return base64.b64encode(rows.astype(np.float16).tobytes()).decode()


def _unpacked(text: str, count: int) -> Floats:
    flat = np.frombuffer(base64.b64decode(text), np.float16)
    return flat.astype(np.float64).reshape(count, -1)


def _question(prompt: Prompt) -> str:
    return prompt.messages[-1]["content"] if prompt.messages else prompt.text


def _embedder(config: Config) -> Callable[[list[str]], Floats]:
    """Texts -> [N, D] of length 1, rounded to float16 so that a checkpoint holds them exactly."""
    if config.embedder is None:
        raw = lambda rows: hashed(rows, config.dimension, config.ngram)  # noqa: E731
    else:
        raw = seam.function(config.embedder)

    def embed(rows: list[str]) -> Floats:
        found_ND = np.asarray(raw(rows), dtype=np.float64)
        if found_ND.ndim != 2 or len(found_ND) != len(rows) or not np.isfinite(found_ND).all():
            raise ValueError(
                f"memory.embedder: {config.embedder} gave an array of shape {found_ND.shape} for "
                f"{len(rows)} texts; it must give one finite row of numbers per text"
            )
        norms_N1 = np.linalg.norm(found_ND, axis=1, keepdims=True)
        unit_ND = found_ND / np.where(norms_N1 > 0, norms_N1, 1.0)
        return unit_ND.astype(np.float16).astype(np.float64)

    return embed


def hashed(rows: Sequence[str], dimension: int, ngram: int) -> Floats:
    """[N, dimension]: every n-gram of bytes adds 1 or -1 to a place that its hash picks.

    Texts shorter than an n-gram are filled up with zero bytes.
    """
    powers = np.uint64(0x100000001B3) ** np.arange(ngram, dtype=np.uint64)  # FNV's prime
    out_ND = np.zeros((len(rows), dimension))
    for n, text in enumerate(rows):
        bytes_T = np.frombuffer(text.encode().ljust(ngram, b"\0"), np.uint8).astype(np.uint64)
        grams = np.lib.stride_tricks.sliding_window_view(bytes_T + np.uint64(1), ngram)
        mixed = (grams * powers).sum(axis=1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        places, signs = (mixed >> np.uint64(33)) % np.uint64(dimension), mixed >> np.uint64(63)
        weights = 1.0 - 2.0 * signs.astype(np.float64)
        out_ND[n] = np.bincount(places.astype(np.int64), weights, minlength=dimension)
    return out_ND
