"""The model card of an exported model: what it obeys, what was measured, commands to paste."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trainer.export import measured

_ROOM = 256
"""Thinking tokens of the examples where training knew no budget."""


def text(said: Mapping[str, Any]) -> str:
    """README.md for a budget_config.json."""
    parts = [
        _front(said),
        f"# {said['source']['name']}\n",
        _about(said),
        _table(said),
        _asking(said),
        _vllm(said),
        _sglang(said),
        _transformers(said),
        _unverified(said),
    ]
    return "\n".join(part for part in parts if part)


def _front(said: Mapping[str, Any]) -> str:
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    base = said["source"]["base_model"]
    if base is not None and "/" in base and not base.startswith("base/"):
        lines.append(f"base_model: {base}")
    return "\n".join([*lines, "tags:", "- reasoning", "- thinking-budget", "- laconic", "---", ""])


def _about(said: Mapping[str, Any]) -> str:
    base, step = said["source"]["base_model"], said["source"]["step"]
    lines = ["A reasoning model that can be told how much to think. Exported by `laconic export`"]
    if step is not None:
        lines[0] += f" at step {step}"
    lines[0] += "." if base is None else f"; training began with `{base}`."
    if said["source"]["adapter"]:
        lines.append("Its LoRA adapter lies in `adapter/`; the weights here have it merged.")
    trained = said["trained"] or {}
    if trained.get("budgets"):
        lines.append(f"Thinking budgets in training: `{json.dumps(trained['budgets'])}`.")
    for name, where in (("system", "System message"), ("suffix", "Text after every user message")):
        if trained.get(name):
            lines.append(f"{where} of its training data, which the caller adds: {trained[name]!r}.")
    return "\n".join(lines) + "\n"


def _table(said: Mapping[str, Any]) -> str:
    found = said["measured"]
    if found is None:
        return "## Measured\n\nNothing: no evaluation came with this export (`--eval FOLDER`).\n"
    settings = {k: v for k, v in found["settings"].items() if isinstance(v, str | int | float)}
    where = ", ".join(f"{name} {value}" for name, value in settings.items())
    at = f" at step {found['step']}" if "step" in found else ""
    lines = ["## Measured", "", measured.markdown(found["rows"]), ""]
    lines.append(f"Brackets are 95% intervals over problems. Measured{at} ({where}).")
    if any(row["how"] == "cut" and row["budget"] != "inf" for row in found["rows"]):
        lines.append(
            "Where a thought is *cut*, the prompt says nothing of a budget and the thought is "
            "closed by force at that many tokens."
        )
    return "\n".join(lines) + "\n"


def _asking(said: Mapping[str, Any]) -> str:
    thinks, asks = said["thinking"] is not None, said["asks"]
    efforts, number = list(asks.get("efforts", {})), asks.get("budget") is not None
    rows = ["| argument of the chat template | values |", "|---|---|"]
    off = "`false`: no thinking; `true`, or left out: as the others say"
    rows.append(f"| `enable_thinking` | {off if thinks else '`false`: it never thinks'} |")
    allowed = "`-1`: no limit" + ("; `0`: no thinking" if thinks else "")
    allowed += "; a number of tokens, told to the model" if number else "; no other number"
    rows.append(f"| `thinking_budget` | {allowed} |")
    shown = ", ".join(f"`{name}`" for name in efforts) or "none of them"
    rows.append(f"| `reasoning_effort` | {shown} |")
    rules = (
        "The first that is given counts, in this order. Anything else is refused (HTTP 400 from "
        "vLLM) rather than ignored."
    )
    if number:
        learnt = (said["trained"] or {}).get("budgets")
        rules += " The model was trained to keep to the number." if learnt else ""
        rules += (
            " Nothing forces the model to keep to it: a hard limit is the engine's (below). "
            "Send both."
        )
    return "\n".join(["## Asking for a budget", "", *rows, "", rules, ""])


def _request(said: Mapping[str, Any]) -> dict[str, Any]:
    """What a client sends besides the messages: soft and hard budget, and room for the answer."""
    efforts = [e for e in said["asks"].get("efforts", {}) if e != "none"]
    budget, extra = _example(said), dict[str, Any]()
    if said["asks"].get("budget") is not None:
        extra["chat_template_kwargs"] = {"thinking_budget": budget}
    elif efforts:
        extra["reasoning_effort"] = "low" if "low" in efforts else efforts[0]
    if said["thinking"] is None:
        return {**extra, "max_tokens": said["answer_reserve"]}
    return {
        **extra,
        "thinking_token_budget": budget,
        "max_tokens": budget + 1 + said["answer_reserve"],
    }


def _example(said: Mapping[str, Any]) -> int:
    budgets = (said["trained"] or {}).get("budgets")
    if isinstance(budgets, Mapping):
        return (int(budgets["low"]) + int(budgets["high"])) // 2
    if budgets:
        return int(budgets[len(budgets) // 2])
    return min(_ROOM, int(said["sampling"].get("max_new_tokens", 2 * _ROOM)) // 2)


def serve(said: Mapping[str, Any]) -> str:
    """Flags of vLLM's server that this model needs."""
    return "" if said["thinking"] is None else " --reasoning-parser hf"


