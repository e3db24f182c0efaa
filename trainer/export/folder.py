"""Writing an exported model: a Hugging Face folder that is told of budgets by its chat template."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from samplers.budget import Asks
from samplers.budgets.base import BUDGET, Asking
from samplers.render import Renderer, ThinkingConfig
from trainer.export import (
    FILE,
    VERSION,
    card,
    check,
    measured,
    probe,
    read,
    source,
    template,
    ways,
)
from trainer.export.source import Source
from trainer.export.ways import NONE, Ways
from trainer.lora import ADAPTER
from trainer.modelfolder import ModelFolder

COPIED = ("*.json", "*.model", "*.txt", "*.safetensors", "*.py")
_REPLACED = (FILE, "chat_template.json", "trainer_state.json", "training_args.json")
RESERVE = 1024
"""Tokens left for an answer where neither training nor evaluation limited it."""


@dataclass(frozen=True, slots=True)
class Made:
    """An export that was planned: everything but the files."""

    source: Source
    renderer: Renderer
    """Of the source, with its own template: as training renders."""
    ways: Ways
    closing: str | None
    template: str
    measured: dict[str, Any] | None
    thinking: ThinkingConfig | None
    """Markers that were given for a model without a run."""


def export(
    name: str,
    out: Path,
    *,
    thinking: ThinkingConfig | None = None,
    lora: Literal["merged", "beside"] = "merged",
    ask: Any = None,
    efforts: Any = None,
    evaluation: Path | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Write the model `name` (a run, a checkpoint, a model folder, a hub name) as folder `out`.

    Args:
        thinking: markers of a model without a run; None: it does not think.
        lora: `beside` also copies the adapter that the run left beside the merged weights.
        ask: how a number is announced, `{suffix: ";{budget}"}`; instead of the run's way.
        efforts: effort -> texts, a number, or the name of a mode; beside the run's modes.
        evaluation: folder of an evaluation whose table goes along; None: the run's last one.

    Raises:
        ValueError: one line each, before anything is written: a source without weights or
            template, an `out` that is something else, texts that the vocabulary cannot hold or
            that have no effect, ways of asking that are none.
    """
    found = source.find(name)
    source.room(out, found, read)
    if lora == "beside" and found.adapter is None:
        raise ValueError(
            f"--lora beside: {found.name} has no adapter beside its weights; train with "
            "model.lora.export=beside, or export it merged"
        )
    trust = trust_remote_code or (found.stage is not None and found.stage.model.trust_remote_code)
    made = plan(found, thinking, ask, efforts, evaluation, trust)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        partial.chmod(0o755)
        said = _write(made, partial, lora, trust)
        _as_in_training(made, partial, said)
        _swap(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def plan(
    found: Source,
    thinking: ThinkingConfig | None,
    ask: Any,
    efforts: Any,
    evaluation: Path | None,
    trust_remote_code: bool = False,
) -> Made:
    """Everything that is known before a file is written.

    Raises:
        ValueError: as `export`.
    """
    renderer = _renderer(found, thinking, trust_remote_code)
    own = ways.of_stage(found.stage) if found.stage is not None else Ways()
    asked = ways.by_hand(ways.with_native(own, probe.native(renderer)), ask, efforts)
    if renderer.thinking is None:  # it has no thought to leave out
        asked = replace(asked, efforts={n: a for n, a in asked.efforts.items() if n != NONE})
    _heeded(asked, renderer)
    closing = probe.closing(renderer, asked.plan(NONE, RESERVE))
    if asked.budget is None and not asked.efforts:
        warnings.warn(
            f"nothing tells {found.name} of a budget: its template will take "
            f"{'no budget at all' if closing is None else 'no thinking (0) alone'}; say how it is "
            "asked with --ask and --efforts",
            stacklevel=3,
        )
    if asked.after_close:
        warnings.warn(
            f"training put {asked.after_close!r} after every end marker, which engines do not; "
            "answers of this model may suffer where no client adds it",
            stacklevel=3,
        )
    if found.stage is not None and not found.stage.data.chat:
        warnings.warn(
            f"{found.name} was trained on plain text (data.chat=false), and is exported with a "
            "chat template that it never saw",
            stacklevel=3,
        )
    table = measured.of_folder(evaluation) if evaluation is not None else None
    return Made(
        found,
        renderer,
        asked,
        closing,
        template.wrap(renderer.tokenizer.chat_template, asked, closing, renderer.variables),
        table or measured.of_run(found.run, found.step),
        thinking,
    )


def _renderer(found: Source, thinking: ThinkingConfig | None, trust: bool) -> Renderer:
    renderer = probe.load(str(found.model), found.thinking(thinking), trust)
    markers = renderer.thinking
    added = getattr(renderer.tokenizer, "added_tokens_decoder", {})
    for marker in (markers.start_id, markers.end_id) if markers else ():
        if marker in added and added[marker].special:
            warnings.warn(
                f"the marker {added[marker].content!r} is a special token: engines leave it out of "
                "texts unless skip_special_tokens is false, and then find no thought",
                stacklevel=4,
            )
    return renderer


def _heeded(asked: Ways, renderer: Renderer) -> None:
    """Raise ValueError for a way that this model's template or vocabulary cannot say, or that
    changes nothing: a budget without effect is an error."""
    plain = probe.rendered(renderer, asked.plan("default", RESERVE)).tolist()
    seen = {}
    if asked.budget is not None:
        first, second = (
            probe.rendered(renderer, asked.plan("budget", RESERVE, n)).tolist()
            for n in probe.NUMBERS
        )
        if first == second:
            raise ValueError(
                f"--ask: the prompt is the same for {probe.NUMBERS[0]} and {probe.NUMBERS[1]} "
                f"tokens; put {BUDGET} where the chat template shows it"
            )
        seen["thinking_budget"] = first
    for name in asked.efforts:
        seen[name] = probe.rendered(renderer, asked.plan(name, RESERVE)).tolist()
    same = [name for name, ids in seen.items() if ids == plain and name != NONE]
    if len(same) > 1:  # one may be the default
        raise ValueError(
            f"--efforts: {', '.join(same)} ask in the same way, which is the default's; give each "
            "a text of its own"
        )


# Files


def _write(made: Made, folder: Path, lora: str, trust: bool) -> dict[str, Any]:
    model = made.source.model
    for pattern in COPIED:
        for file in model.glob(pattern):
            if file.name not in _REPLACED:
                shutil.copy2(file.resolve(), folder / file.name)
    if not any(folder.glob("*.safetensors")):
        _resaved(model, folder, trust)
    if lora == "beside" and made.source.adapter is not None:
        shutil.copytree(made.source.adapter, folder / ADAPTER)
    (folder / "chat_template.jinja").write_text(made.template, encoding="utf-8")
    _tokenizer_config(made, folder / "tokenizer_config.json")
    _unknown(folder / "tokenizer.json", made.renderer.tokenizer.pad_token)
    sampling = _generation_config(made, folder / "generation_config.json")
    said = budget_config(made, sampling, folder)
    (folder / FILE).write_text(_json(said), encoding="utf-8")
    (folder / "README.md").write_text(card.text(said), encoding="utf-8")
    return said


def _as_in_training(made: Made, folder: Path, said: dict[str, Any]) -> None:
    """Raise ValueError unless the folder renders every mode to the ids of training."""
    config = made.source.thinking(made.thinking)
    try:
        check.same_ids(probe.load(str(folder), config), made.renderer, said)
    except ValueError as error:
        raise ValueError(
            f"the exported chat template renders other ids than training: {error}; a prefill has "
            "to begin where a token does, and a template to be one of messages"
        ) from None


def _resaved(model: Path, folder: Path, trust: bool) -> None:
    """An older model's weights as safetensors."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto", trust_remote_code=trust)
    loaded.save_pretrained(folder)


def _swap(partial: Path, out: Path) -> None:
    """`partial` becomes `out`; a former export stays until the new one is there."""
    if not out.exists():
        partial.rename(out)
        return
    former = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    out.rename(former / "former")
    try:
        partial.rename(out)
    except OSError:
        (former / "former").rename(out)
        raise
    finally:
        shutil.rmtree(former, ignore_errors=True)


def _tokenizer_config(made: Made, file: Path) -> None:
    config = json.loads(file.read_text()) if file.is_file() else {}
    config.pop("chat_template", None)  # chat_template.jinja says it
    config["response_template"] = probe.response_template(made.renderer)
    file.write_text(_json(config), encoding="utf-8")


def _unknown(file: Path, pad: str | None) -> None:
    """What the vocabulary lacks becomes padding where nothing stands for it: vLLM's server writes a
    prompt of its own at its start, and ends where that cannot be written. Task prompts never do."""
    said = json.loads(file.read_text()) if file.is_file() else {}
    words = said.get("model", {})
    vocab = words.get("vocab", {})
    if words.get("type") == "WordLevel" and words.get("unk_token") not in vocab and pad in vocab:
        words["unk_token"] = pad
        file.write_text(json.dumps(said, indent=2, ensure_ascii=False), encoding="utf-8")


def _generation_config(made: Made, file: Path) -> dict[str, Any]:
    """Sampling as in training; never greedy, at which reasoners loop. Returns what is told."""
    config = json.loads(file.read_text()) if file.is_file() else {}
    config.pop("_from_model_config", None)
    stage, tokenizer = made.source.stage, made.renderer.tokenizer
    if stage is not None:
        config |= {"temperature": stage.rollout.temperature, "top_p": 1.0, "top_k": 0}
        config["max_new_tokens"] = stage.rollout.max_tokens
    if not config.get("temperature"):
        config["temperature"] = 1.0
    config = {"top_p": 1.0, "top_k": 0, **config, "do_sample": True}
    ends = {*made.renderer.eos_ids}
    if (turn := probe.end_of_turn(tokenizer)) is not None:
        ends.add(turn)
    config["eos_token_id"] = sorted(ends) if len(ends) > 1 else next(iter(ends))
    if tokenizer.pad_token_id is not None:
        config.setdefault("pad_token_id", tokenizer.pad_token_id)
    file.write_text(_json(config), encoding="utf-8")
    kept = ("temperature", "top_p", "top_k", "max_new_tokens", "eos_token_id")
    return {name: config[name] for name in kept if name in config}


def budget_config(made: Made, sampling: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What budget_config.json says: `trainer/export/README.md` has every field."""
    asked, found, markers = made.ways, made.source, made.renderer.thinking
    efforts = list(asked.efforts) if markers is None else [NONE, *asked.efforts]
    forced = {"close": asked.close, "after_close": asked.after_close}
    number = Asking(template={"thinking_budget": BUDGET}, **forced)
    asks = Asks(
        budget=None if asked.budget is None else number,
        efforts={e: Asking(template={"reasoning_effort": e}, **forced) for e in efforts},
    )
    shown = {name: _short(a) for name, a in asked.efforts.items() if name != NONE}
    texts = {
        "default": _short(asked.default),
        "none": _short(asked.none.model_copy(update={"prefill": made.closing or ""})),
        "budget": None if asked.budget is None else _short(asked.budget),
        "efforts": shown,
    }
    thinking = None if markers is None else {f: getattr(markers, f) for f in markers.__slots__}
    return {
        "version": VERSION,
        "asks": _short(asks),
        "texts": texts,
        "trained": _trained(made),
        "thinking": thinking,
        "forced_end": asked.close or (markers.end if markers else ""),
        "after_close": asked.after_close,
        "answer_reserve": _reserve(made),
        "limits": dict(asked.limits),
        "sampling": sampling,
        "sha256": {
            "tokenizer": _sha256(folder / "tokenizer.json"),
            "chat_template": hashlib.sha256(made.template.encode()).hexdigest(),
        },
        "source": {
            "id": found.id,
            "name": found.name,
            "step": found.step,
            "base_model": None if found.stage is None else _public(found.stage.model.path),
            "adapter": (folder / ADAPTER).is_dir(),
        },
        "measured": made.measured,
    }


def _trained(made: Made) -> dict[str, Any] | None:
    """The budget policy, and what the data put around every prompt: both are the client's now."""
    stage = made.source.stage
    if stage is None:
        return None
    return {**made.ways.trained, "system": stage.data.system, "suffix": stage.data.suffix}


def _short(asking: Asking | Asks) -> dict[str, Any]:
    return asking.model_dump(mode="json", exclude_defaults=True)


def _public(path: str) -> str:
    """The base model's name; of a folder elsewhere only its last part."""
    return Path(path).name if os.path.isabs(path) or path.startswith(("~", ".")) else path


def _reserve(made: Made) -> int:
    """Tokens that a client leaves for the answer beyond the thinking budget."""
    stage = made.source.stage
    limit = stage.evaluation.answer_tokens if stage is not None and stage.evaluation else None
    context = ModelFolder(made.source.model).context
    fallback = RESERVE if context is None else min(RESERVE, max(1, context // 8))
    return made.ways.answer or limit or fallback


def _sha256(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
