"""What tests of exports share: a tokenizer of any text, chat templates of many habits, folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SPECIALS = ("<pad>", "<eos>", "<|user|>", "<|system|>", "<|assistant|>", "<|end|>")
EFFORTS = {
    "none": {"suffix": "<b1>"},
    "low": {"suffix": "<b2>"},
    "medium": {"suffix": "<b3>"},
    "high": {"suffix": "<b4>"},
}
"""How base/modes is asked."""

_TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
TEMPLATES = {
    "opens": _TURNS + "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}\n",
    "switch": (
        "\n   {%- for m in messages %}\n"
        "        {{- '<|' + m.role + '|>' + m.content|trim + '<|end|>' }}\n"
        "    {%- endfor %}\n"
        "{%- if add_generation_prompt %}\n"
        "    {{- '<|assistant|>\n' }}\n"
        "    {%- if enable_thinking is defined and enable_thinking is false %}\n"
        "        {{- '<think>\n\n</think>\n\n' }}\n"
        "    {%- endif %}\n"
        "{%- endif %}\n\n"
    ),
    "silent": _TURNS
    + "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined "
    "and enable_thinking %}<think>\n{% else %}<think>\n\n</think>{% endif %}{% endif %}",
    "indented": (
        "   {% set ns = namespace(system='') %}\n  {% if messages[0].role == 'system' %}\n"
        "  {% set ns.system = messages[0].content %}\n  {% set messages = messages[1:] %}\n"
        "  {% endif %}\n{% if ns.system %}<|system|>{{ ns.system }}{% endif %}\n"
        "{% for m in messages %}\n  {% if m.role == 'assistant' %}\n"
        "{% generation %}<|assistant|>{{ m.content.split('</think>')[-1] }}<|end|>"
        "{% endgeneration %}\n  {% else %}\n<|{{ m.role }}|>{{ m.content }}\n  {% endif %}\n"
        "{% endfor %}\n{% if add_generation_prompt %}<|assistant|>{% endif %}  "
    ),
    "macros": (
        "{% macro said(m) %}<|{{ m.role }}|>{{ m.content if m.content is string else "
        "m.content | map(attribute='text') | join }}{% endmacro %}"
        "{% macro all() %}{% for m in messages %}{{ said(m) }}{% endfor %}{% endmacro %}"
        "{{ all() }}{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
    ),
    "bare": "{% for m in messages %}{{ m.content }}{{ '<eos>' if m.role == 'assistant' }}"
    "{% endfor %}",
    "headed": "{% for m in messages %}{{ '<|system|>' if m.role == 'system' }}{{ m.content }}"
    "{{ '<|assistant|>' if m.role == 'user' else '<eos>' }}{% endfor %}",
    "native": (
        "{% if thinking_budget is defined and thinking_budget is not none %}<|system|>"
        "{{ thinking_budget }} tokens{% elif reasoning_effort is defined and reasoning_effort %}"
        "<|system|>{{ reasoning_effort }}{% endif %}"
        + _TURNS
        + "{%- if add_generation_prompt -%} <|assistant|> {%- endif -%}"
    ),
}
"""Whitespace at both ends, variables of their own, tags of transformers, macros, lists of parts."""


def tokenizer(template: str) -> Any:
    """One token a byte, so that it holds any text; markers are single ordinary tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<eos>",
        pad_token="<pad>",
        additional_special_tokens=list(SPECIALS[2:]),
    )
    markers = ("<think>", "</think>")
    made.add_tokens([AddedToken(m, normalized=False, special=False) for m in markers])
    made.chat_template = template
    return made


def folder(path: Path, template: str) -> Path:
    """A random model with that tokenizer, as save_pretrained writes it."""
    from tests.tiny import tiny_model

    made = tokenizer(template)
    sizes = {"vocab_size": len(made), "head_dim": 32}  # the least that vLLM's CPU build takes
    model = tiny_model(eos_token_id=made.eos_token_id, **sizes)
    model.save_pretrained(path)
    made.save_pretrained(path)
    return path