def _vllm(said: Mapping[str, Any]) -> str:
    body = {"model": "MODEL", "messages": [{"role": "user", "content": "..."}], **_request(said)}
    shown = json.dumps(body, indent=1).replace("'", "'\\''")
    known = ("reasoning_effort", "max_tokens")
    named = {k: v for k, v in _request(said).items() if k in known}
    extra = {k: v for k, v in _request(said).items() if k not in known}
    arguments = "".join(f"    {name}={value!r},\n" for name, value in named.items())
    if extra:
        arguments += f"    extra_body={extra!r},\n"
    return f"""## vLLM

```bash
vllm serve MODEL{serve(said)}

curl http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{shown}'
```

`thinking_token_budget` is the hard limit, at which the engine closes the thought; it stands at the
top of the request, never in `chat_template_kwargs`, where it would be ignored. vLLM keeps no room
for the answer: `max_tokens` has to (limit + 1 + {said["answer_reserve"]} here).

```python
from openai import OpenAI

client = OpenAI(base_url="http://localhost:8000/v1", api_key="none")
reply = client.chat.completions.create(
    model="MODEL",
    messages=[{{"role": "user", "content": "..."}}],
{arguments})
print(reply.choices[0].message.reasoning, reply.choices[0].message.content)
```
"""


def _sglang(said: Mapping[str, Any]) -> str:
    if said["thinking"] is None:
        return ""
    body = {"model": "MODEL", "messages": [{"role": "user", "content": "..."}], **_request(said)}
    body["custom_params"] = {"thinking_budget": body.pop("thinking_token_budget")}
    shown = json.dumps(body, indent=1).replace("'", "'\\''")
    return f"""## SGLang

```bash
python -m sglang.launch_server --model-path MODEL --reasoning-parser deepseek-r1 \\
    --enable-strict-thinking

curl http://localhost:30000/v1/chat/completions -H 'Content-Type: application/json' -d '{shown}'
```
"""


def _transformers(said: Mapping[str, Any]) -> str:
    request = _request(said)
    asked = dict(request.get("chat_template_kwargs", {}))
    if "reasoning_effort" in request:
        asked["reasoning_effort"] = request["reasoning_effort"]
    told = "".join(f", {name}={value!r}" for name, value in asked.items())
    return f"""## transformers

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("MODEL")
model = AutoModelForCausalLM.from_pretrained("MODEL", dtype="auto")
messages = [{{"role": "user", "content": "..."}}]
prompt = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"{told}
)
out = model.generate(**prompt, max_new_tokens={request["max_tokens"]})
ids = prompt["input_ids"][0]
print(tokenizer.parse_response(out[0, len(ids):], prefix=ids))
```

`generate` knows no hard limit of thinking; `laconic generate MODEL "..." --thinking-budget N` does.
"""


def _unverified(said: Mapping[str, Any]) -> str:
    lines = [
        "- Whether it works on your machine: `laconic export MODEL --check` tries the template, "
        "parsing, transformers and (where it is installed) vLLM.",
        "- The SGLang command was never run: flags and fields are read from its source (0.5.23).",
        "- Chat templates other than Jinja2's own (llama.cpp) have not been tried.",
    ]
    if said["after_close"]:
        lines.append(
            f"- Training put {said['after_close']!r} after every end of a thought; servers do not."
        )
    if said["limits"]:
        limits = json.dumps(said["limits"])
        lines.append(f"- Training closed thoughts by force in modes: `{limits}`; servers do not.")
    return "\n".join(["## What nobody verified", "", *lines, ""])
