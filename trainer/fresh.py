"""The model a stage begins with, where it is not a ready folder: weights drawn, markers added."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from trainer import lora
from trainer.config import Stage
from trainer.modelfolder import WEIGHTS


def start_model(folder: Path, made: Path, stage: Stage, seed: int) -> Path:
    """`folder` if it can be trained as it stands, else `made`: a copy with what was missing."""
    folder = with_weights(folder, made, seed)
    if stage.model.add_markers and stage.markers is not None:
        folder = with_markers(folder, made, stage)
    return folder


def with_weights(folder: Path, made: Path, seed: int) -> Path:
    """`folder` if it holds weights, else `made`: the same model with random weights.

    The weights are those of its own initialiser under `seed`; the global random state of torch
    stays as it was.
    """
    if any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
        return folder
    _quiet()
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder, trust_remote_code=False)
        )
    shutil.copytree(folder, made, dirs_exist_ok=True)
    model.save_pretrained(made)
    return made


def with_markers(folder: Path, made: Path, stage: Stage) -> Path:
    """`folder` if its tokenizer has the thinking markers, else `made`: with both as new tokens.

    New rows of the embeddings begin at the mean of the old ones (transformers' resize).
    """
    _quiet()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from samplers import render

    trust = stage.model.trust_remote_code
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    assert stage.markers is not None
    if not render.add_markers(tokenizer, stage.markers):
        return folder
    if stage.model.lora is not None:
        raise ValueError(lora.NEW_ROWS)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust, dtype="auto")
    if model.get_input_embeddings().num_embeddings < len(tokenizer):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made


def _quiet() -> None:
    """Before transformers is imported, which imports DeepSpeed, which tells what it found."""
    import torch

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
