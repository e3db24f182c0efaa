"""Small random models and a tokenizer, built on the spot: what tests share, no files needed."""

from __future__ import annotations

from typing import Any

CHARS = "0123456789+-*=ABCDEFGH.!rwT;?:~ \n"
SPECIALS = ("<pad>", "<eos>", "<user>", "<system>", "<assistant>")
MARKERS = ("<think>", "</think>")

CHAT_TEMPLATE = (
    "{%- for m in messages -%}"
    "{%- if m.role == 'system' %}<system>{{ m.content }}{% endif -%}"
    "{%- if m.role == 'user' %}<user>{{ m.content }}{% endif -%}"
    "{%- if m.role == 'assistant' %}<assistant>{{ m.content }}<eos>{% endif -%}"
    "{%- endfor -%}"
    "{%- if effort is defined %}{{ effort }}~{% endif -%}"
    "{%- if add_generation_prompt %}<assistant>{% if enable_thinking is not defined "
    "or enable_thinking %}<think>{% else %}<think></think>{% endif %}{% endif -%}"
)


def tiny_tokenizer(markers: bool = True, template: str | None = CHAT_TEMPLATE) -> Any:
    """One character, one token; the markers are single ordinary (not special) tokens.

    `template` understands `enable_thinking` and `effort`, and opens the thought. Without
    `markers`, '<think>' is unknown to the tokenizer.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIALS, *(MARKERS if markers else ()), *CHARS]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="~"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="~",
        additional_special_tokens=list(SPECIALS[2:]),
    )
    if markers:
        tokenizer.add_tokens([AddedToken(m, normalized=False, special=False) for m in MARKERS])
    tokenizer.chat_template = template
    return tokenizer


def tiny_model(
    arch: str = "qwen3", tied: bool = True, seed: int = 0, dtype: str = "float32", **sizes: Any
) -> Any:
    """A random causal LM in eval mode. arch: qwen3, llama, gpt2, or any transformers model type.

    `sizes` overrides config fields by their usual names (hidden_size, num_hidden_layers, ...).
    Spread-out weights (std 0.3) keep the next-token distribution far from uniform.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    vocab = len(SPECIALS) + len(MARKERS) + len(CHARS)
    fields: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
    }
    if arch == "gpt2":
        fields = {"vocab_size": vocab, "n_embd": 32, "n_layer": 2, "n_head": 4}
        fields |= {"n_positions": 256, "initializer_range": 0.3}
    fields |= {"tie_word_embeddings": tied, "bos_token_id": None, "eos_token_id": 1}
    config = AutoConfig.for_model(arch, **(fields | sizes))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # as from_pretrained: buffers stay fp32
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return model.eval()
