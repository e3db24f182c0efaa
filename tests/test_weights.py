"""Weights leave the learner as the bytes they are: every stage, two ranks, tied and untied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ranks import on_ranks
from tests.tiny import tiny_model
from trainer import weights, zero
from trainer.learner import Learner, LearnerConfig
from trainer.losses import LossConfig
from trainer.optim import OptimConfig

BUCKET = 10_000


def streamed(rank: int, folder: str, names: list[str]) -> list[tuple]:
    """Per stage, model and dtype: the buckets of this rank, and what stays gathered after them."""
    import torch

    out = []
    for stage, name, dtype in (
        (stage, name, dtype)
        for stage in range(4)
        for name in names
        for dtype in ("float32", "bfloat16")
        if dtype == "float32" or stage in (0, 3)
    ):
        learner = Learner(
            f"{folder}/{name}",
            LearnerConfig(zero=stage, ranks=2),
            OptimConfig(),
            LossConfig(name="ce"),
            total_steps=1,
            rank=rank,
            port=0,
            dtype=dtype,  # type: ignore[arg-type]
        )
        buckets = list(learner.buckets(BUCKET))
        sizes = [sum(t.numel() * t.element_size() for _, t in bucket) for bucket in buckets]
        own = {p.data_ptr() for p in learner.model.parameters()}
        shared = any(t.data_ptr() in own for bucket in buckets for _, t in bucket)
        left = [p.numel() for p in learner.model.parameters()]
        whole = {n: t.view(torch.uint8).numpy() for b in buckets for n, t in b}
        loads = set(whole) <= set(learner.model.state_dict())
        out.append((stage, name, dtype, whole, sizes, shared, sum(left), loads))
        learner.close()
    return out


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[tuple]]]:
    folder = tmp_path_factory.mktemp("models")
    for tied in (True, False):
        tiny_model(tied=tied).save_pretrained(folder / ("tied" if tied else "untied"))
    return folder, on_ranks(2, streamed, str(folder), ["tied", "untied"], deadline=200)


def test_bytes_are_the_models(both: tuple[Path, list[list[tuple]]]) -> None:
    import torch
    from safetensors.torch import load_file

    folder, ranks = both
    for stage, name, dtype, got, *_ in ranks[0]:
        saved: dict[str, Any] = load_file(folder / name / "model.safetensors")
        assert got.keys() == saved.keys(), f"zero={stage} {name}"
        assert ("lm_head.weight" in got) == (name == "untied")
        for parameter, tensor in saved.items():
            expected = tensor.to(getattr(torch, dtype)).view(torch.uint8).numpy()
            assert np.array_equal(got[parameter], expected), f"zero={stage} {dtype} {parameter}"


def test_buckets_are_bounded_copies_and_only_rank_0_has_them(both: tuple[Path, Any]) -> None:
    for first, second in zip(*both[1], strict=True):
        stage, name, *_, sizes, shared, _, loads = first
        assert len(sizes) == len(second[4]) > 2, "the ranks must step through the same buckets"
        assert max(sizes) <= BUCKET
        assert sum(second[4]) == 0
        assert second[3] == {}
        assert not shared, f"zero={stage} {name}: a bucket must not change with the next step"
        assert loads


def test_zero_3_lets_go_of_what_it_gathered(both: tuple[Path, Any]) -> None:
    for stage, _, _, _, _, _, left, _ in both[1][0]:
        assert (left < 500) == (stage == 3)  # the norms stay whole; no matrix does


def test_a_parameter_larger_than_a_bucket_gets_its_own() -> None:
    parameters = dict(tiny_model().named_parameters())
    groups = list(zero.groups(iter(parameters.items()), 100))
    assert [name for group in groups for name, _ in group] == list(parameters)
    assert all(len(g) == 1 for g in groups if g[0][1].numel() * 4 > 100)
    buckets = list(weights.buckets(tiny_model(), 100))  # no process group: rank 0 of one
    assert [n for b in buckets for n, _ in b] == list(parameters)
