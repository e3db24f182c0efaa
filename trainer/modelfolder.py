"""What a model's folder says of itself, read without loading the model: json and tokenizer files.

The preflight checks and `laconic plan` read it; neither needs torch or transformers.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from trainer import checkpoint

SHIPPED = Path(__file__).resolve().parent.parent / "recipes"
FACTS = SHIPPED / "models"
CONTEXT = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")
GENERATION = "generation_config.json"
WHOLE, STEP, PIECE = 1 << 26, 1 << 22, 1 << 16
"""Bytes: a file up to WHOLE is hashed whole; of a larger one the end, and PIECE of every STEP."""
WEIGHTS = ("*.safetensors",)
PICKLED = "pytorch_model*.bin"
CONFIG = ("config.json", GENERATION)
TOKENIZER = (
    *("tokenizer*", "chat_template*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab*", "merges.txt", "spiece.model"),
)
SAID_BY = (*WEIGHTS, "config.json", "tokenizer.json")
"""Files that decide what a model says."""
CONVERT = (
    "files of pickles are never loaded: choose another model, or convert one that you trust, once: "
    "AutoModelForCausalLM.from_pretrained(it).save_pretrained(folder), and its tokenizer"
)
SMALL_FILES = ["*.json", "*.jinja", "tokenizer.model"]
ALL_FILES = [*SMALL_FILES, "*.safetensors", "*.py"]


def fetch(name: str) -> Path:
    """The folder of model `name` with its weights, downloaded where it has to be.

    Raises:
        ValueError: as `locate`, or a hub model without weights.
    """
    folder = locate(name, download=True)
    assert folder is not None
    if Path(name).expanduser().is_dir() or (SHIPPED / name).is_dir():
        return folder
    from huggingface_hub import snapshot_download

    snapshot = Path(snapshot_download(name, allow_patterns=ALL_FILES))
    if not any(snapshot.glob(WEIGHTS[0])):  # a folder without weights would be drawn at random
        raise ValueError(f"model.path: '{name}' holds no *.safetensors on the hub; {CONVERT}")
    return snapshot


def fingerprint(folder: Path, kinds: Sequence[str] = SAID_BY) -> str:
    """Of the files that decide what a model says: its weights, config and tokenizer; or of others.

    Large files are sampled throughout: fine-tunes that changed the middle layers alone, which are
    no longer and begin and end alike, have others.
    """
    found = hashlib.blake2b(digest_size=8)
    for path in sorted({path for kind in kinds for path in folder.glob(kind) if path.is_file()}):
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as stream:
            if size <= WHOLE:
                found.update(stream.read())
                continue
            for start in (*range(0, size - PIECE, STEP), size - PIECE):
                stream.seek(start)
                found.update(stream.read(PIECE))
    return found.hexdigest()


def locate(name: str, *, download: bool = False) -> Path | None:
    """The folder of model `name`: a folder, one shipped under recipes/, or a hub name.

    A run's folder stands for the model of its newest checkpoint.

    A hub name is looked up in the local cache; with `download` its small files (everything but
    the weights) are fetched. None: a hub name of which nothing is here yet.

    Raises:
        ValueError: nothing of that name, with the nearest folder that exists; or its weights are
            pickled.
    """
    path = Path(name).expanduser()
    for folder in (path, SHIPPED / name):
        if folder.is_dir():
            return _of_weights(_of_run(folder))
    org = name.split("/")[0]
    hub = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name)
    if hub and not Path(org).is_dir() and not (SHIPPED / org).is_dir():
        return _cached(name, download)
    raise ValueError(
        f"model.path: no folder '{name}'{_nearest(path)}; give a folder with config.json and "
        "weights, a shipped model (base/find), or a hub name (org/name)"
    )


def facts(name: str) -> Path | None:
    """A folder that holds the config.json of hub model `name` and nothing else, as we ship it for
    some: enough for a plan where the model itself is not."""
    folder = FACTS / name
    return folder if (folder / "config.json").is_file() else None


def _of_run(folder: Path) -> Path:
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        return _of_adapter(folder)
    checkpoints = folder / "checkpoints"
    if (folder / "config.json").is_file() or not checkpoints.is_dir():
        return folder
    newest = checkpoint.newest(checkpoints)
    if newest is None:
        raise ValueError(
            f"model.path: run '{folder}' has no complete checkpoint yet; let it finish"
        )
    return newest / "model"


def _of_weights(folder: Path) -> Path:
    """One with safetensors; one without any weights is begun with random ones."""
    if any(folder.glob(PICKLED)) and not any(folder.glob(WEIGHTS[0])):
        raise ValueError(f"model.path: '{folder}' has weights only as {PICKLED}; {CONVERT}")
    return folder


def _of_adapter(folder: Path) -> Path:
    """The merged model that our own adapters lie in."""
    if (folder.parent / "config.json").is_file():
        return folder.parent
    base = _json(folder / "adapter_config.json").get("base_model_name_or_path")
    raise ValueError(
        f"model.path: '{folder}' holds an adapter of '{base}' and no model; merge it first: "
        "peft.AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload()"
        ".save_pretrained(merged), and copy the tokenizer there"
    )


def _cached(name: str, download: bool) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(
            snapshot_download(name, allow_patterns=SMALL_FILES, local_files_only=not download)
        )
    except LocalEntryNotFoundError:
        if not download:
            return None
        raise ValueError(
            f"model.path: '{name}' is no folder here and the hub cannot be reached; download it "
            "first, or give a folder"
        ) from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"model.path: '{name}' is neither a folder here nor a model on the hub; check the "
            "spelling, or log in if it is private"
        ) from None


def _nearest(path: Path) -> str:
    """', did you mean X?' with the nearest model folder beside where `path` should be."""
    beside = [p for p in path.parent.glob("*/") if (p / "config.json").is_file()]
    known = [str(p) for p in beside]
    known += [str(p.parent.relative_to(SHIPPED)) for p in SHIPPED.glob("*/*/config.json")]
    near = difflib.get_close_matches(str(path), known, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


@dataclass(frozen=True)
class ModelFolder:
    """One model's files. Everything is read when asked for."""

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json; the text part of a model that also has others.

        Raises:
            ValueError: missing or broken.
        """
        raw = _json(self.path / "config.json")
        text = raw.get("text_config")
        return {**raw, **text} if isinstance(text, dict) else raw

    @cached_property
    def generation(self) -> dict[str, Any]:
        """generation_config.json; {} where there is none.

        Raises:
            ValueError: broken.
        """
        file = self.path / GENERATION
        return _json(file) if file.is_file() else {}

    @property
    def causal(self) -> bool:
        """Generates text from left to right, as far as config.json says."""
        kinds = self.config.get("architectures") or []
        ends = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
        known = not kinds or any(str(kind).endswith(ends) for kind in kinds)
        return known and not self.config.get("is_encoder_decoder", False)

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens; None where config.json does not say."""
        found = (self.config.get(key) for key in CONTEXT)
        return next((int(value) for value in found if value), None)

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja text, or None."""
        file = self.path / "chat_template.jinja"
        if file.is_file():
            return file.read_text()
        for name in ("chat_template.json", "tokenizer_config.json"):
            if (self.path / name).is_file():
                template = _json(self.path / name).get("chat_template")
                if template:
                    return template if isinstance(template, str) else json.dumps(template)
        return None

    def opens(self, marker: str) -> bool | None:
        """Whether the chat template ends its generation prompt with `marker`; None: cannot tell.

        A preview for people: what is trained on is rendered by the tokenizer (samplers/render.py).
        """
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        jinja = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        talk = [{"role": "user", "content": "1"}]
        try:
            template = jinja.from_string(self.chat_template or "")
            text = template.render(messages=talk, add_generation_prompt=True)
        except (TemplateError, TypeError):  # it wants more than a preview has
            return None
        return text.rstrip().endswith(marker)

    @cached_property
    def tokenizer(self) -> Any:
        """A `tokenizers.Tokenizer`, or None where there is no tokenizer.json."""
        from tokenizers import Tokenizer

        file = self.path / "tokenizer.json"
        if not file.is_file():
            return None
        try:
            return Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(
                f"{file}: cannot be read ({error}); save the tokenizer again"
            ) from None

    def tokens(self, text: str) -> int | None:
        """How many tokens `text` is; None where there is no tokenizer.json.

        Raises:
            ValueError: the vocabulary lacks something in it and has no token for the unknown.
        """
        if self.tokenizer is None:
            return None
        try:
            return len(self.tokenizer.encode(text, add_special_tokens=False).ids)
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(
                f"the tokenizer of {self.path} cannot represent {text[:60]!r} ({error}); use a "
                "model that knows these characters"
            ) from None

    def knows(self, text: str) -> bool:
        """Whether `text` is one token of the vocabulary."""
        assert self.tokenizer is not None
        token = self.tokenizer.token_to_id(text)
        return token is not None and self.tokenizer.encode(text, add_special_tokens=False).ids == [
            token
        ]

    @cached_property
    def parameters(self) -> int | None:
        """Number of weights: exact from safetensors headers, else estimated from config.json."""
        return None if self.shapes is None else sum(map(prod, self.shapes.values()))

    @property
    def shapes(self) -> dict[str, list[int]] | None:
        """Name -> shape of every weight: as `stored`, else as config.json lets expect."""
        return self.stored or self._expected()

    @cached_property
    def stored(self) -> dict[str, list[int]] | None:
        """Name -> shape of every weight, from safetensors headers; None without such files."""
        files = sorted(self.path.glob("*.safetensors"))
        return {name: shape for file in files for name, shape in _shapes(file)} or None

    def _expected(self) -> dict[str, list[int]] | None:
        """A decoder with gated MLP and grouped heads (Llama, Qwen, Mistral, ...)."""
        config = self.config
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        if not all(config.get(name) for name in (*names, "vocab_size")):
            return None  # a family that names its sizes otherwise
        width, layers, heads, ffn = (int(config[name]) for name in names)
        head = config.get("head_dim") or width // heads
        kv = config.get("num_key_value_heads") or heads
        layer = {
            "self_attn.q_proj": [heads * head, width],
            "self_attn.k_proj": [kv * head, width],
            "self_attn.v_proj": [kv * head, width],
            "self_attn.o_proj": [width, heads * head],
            "mlp.gate_proj": [ffn, width],
            "mlp.up_proj": [ffn, width],
            "mlp.down_proj": [width, ffn],
            "input_layernorm": [width],
            "post_attention_layernorm": [width],
        }
        kind = config.get("model_type")
        if kind == "qwen3":
            layer |= {"self_attn.q_norm": [head], "self_attn.k_norm": [head]}
        biased = ["q_proj", "k_proj", "v_proj"] if kind == "qwen2" else []
        if config.get("attention_bias"):
            biased = ["q_proj", "k_proj", "v_proj", "o_proj"]
        biases = {name: layer[name][:1] for name in (f"self_attn.{one}" for one in biased)}
        out = {"model.embed_tokens.weight": [int(config["vocab_size"]), width]}
        for i in range(layers):
            out |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
            out |= {f"model.layers.{i}.{name}.bias": shape for name, shape in biases.items()}
        out["model.norm.weight"] = [width]
        if not config.get("tie_word_embeddings"):
            out["lm_head.weight"] = out["model.embed_tokens.weight"]
        return out

    def kv_bytes_per_token(self, bytes_each: int) -> int | None:
        """Key/value cache of one token, all layers; None for families that name sizes otherwise."""
        get = self.config.get
        layers = get("num_hidden_layers") or get("n_layer")
        heads = get("num_attention_heads") or get("n_head")
        width = get("hidden_size") or get("n_embd")
        if not (layers and heads and width):
            return None
        kv = get("num_key_value_heads") or heads
        return 2 * layers * kv * (get("head_dim") or width // heads) * bytes_each


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"model.path: {file.parent} has no {file.name}; give a folder as save_pretrained "
            "writes it"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: broken JSON ({error}); save the model again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file}: expected a JSON object; got {type(value).__name__}")
    return value


def _shapes(file: Path) -> Iterator[tuple[str, list[int]]]:
    """Names and shapes of a safetensors file, from its header (8-byte length, then JSON)."""
    with file.open("rb") as stream:
        try:
            (size,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(size))
        except (struct.error, ValueError, MemoryError, OverflowError):
            raise ValueError(f"{file}: not a safetensors file; download or save it again") from None
    yield from ((name, e["shape"]) for name, e in header.items() if name != "__metadata__")
