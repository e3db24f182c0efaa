"""The tiny reasoner of task find: how the shipped `base/fresh` was made.

Small enough to learn the task in minutes on one core, and an ordinary transformers folder: every
other part of the library treats it like any model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samplers.tasks import _chains as chains

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}<think>{{ message.content }}<eos>"
    "{% else %}{{ message.content }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<think>{% endif %}"
)


def tokenizer() -> Any:
    """One token per character. The thinking markers are not special, so decoding keeps them."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(chains.VOCABULARY)}
    core = Tokenizer(models.WordLevel(vocabulary))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([chains.PAD, chains.EOS])
    markers = [t for t in chains.VOCABULARY if len(t) > 1 and t not in (chains.PAD, chains.EOS)]
    core.add_tokens([AddedToken(t, special=False, normalized=False) for t in markers])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=chains.PAD,
        eos_token=chains.EOS,
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def build(folder: str | Path) -> Path:
    """Write `base/fresh` to `folder`: tokenizer and a configuration of 0.3 M parameters.

    3 layers of width 96, 3 query heads that share one key head, tied embeddings. Weights are
    drawn when it is trained (`trainer/fresh.py`).
    """
    from transformers import Qwen3Config

    config = Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=len(chains.VOCABULARY),
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=32,
        intermediate_size=256,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        initializer_range=0.05,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=chains.VOCABULARY.index(chains.EOS),
        pad_token_id=chains.VOCABULARY.index(chains.PAD),
        dtype="float32",
    )
    config.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return Path(folder)
