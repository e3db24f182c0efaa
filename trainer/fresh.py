"""A model folder without weights is a model yet to be trained: its weights are drawn here."""

from __future__ import annotations

import shutil
from pathlib import Path

WEIGHTS = ("*.safetensors", "*.bin")


def with_weights(folder: Path, made: Path, seed: int) -> Path:
    """`folder` if it holds weights, else `made`: the same model with random weights.

    The weights are those of its own initialiser under `seed`; the global random state of torch
    stays as it was.
    """
    if any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
        return folder
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    shutil.copytree(folder, made, dirs_exist_ok=True)
    model.save_pretrained(made)
    return made
