"""Asking a served model under a budget: one request says the soft budget and the hard one.

The soft one is read by the chat template (an effort, an announced number); the hard one by the
engine, which closes the thought; `max_tokens` leaves room for the answer, which no server does by
itself. What each engine does with which field: README.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from samplers.budget import EFFORTS, Asks, Budget, plan_of
from samplers.budgets.base import BUDGET, Asking
from samplers.served.wire import Wire
from samplers.types import Plan

Dialect = Literal["vllm", "sglang"]
RESERVE = 1024
"""Tokens kept for an answer where nobody says how many."""
EFFORT = Asks(efforts={name: Asking(template={"reasoning_effort": name}) for name in EFFORTS})
"""A model of which nothing is known: asked for an effort, and limited by the engine."""
CONVENTION = EFFORT.model_copy(update={"budget": Asking(template={"thinking_budget": BUDGET})})
"""A model that was trained to read a number, told by the names of serving engines. (Exports of one
that was not refuse the number.) `trainer.export.asks(folder)` says it of an export."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one response. The end marker and the end of the response are in `completion`."""

    prompt: int
    completion: int
    thinking: int | None
    """None: the server tells neither token ids nor a count that can be right."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One response."""

    reasoning: str
    answer: str | None
    """None: the thought did not end, or nothing followed it."""
    finish: str
    usage: Usage
    over: int = 0
    """Thinking tokens beyond the hard budget: the server ignored it."""

    @property
    def text(self) -> str:
        return self.answer or ""


def request_body(
    model: str,
    messages: Sequence[Mapping[str, Any]],
    budget: Budget | None = None,
    *,
    asks: Asks = EFFORT,
    reserve: int = RESERVE,
    slack: float = 0.0,
    dialect: Dialect = "vllm",
    **sampling: Any,
) -> dict[str, Any]:
    """The body of a chat request: plain JSON.

    With the openai client, standard fields are arguments and the others go into `extra_body`
    (`split` does that).

    Args:
        budget: `samples` and selection are the caller's business.
        asks: how this model is told; with `EFFORT` no number is announced.
        reserve: tokens for the answer where the budget does not say.
        slack: share by which the hard budget is above the announced one, so that a model that
            keeps to its number roughly ends by itself (NIM: 0.1). Without effect where no number
            is announced.
        sampling: further fields of the body (temperature, seed, ...); `max_tokens` caps the whole.

    Raises:
        ValueError: an effort or a soft budget of which this model cannot be told; no room for an
            answer.
    """
    budget = budget or Budget()
    if slack < 0:
        raise ValueError(f"slack: {slack}; 0 or more, as 0.1 for a hard budget 10% above the soft")
    plan = plan_of(budget, asks, sampling.pop("max_tokens", None) or 2**31)
    announced = asks.budget is not None and budget.effort is None
    body = body_of(model, messages, plan, slack if announced else 0.0, dialect)
    hard = hard_of(body)
    cap = body.pop("max_tokens")
    if hard is not None:  # the marker is a token too
        wanted = hard + 1 + (budget.answer_tokens or reserve)
        if cap <= hard + 1:
            raise ValueError(
                f"max_tokens: {cap} leaves no token for an answer after {hard} of thought and the "
                f"end marker; set {wanted}"
            )
        cap = min(cap, wanted)
    return {**body, **({"max_tokens": cap} if cap < 2**31 else {}), **sampling}


def body_of(
    model: str,
    messages: Sequence[Mapping[str, Any]],
    plan: Plan,
    slack: float = 0.0,
    dialect: Dialect = "vllm",
) -> dict[str, Any]:
    """What a plan says, as a chat request: template arguments, texts, hard budget, cap.

    The effort is a field of its own, where the server checks it: among `chat_template_kwargs`
    an unknown one passes silently; so does a hard budget there, which is ignored.
    """
    said: list[dict[str, Any]] = [dict(message) for message in messages]
    if plan.suffix:
        users = [message for message in said if message["role"] == "user"]
        if not users:
            raise ValueError(f"messages: none of a user, to whom {plan.suffix!r} could be said")
        users[-1]["content"] = _around("", users[-1]["content"], plan.suffix)
    if plan.system is not None:
        first = said[0] if said and said[0]["role"] == "system" else None
        text = plan.system if first is None else _around(f"{plan.system}\n\n", first["content"])
        said = [{"role": "system", "content": text}, *said[first is not None :]]
    template = dict(plan.template)
    body: dict[str, Any] = {"model": model, "messages": said, "max_tokens": plan.max_tokens}
    if template.get("reasoning_effort") in EFFORTS:
        body["reasoning_effort"] = template.pop("reasoning_effort")
    if template:
        body["chat_template_kwargs"] = template
    if plan.think is not None:
        body |= hard_fields(math.ceil(plan.think * (1 + slack) - 1e-9), dialect)
    return body


def _around(before: str, content: Any, after: str = "") -> Any:
    """A message's content, a text or a list of parts, between two texts: as exports have it."""
    if isinstance(content, str):
        return before + content + after
    head, tail = ([{"type": "text", "text": text}] if text else [] for text in (before, after))
    return [*head, *content, *tail]


