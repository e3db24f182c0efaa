"""Checks before anything expensive: every mistake is one line, and no model has been loaded.

What a setting, a folder or a dataset says of itself is checked here; what only the machines can
know (a placement that does not fit, an architecture without a cache) is told where it happens.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rewards import grader
from rewards.apply import Shaping
from samplers import seam
from samplers.data import DataConfig, Dataset
from samplers.data import load as load_data
from samplers.facts import MARKERS
from samplers.render import ThinkingConfig
from samplers.types import Prompt
from trainer import golds, lora, rehearsal, supervised
from trainer.checkpoint import unmeasured
from trainer.config import Recipe, Stage
from trainer.modelfolder import ModelFolder, facts, locate

LOOKED_AT = 512
"""Prompts that stand for the others where reading all would take long."""


def check_all(
    recipe: Recipe,
    *,
    thorough: bool = True,
    here: bool = True,
    files: bool = True,
    first: int = 0,
) -> None:
    """`check` every stage; where there are several, the message says which.

    Args:
        first: the stage that a run goes on with; what those before it read may be gone.
        here: it is to run on this machine, so what this machine `lacks` is a mistake.
        files: it is to read this machine's files.

    Raises:
        ValueError: the first mistake, as one line.
    """
    for i, stage in enumerate(recipe.stages[first:], first):
        try:
            check(stage, recipe, thorough=thorough, here=here, files=files)
        except ValueError as error:
            if len(recipe.stages) == 1:
                raise
            raise ValueError(f"stages.{i}: {error}") from error
    if not first:
        _new_rows(recipe)
    if missed := unmeasured(recipe.checkpoint, recipe.stages):
        warnings.warn(missed, stacklevel=2)
    if here:
        crowded(recipe)


def check(
    stage: Stage, recipe: Recipe, *, thorough: bool = True, here: bool = True, files: bool = True
) -> None:
    """Raise the first mistake of one stage; warn of what is allowed and unwise.

    `thorough` also fetches the small files of a hub model and grades every gold, not just the
    first ones. Without it nothing is downloaded: prompts of a hub dataset are not looked at.

    Raises:
        ValueError: one line: the field (or file and row), its value, what is allowed, the fix.
    """
    _sizes(stage)
    _graders(stage)
    _attention(stage, here)
    _engine(stage, thorough, here)
    away = "" if thorough else _away(stage.data, files)
    if away:
        warnings.warn(f"{away} and checked when the run starts", stacklevel=2)
    sampled = stage.kind == "rl" or stage.supervised.traces is not None
    looked = None if thorough else LOOKED_AT
    graded = [golds.load(stage, "train", recipe.seed, looked)] if sampled and not away else []
    _traces(stage, graded)
    if stage.evaluation is not None and stage.evaluation.every and not away:
        graded.append(golds.load(stage, "test", recipe.seed, looked))
    asked = [prompt for dataset in graded for prompt in _some(dataset)]
    imitated = [] if sampled or away else _examples(stage, recipe.seed)
    _model(stage, asked, imitated, thorough)
    if asked and stage.kind == "rl":
        folder = locate(stage.model.path, download=thorough)
        model = ModelFolder(folder) if folder else None
        rehearsal.check(stage, asked[0], model)
        rehearsal.check_rows(stage, _rows(graded[0], thorough), model)


def _away(data: DataConfig, files: bool) -> str:
    """What is to be done with data that cannot be looked at now; '': they are here, or should be.

    `files`: those that are named and not on this machine are a mistake.
    """
    if data.hub is not None:
        return f"data.hub: '{data.hub}' is fetched"
    paths = data.path.values() if isinstance(data.path, dict) else [data.path or ""]
    for path in paths:
        if not files and os.path.isabs(path) and not os.path.exists(path):
            return f"data.path: '{path}' is not on this machine; it is read"
    return ""


def _new_rows(recipe: Recipe) -> None:
    """The stage that adds markers must train their embeddings."""
    adding = [s for s in recipe.stages if s.model.add_markers and s.markers is not None]
    folder = locate(recipe.stages[0].model.path)
    if not adding or adding[0].model.lora is None or folder is None:
        return
    model, thinking = ModelFolder(folder), adding[0].markers
    assert thinking is not None
    if model.tokenizer is not None and not all(map(model.knows, (thinking.start, thinking.end))):
        raise ValueError(lora.NEW_ROWS)


def _sizes(stage: Stage) -> None:
    """Sizes that fit each other: budgets below the cap, groups that have somebody to compare."""
    seam.resolve("samplers.budgets", stage.budget_spec)
    if stage.evaluation is not None:
        stage.evaluation.grid(stage.rollout.max_tokens, stage.markers is not None)


def _attention(stage: Stage, here: bool) -> None:
    """FlashAttention is an extra package, for GPUs, and knows no float32."""
    if stage.model.attention != "flash_attention_2":
        return
    missing = _flash() if here else []
    if stage.model.dtype != "bfloat16":
        missing.insert(0, f"model.dtype=bfloat16 (it is {stage.model.dtype})")
    if missing:
        raise ValueError(
            f"model.attention=flash_attention_2 needs {', '.join(missing)}; or set "
            "model.attention=sdpa"
        )


def _flash() -> list[str]:
    """What FlashAttention needs and this machine has not."""
    missing = []
    if importlib.util.find_spec("flash_attn") is None:
        missing.append("the package flash_attn (pip install flash-attn)")
    if not _sees_gpu():
        missing.append("a visible GPU")
    return missing


def lacks(stage: Stage) -> list[str]:
    """What the stage needs and this machine has not: for a plan, which goes on to say more."""
    out = []
    module = seam.find("samplers.engines", stage.rollout.engine.name)
    for check in (partial(_attention, stage, True), partial(_installed, module, stage)):
        try:
            check()
        except ValueError as error:
            out.append(str(error))
    return out


def _installed(module: Any, stage: Stage) -> None:
    if generates(stage) and hasattr(module, "require"):
        module.require(stage.rollout.engine)


def generates(stage: Stage) -> bool:
    """A supervised stage does so only to make its examples, or to be evaluated."""
    measured = stage.evaluation is not None and stage.evaluation.every > 0
    return stage.kind == "rl" or stage.supervised.traces is not None or measured


def _engine(stage: Stage, thorough: bool, here: bool) -> None:
    """What an engine can refuse before it is started."""
    config = stage.rollout.engine.model_copy(update={"dtype": stage.model.dtype})
    module = seam.find("samplers.engines", config.name)
    if generates(stage) and hasattr(module, "check"):
        folder = locate(stage.model.path, download=thorough) or facts(stage.model.path)
        model = {} if folder is None else ModelFolder(folder).config
        module.check(config, model, stage.rollout.max_tokens, here=here)


def _sees_gpu() -> bool:
    try:
        import torch
    except ImportError:  # a plan is made where nothing is installed, too
        return False
    return torch.cuda.device_count() > 0


def _graders(stage: Stage) -> None:
    Shaping(stage.shaping)
    judge = grader.load(stage.verifier)
    if generates(stage) and stage.grader.processes == 0 and not judge.quick:
        raise ValueError(
            f"grader.processes=0: verifier '{judge.name}' may hang and must run in processes that "
            "can be killed; set grader.processes=2 or more"
        )


def _traces(stage: Stage, data: Sequence[Dataset]) -> None:
    """What a maker of examples needs of its stage, and of the `data` it samples, if they are here.

    Raises:
        ValueError: thinking markers that it needs are not there.
    """
    spec = stage.supervised.traces
    if stage.kind != "sft" or spec is None:
        return
    module, config = seam.resolve("trainer.traces", spec)
    name, _ = seam.split(spec)
    needs = module.requires(config) if hasattr(module, "requires") else {}
    if MARKERS in needs and stage.markers is None:
        raise ValueError(f"supervised.traces={name} needs {MARKERS}: {needs[MARKERS]}")
    for dataset in data:
        if dataset.size is not None and dataset.size < config.prompts:
            warnings.warn(
                f"supervised.traces.prompts={config.prompts}: the data hold {dataset.size}, and "
                "each is sampled once",
                stacklevel=3,
            )


def _examples(stage: Stage, seed: int) -> list[Prompt]:
    """The first prompts of every phase of a supervised stage: they need completions, not golds."""
    changes: list[Mapping[str, Any]] = [phase.settings for phase in stage.supervised.curriculum]
    return [
        prompt
        for change in [*changes, {}]
        for prompt in _some(supervised.examples(stage.supervised, stage.data, change, seed))
    ]


def _some(dataset: Dataset) -> list[Prompt]:
    """The first prompts: all of a small dataset, a few of a task (those are made, not read)."""
    return [dataset[i] for i in range(min(LOOKED_AT, dataset.size or 8))]


def _model(
    stage: Stage, asked: Sequence[Prompt], imitated: Sequence[Prompt], thorough: bool
) -> None:
    """`asked` are answered, up to the response cap; `imitated` come with their completions."""
    folder = locate(stage.model.path, download=thorough)
    if folder is None:
        warnings.warn(
            f"model.path: '{stage.model.path}' is not on this machine yet, so its template, "
            "markers and data were not checked",
            stacklevel=3,
        )
        if (known := facts(stage.model.path)) is not None:
            _context(stage, ModelFolder(known), asked)
        return
    model = ModelFolder(folder)
    if not model.causal:
        kinds = ", ".join(model.config.get("architectures") or ["an encoder-decoder"])
        raise ValueError(
            f"model.path: {folder} is {kinds}, which is not a causal language model; give one "
            "whose architecture ends in ForCausalLM"
        )
    if not model.chat_template and any(p.messages for p in (*asked, *imitated)):
        raise ValueError(
            f"model.path: {folder} has no chat template, and data.chat=true makes chat messages; "
            "add chat_template.jinja to the folder, or set data.chat=false"
        )
    if asked:
        _context(stage, model, asked)
    if stage.markers is not None and not stage.model.add_markers:
        check_markers(model, stage.markers)
    if stage.model.lora is not None:
        trust = stage.model.trust_remote_code
        lora.check_names(model, stage.model.lora, build=thorough, trust_remote_code=trust)


def check_markers(model: ModelFolder, thinking: ThinkingConfig) -> None:
    """Raise ValueError unless both markers are one known token each."""
    for field in ("start", "end"):
        marker = getattr(thinking, field)
        if model.tokenizer is None or model.knows(marker):
            continue
        try:
            what = f"{model.tokens(marker)} tokens"
        except ValueError:
            what = "unknown"
        raise ValueError(
            f"thinking.{field}: '{marker}' is {what} to the tokenizer of {model.path}; a marker "
            "must be one known token: set model.add_markers=true to add it and resize the "
            "embeddings, name the model's own markers, or set thinking=none"
        )


def _context(stage: Stage, model: ModelFolder, prompts: Sequence[Prompt]) -> None:
    """Prompt and response must fit into the positions that the model knows."""
    context, cap = model.context, stage.rollout.max_tokens
    longest = max((_tokens(model, prompt) for prompt in prompts), default=0)
    if context is not None and cap + longest > context:
        raise ValueError(
            f"rollout.max_tokens={cap}: with prompts of up to {longest} tokens it exceeds the "
            f"context of {context} tokens of {model.path}; set rollout.max_tokens="
            f"{max(1, context - longest)} or less"
        )


def longest_prompt(stage: Stage, recipe: Recipe, model: ModelFolder) -> int | None:
    """Tokens of the longest of the first prompts; None where data or tokenizer are not here."""
    if _away(stage.data, files=False) or model.tokenizer is None:
        return None
    if stage.kind == "sft" and stage.supervised.traces is None:
        prompts = _examples(stage, recipe.seed)
    else:
        prompts = _some(load_data(stage.data, "train", recipe.seed))
    return max((_tokens(model, prompt) for prompt in prompts), default=None)


def _tokens(model: ModelFolder, prompt: Prompt) -> int:
    """Tokens of what is asked; the few that a chat template adds are not counted."""
    text = prompt.text + "".join(str(message["content"]) for message in prompt.messages)
    try:
        return model.tokens(text) or 0
    except ValueError as error:
        raise ValueError(f"data: row {prompt.id}: {error}") from None


def _rows(dataset: Dataset, thorough: bool) -> list[Prompt]:
    """All rows of a finite dataset when thorough, else the first."""
    if dataset.size is None or not thorough:
        return _some(dataset)
    return [dataset[i] for i in range(dataset.size)]


def crowded(recipe: Recipe) -> None:
    """Tell what the processes of a stage ask of this machine where they ask for more than it has.

    They take turns (learners wait while engines work), so this is slow and not wrong.
    """
    most = max(s.learner.ranks + s.rollout.workers + s.grader.workers for s in recipe.stages)
    if max(max(s.learner.ranks, s.rollout.workers) for s in recipe.stages) > cpus():
        warnings.warn(
            f"the recipe runs up to {most} busy processes and this machine has {cpus()} cores: "
            "they will share; lower learner.ranks and rollout.workers to be faster",
            stacklevel=3,
        )


def cpus() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
