"""The prompts of a stage whose golds its verifier accepts; the others are refused or left out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence

from rewards.golds import check_golds, told
from samplers import seam, seeds
from samplers.data import Dataset, Split
from samplers.data import load as load_data
from samplers.types import Prompt
from trainer.config import Stage

_BAD: dict[tuple[str, str], dict[int, str]] = {}
"""What is wrong with the golds of a dataset (fingerprint, verifier): checked once a process."""


def training(stage: Stage, seed: int, index: int) -> Dataset:
    """What stage `index` of a run with `seed` trains on, where that is rollouts.

    A later stage draws other problems of a task than the one before, but from the same pool where
    there is one. Errors: as `load`.
    """
    pool = stage.data.limit is not None or not index
    return load(stage, "train", seed if pool else seeds.key(seed, index))


def load(stage: Stage, split: Split, seed: int, rows: int | None = None) -> Dataset:
    """The prompts of `split`, without those whose golds are bad if the stage wants those dropped.

    A procedural task without a limit is as it is: its golds are made, not written.

    Args:
        rows: how many of the first rows are looked at; None: all.

    Raises:
        ValueError: bad golds where `data.bad_golds` is refuse, or nothing but bad golds.
    """
    dataset = load_data(stage.data, split, seed)
    if dataset.size is None:
        return dataset
    prompts = [dataset[i] for i in range(min(rows or dataset.size, dataset.size))]
    bad = _bad(stage, dataset.fingerprint, prompts)
    if not bad:
        return dataset
    share = f"{len(bad)} of {len(prompts)} rows of the {split} split"
    if stage.data.bad_golds == "refuse":
        raise ValueError(
            f"data: the verifier rejects the gold of {share}; {told(prompts, bad)}; correct them, "
            "set data.bad_golds=drop to leave such rows out, or choose another verifier"
        )
    if len(bad) == len(prompts):
        raise ValueError(
            f"data.bad_golds=drop leaves no row: the verifier rejects the gold of {share}; "
            f"{told(prompts, bad)}; choose another verifier"
        )
    return dataset.without(set(bad))


def _bad(stage: Stage, fingerprint: str, prompts: Sequence[Prompt]) -> dict[int, str]:
    key = (f"{fingerprint}:{len(prompts)}", json.dumps(stage.verifier, sort_keys=True, default=str))
    if key not in _BAD:
        _one_verifier(stage, prompts)
        bad = _BAD[key] = check_golds(prompts, stage.verifier)
        if bad and len(bad) < len(prompts) and stage.data.bad_golds == "drop":
            warnings.warn(
                f"data.bad_golds=drop: {len(bad)} of {len(prompts)} rows are left out: "
                f"{told(prompts, bad)}",
                stacklevel=4,
            )
    return _BAD[key]


def _one_verifier(stage: Stage, prompts: Sequence[Prompt]) -> None:
    """Rows that name a verifier are graded by it, or the recipe says how else."""
    name, _ = seam.split(stage.verifier)
    other = next((p for p in prompts if p.verifier not in ("", name)), None)
    if other is None or stage.data.task or name == "by_row":  # a task's verifier is a proposal
        return
    raise ValueError(
        f"data: row {other.id} names verifier '{other.verifier}', and the stage grades every "
        f"row by verifier={name}; set verifier={other.verifier}, choose row by row with "
        "verifier=by_row, or take such rows or the column out"
    )