def hard_fields(tokens: int, dialect: Dialect = "vllm") -> dict[str, Any]:
    """The fields that make an engine close a thought after so many tokens."""
    if dialect == "sglang":  # read in its code, never run by us
        return {"custom_params": {"thinking_budget": tokens}}
    return {"thinking_token_budget": tokens}


def hard_of(body: Mapping[str, Any]) -> int | None:
    found = body.get("thinking_token_budget", body.get("custom_params", {}).get("thinking_budget"))
    return None if found is None else int(found)


OPENAI = frozenset(
    {"model", "messages", "max_tokens", "reasoning_effort", "temperature", "top_p", "seed", "n"}
    | {"stop", "logprobs", "top_logprobs"}
)


def split(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body as arguments of `openai.OpenAI().chat.completions.create`."""
    extra = {k: v for k, v in body.items() if k not in OPENAI}
    return {**{k: v for k, v in body.items() if k in OPENAI}, "extra_body": extra}


class Client:
    """Asks one served model by plain HTTP.

    Args:
        model: the served name; None: the only one the server has.
        end: the marker's text, which tells thinking tokens apart; its id is asked of the server's
            tokenizer, and thinking tokens are not known (`Usage.thinking` None) where that fails.

    Raises:
        ValueError: nobody answers at `base_url`, or it serves several models and none is named.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        asks: Asks = EFFORT,
        dialect: Dialect = "vllm",
        end: str = "</think>",
        **wire: Any,
    ) -> None:
        self.wire, self.asks, self.dialect = Wire(base_url, **wire), asks, dialect
        self.model = model or only_model(self.wire)
        context = context_of(self.wire, self.model)
        self.reserve = RESERVE if context is None else min(RESERVE, context // 4)
        self._end = end_id(self.wire, self.model, end) if dialect == "vllm" else None

    def ask(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        budget: Budget | None = None,
        **settings: Any,
    ) -> list[Reply]:
        """`budget.samples` responses, asked at once; `seed`, where given, counts up.

        Args:
            settings: as of `request_body`; `reserve` is 1024, or a quarter of a small context.

        Raises:
            ValueError: as `request_body`, or what the server refuses, in its words.
        """
        budget = budget or Budget()
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        common = {"asks": self.asks, "dialect": self.dialect, "reserve": self.reserve} | settings
        if self.dialect == "vllm":
            common["return_token_ids"] = True
        body = request_body(self.model, messages, budget, **common)
        bodies = [
            {**body, "seed": body["seed"] + i} if "seed" in body else body
            for i in range(budget.samples)
        ]
        path = "/v1/chat/completions"
        sent = [self.wire.run(self.wire.send("POST", path, body)) for body in bodies]
        return [self._read(body, done.result()) for body, done in zip(bodies, sent, strict=True)]

    def _read(self, body: Mapping[str, Any], found: Mapping[str, Any]) -> Reply:
        choice, used = found["choices"][0], found.get("usage") or {}
        message, ids = choice["message"], choice.get("token_ids")
        if ids and self._end is not None:
            open_ = len(ids) if thought_of(message) else 0  # 0: the prompt closed the thought
            thinking = ids.index(self._end) if self._end in ids else open_
        else:  # 0 where there is a thought: counted from a start marker that the prompt holds
            details = used.get("completion_tokens_details") or {}
            thinking = details.get("reasoning_tokens") or (None if thought_of(message) else 0)
        hard = hard_of(body)
        return Reply(
            reasoning=thought_of(message),
            answer=message.get("content") or None,
            finish=choice["finish_reason"],
            usage=Usage(used.get("prompt_tokens", 0), used.get("completion_tokens", 0), thinking),
            over=max(0, (thinking or 0) - hard) if hard is not None else 0,
        )

    def close(self) -> None:
        self.wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def thought_of(message: Mapping[str, Any]) -> str:
    """`reasoning`, which older servers and SGLang call `reasoning_content`."""
    return message.get("reasoning") or message.get("reasoning_content") or ""


def only_model(wire: Wire) -> str:
    """The name of the model that a server has."""
    names = [one["id"] for one in wire.get("/v1/models").get("data", ())]
    if len(names) != 1:
        raise ValueError(f"model: server {wire.url} serves {', '.join(names) or 'none'}; name one")
    return str(names[0])


def context_of(wire: Wire, model: str) -> int | None:
    """Longest prompt plus response; None where the server does not say.

    Raises:
        ValueError: it has no such model.
    """
    served = {one["id"]: one for one in wire.get("/v1/models").get("data", ())}
    if model not in served:
        known = ", ".join(served) or "none"
        raise ValueError(f"model: server {wire.url} has no '{model}'; it serves {known}")
    found = served[model].get("max_model_len")
    return None if found is None else int(found)


def end_id(wire: Wire, model: str, end: str) -> int | None:
    """The id of the end marker by the server's own tokenizer; None where it does not tell."""
    try:
        body = {"model": model, "prompt": end, "add_special_tokens": False}
        ids = wire.post("/tokenize", body).get("tokens") or []
    except ValueError:
        return None
    return int(ids[0]) if len(ids) == 1 else None
