"""What a tokenizer and its chat template do, found by rendering: no model is needed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from samplers import render
from samplers.budget import Asks, asks_of
from samplers.budgets import base
from samplers.budgets.base import Asking
from samplers.render import Renderer, ThinkingConfig
from samplers.types import Ids, Plan, Prompt

NUMBERS = (512, 37)
"""Budgets that a template must tell apart to be one that reads them."""
_PROBE = Prompt(0, "probe", ({"role": "user", "content": "1"},), "", "", "")


def load(path: str, thinking: ThinkingConfig | None, trust_remote_code: bool = False) -> Renderer:
    """The renderer of a folder; of several named templates, with the one called default.

    Raises:
        ValueError: as `render.load`, or no template is called default.
    """
    made = render.load(path, thinking, trust_remote_code)
    named = made.tokenizer.chat_template
    if not isinstance(named, dict):
        return made
    if "default" not in named:
        raise ValueError(
            f"'{path}' has chat templates {', '.join(named)} and none called default; keep one, as "
            "chat_template.jinja"
        )
    made.tokenizer.chat_template = named["default"]
    return Renderer(made.tokenizer, thinking, made.eos_ids)


def native(renderer: Renderer) -> Asks:
    """What the chat template itself lets be asked, so far as it has an effect."""
    asks = asks_of(renderer)
    efforts = {n: a for n, a in asks.efforts.items() if _heeded(renderer, a, None)}
    said = asks.budget
    if said is not None and not all(_heeded(renderer, said, number) for number in NUMBERS):
        said = None
    return Asks(budget=said, efforts=efforts)


def _heeded(renderer: Renderer, asking: Asking, number: int | None) -> bool:
    try:
        rendered(renderer, base.announce(asking.model_copy(update={"max_tokens": 1}), number))
    except ValueError:
        return False
    return True


def rendered(renderer: Renderer, plan: Plan, prompt: Prompt = _PROBE) -> Ids:
    """Prompt ids with the plan's prefill behind them: all that the model is given.

    Raises:
        ValueError: a text that the vocabulary or the template cannot hold, or without effect.
    """
    ids = renderer.render(prompt, plan)
    return np.concatenate([ids, renderer.encode(plan.prefill)]) if plan.prefill else ids


def closing(renderer: Renderer, plan: Plan) -> str | None:
    """What begins a response to `plan` so that it has no thought: the end marker, where needed.

    None for a model without thinking markers.
    """
    thinking = renderer.thinking
    if thinking is None:
        return None
    if renderer.closed(rendered(renderer, plan)):
        return plan.prefill
    begun = generation_prompt(renderer.tokenizer, plan.template) + plan.prefill
    opened = begun.rfind(thinking.start) > begun.rfind(thinking.end)
    return plan.prefill + ("" if opened else thinking.start) + thinking.end


def generation_prompt(tokenizer: Any, arguments: Mapping[str, Any] | None = None) -> str:
    """What a chat template writes before a response."""
    with_it, without = (
        tokenizer.apply_chat_template(
            list(_PROBE.messages), add_generation_prompt=add, tokenize=False, **(arguments or {})
        )
        for add in (True, False)
    )
    return with_it.removeprefix(without) if with_it.startswith(without) else ""


def end_of_turn(tokenizer: Any) -> int | None:
    """The special token that ends an assistant's turn in the template, if there is one."""
    talk = [*_PROBE.messages, {"role": "assistant", "content": "1"}]
    try:
        text = tokenizer.apply_chat_template(talk, tokenize=False)
        behind = tokenizer(text.rpartition("1")[2].lstrip(), add_special_tokens=False)["input_ids"]
    except Exception:  # templates that refuse such a talk
        return None
    added = getattr(tokenizer, "added_tokens_decoder", {})
    token = added.get(behind[0]) if behind else None
    return behind[0] if token is not None and token.special else None


def response_template(renderer: Renderer) -> dict[str, Any]:
    """How transformers (5.16 on) and vLLM's `--reasoning-parser hf` take a response apart."""
    tokenizer, thinking = renderer.tokenizer, renderer.thinking
    ends = list(dict.fromkeys(tokenizer.decode([i]) for i in renderer.eos_ids))
    fields: dict[str, Any] = {"content": {"close": ends, "content": "text"}}
    begun = generation_prompt(tokenizer) or _behind_user(tokenizer)
    anchor = {"start_anchor": begun}
    if thinking is not None:
        shape = {"open": thinking.start, "close": thinking.end, "content": "text"}
        fields = {"thinking": shape, **fields}
        anchor = {"start_anchor": begun.partition(thinking.start)[0]}
    if not anchor["start_anchor"].strip():  # nothing marks where a response begins
        mark = re.escape(thinking.start) if thinking is not None else "(?!)"
        anchor = {"start_anchor_pattern": rf"(?={mark})|(?<!{mark}.*)\Z"}
    return {"version": 1, "defaults": {"role": "assistant"}, **anchor, "fields": fields}


def _behind_user(tokenizer: Any) -> str:
    """What follows a user's text, in templates that write the same in any case."""
    said = "@@user@@"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": said}], add_generation_prompt=True, tokenize=False
    )
    return str(text).rpartition(said)[2]
