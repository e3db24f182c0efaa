"""Schedules by their closed forms, and what optimisers are refused for."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.ranks import on_ranks
from tests.test_learner_accumulation import sequences
from tests.tiny import tiny_model
from trainer.batching import pack
from trainer.learner import Learner, LearnerConfig
from trainer.losses import LossConfig
from trainer.optim import OptimConfig, adamw, check, parameter_groups, set_rates


def curve(total: int, **fields) -> list[float]:
    config = OptimConfig(**fields)
    return [config.factor(step, total) for step in range(total)]


def test_constant_after_warm_up() -> None:
    assert curve(6, warmup_steps=3) == [0.25, 0.5, 0.75, 1, 1, 1]


def test_linear_ends_at_its_floor() -> None:
    assert curve(5, schedule="linear") == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    floor = OptimConfig(schedule="linear", min_lr_ratio=0.1)
    assert floor.factor(5, 5) == floor.factor(50, 5) == pytest.approx(0.1)


def test_decay_can_begin_late() -> None:
    found = curve(10, schedule="linear", decay_from=0.4)
    assert found == pytest.approx([1] * 5 + [5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_cosine() -> None:
    found = curve(8, schedule="cosine", warmup_steps=0)
    assert found == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)])


@pytest.mark.filterwarnings("ignore:.*has no effect")
@given(
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    warmup=st.integers(0, 12),
    start=st.floats(0, 0.99),
    floor=st.floats(0, 1),
    total=st.integers(1, 12),
)
def test_rises_then_never_rises_again(schedule, warmup, start, floor, total) -> None:
    config = OptimConfig(
        schedule=schedule, warmup_steps=warmup, decay_from=start, min_lr_ratio=floor
    )
    found = [config.factor(step, total) for step in range(warmup + total + 3)]
    assert all(a < b for a, b in itertools.pairwise(found[: warmup + 1]))
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(found[warmup:]))
    assert found[warmup] <= 1
    assert min(found[warmup:]) >= floor - 1e-12


def test_only_matrices_decay() -> None:
    model = tiny_model("gpt2")  # has biases
    groups = parameter_groups(OptimConfig(weight_decay=0.1), model)
    decays = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert len(decays) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        vector = name.endswith("bias") or ".ln_" in name
        assert decays[id(parameter)] == (0.0 if vector else 0.1), name


def test_rates_reach_every_group() -> None:
    config = OptimConfig(lr=1e-2, weight_decay=0.1, schedule="linear")
    optimizer = adamw(config, tiny_model())
    assert set_rates(config, optimizer, step=1, total_steps=4) == pytest.approx(7.5e-3)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([7.5e-3] * 2)
    config = OptimConfig(name="muon", lr=1e-2, muon_lr=0.2, schedule="linear")
    optimizer.param_groups[0]["use_muon"] = True
    set_rates(config, optimizer, step=1, total_steps=4)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.15, 7.5e-3])


def test_refusals_name_the_fix() -> None:
    muon = OptimConfig(name="muon")
    with pytest.raises(ValueError, match=r"learner\.zero=3.*set learner\.zero to 0, 1 or 2"):
        check(muon, zero=3, clip_grad=0.0)
    with pytest.raises(ValueError, match=r"clip_grad=1\.0.*set learner\.clip_grad to 0"):
        check(muon, zero=1, clip_grad=1.0)
    check(muon, zero=0, clip_grad=1.0)
    check(OptimConfig(), zero=3, clip_grad=1.0)
    with pytest.raises(ValidationError, match=r"each lies in \[0, 1\)"):
        OptimConfig(betas=(0.9, 1.0))


RATE = 2**-5


def first_steps(rank: int, folder: str) -> list[tuple]:
    """Per stage and dtype: how far the weights moved in the first optimiser step."""
    out = []
    for zero, dtype in itertools.product(range(4), ("float32", "bfloat16")):
        learner = Learner(
            folder, LearnerConfig(zero=zero), OptimConfig(lr=RATE, weight_decay=0.5),
            LossConfig(name="ce"), total_steps=1, dtype=dtype,
        )  # type: ignore[arg-type] # fmt: skip
        batch = pack(sequences(), learner.loss, tokens_per_micro_batch=10_000, ranks=1)
        before = {n: w.float() for bucket in learner.buckets() for n, w in bucket}
        learner.step([batch.updates[0][0]])
        after = {n: w.float() for bucket in learner.buckets() for n, w in bucket}
        name = "model.layers.1.mlp.down_proj.weight"
        moved = after[name] - before[name] * (1 - RATE * 0.5)  # without what decays
        out.append((zero, dtype, moved.abs().numpy()))
        learner.close()
    return out


def test_the_first_step_of_adam_has_the_size_of_its_rate(tmp_path: Path) -> None:
    """At ZeRO-0 in bfloat16 DeepSpeed has Adam take, and count, a step before the first."""
    tiny_model().save_pretrained(tmp_path)
    for zero, dtype, moved in on_ranks(1, first_steps, str(tmp_path))[0]:
        where = f"zero={zero} {dtype}"
        assert np.median(moved) == pytest.approx(RATE, rel=0.02), where
